"""Teacher, generator and fake model at work: what each of them says of noised pictures, and pictures by the sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainer.data.sample import Taken
from trainer.frozen.cache import Texts, stack
from trainer.frozen.model import Base, Embedding
from trainer.recipes.bokeh.trainee import AUTOCAST
from trainer.recipes.dmd.config import Distil
from trainer.recipes.dmd.networks import Networks, Role
from trainer.recipes.dmd.pictures import Real

if TYPE_CHECKING:
    from bokeh_ops.host.training.exif import ExifEmbedding


class Roles:
    """The three networks with what they are told.

    Args:
        settings: resolved.
        base: the teacher's.
        networks: the three of them.
        texts: embeddings of texts.
        size: of the pictures, width and height.
        exif: what generator and fake model are told f-number and focal length by; empty where they are not.
    """

    def __init__(
        self,
        settings: Distil,
        base: Base,
        networks: Networks,
        texts: Texts,
        size: tuple[int, int],
        exif: Mapping[Role, ExifEmbedding],
    ) -> None:
        self.settings, self.base, self.networks, self.texts = settings, base, networks, texts
        self.size, self.exif = size, exif

    def estimate(
        self,
        role: Role,
        x: Tensor,
        sigma: Tensor,
        texts: Sequence[Embedding],
        guidance: float | None = None,
        taken: Sequence[Taken | None] = (),
    ) -> tuple[Tensor, Tensor]:
        """What one of the networks estimates of ``x0``.

        Args:
            role: which.
            x: ``[R, C, h, w]``, in the model's own scale.
            sigma: noise levels ``[R]``.
            texts: of each row.
            guidance: distilled guidance; None: ``base.guidance``.
            taken: of each row how it is photographed, where the network is told that.

        Returns:
            ``[R, C, h, w]``, and the network's deepest features ``[R, L, C]``.
        """
        from bokeh_ops.host.training import denoise
        from bokeh_ops.host.training.gradients import bottleneck

        positive = self.conditioning(texts, guidance)
        autocast = AUTOCAST[self.settings.precision]
        with (
            self.networks.acting(role) as patcher,
            bottleneck(patcher) as features,
            self.told(role, patcher, taken),
            # Of weights that are spread no copies are kept from block to block.
            torch.autocast(x.device.type, autocast, cache_enabled=not self.settings.shard)
            if autocast is not None
            else nullcontext(),
        ):
            made = denoise.denoise(patcher, positive, x, sigma)
        return made.float(), features[0]

    def told(self, role: Role, patcher: Any, taken: Sequence[Taken | None]) -> Any:
        """A context in which a network is told how its rows are photographed, if it is to be."""
        from bokeh_ops.host.training.exif import told

        if role not in self.exif:
            return nullcontext()
        known = [each for each in taken if each is not None]
        return told(
            patcher,
            self.exif[role],
            [each.f_number for each in known],
            [each.focal_length for each in known],
        )

    def conditioning(self, texts: Sequence[Embedding], guidance: float | None = None) -> list[Any]:
        """CONDITIONING of several rows, as the host's nodes would have it."""
        from bokeh_ops.host.training import denoise

        context, pooled = stack(texts)
        architecture = self.base.architecture
        if architecture.guided:
            guidance = self.settings.base.guidance if guidance is None else guidance
        told = guidance if architecture.guided else None
        size = architecture.picture_conditions(*self.size)
        return denoise.conditioning(context, pooled, told, [0.0] * len(texts), picture=size)

    def teacher(self, x: Tensor, sigma: Tensor, texts: Sequence[Embedding]) -> Tensor:
        """The teacher's guided estimate ``[R, C, h, w]``: classifier-free, or as FLUX is told."""
        wanted = self.settings.matching
        assert wanted.guidance is not None  # resolved
        if self.base.architecture.guided:
            return self.estimate("teacher", x, sigma, texts, wanted.guidance)[0]
        with_text, _ = self.estimate("teacher", x, sigma, texts)
        if wanted.guidance == 1:
            return with_text
        without, _ = self.estimate("teacher", x, sigma, self.texts([wanted.negative]) * len(texts))
        return without + wanted.guidance * (with_text - without)

    def sampled(
        self, role: Role, real: Sequence[Real], steps: int, cfg: float, sampler: str, guidance: float
    ) -> Tensor:
        """Pictures ``[N, H, W, 3]``, 0..1, of photographs' captions, by the host's own sampler."""
        from bokeh_ops.host.sampling.plain import sample_plain

        empty = self.texts([self.settings.matching.negative])[0]
        made = []
        with self.networks.acting(role) as patcher:
            for number, each in enumerate(real):
                positive, negative = (self.conditioning([text], guidance) for text in (each.text, empty))
                blank = torch.zeros_like(each.latent)[None]
                seed = self.settings.samples.seed + number
                with self.told(role, patcher, [each.taken]):
                    made.append(sample_plain(patcher, positive, negative, blank, seed, steps, cfg, sampler))
        pictures = torch.cat([self.base.decode(each) for each in made])
        self.networks.load()  # sampling and the autoencoder may have needed the room
        return pictures
