"""The network in training: noise in, losses out, through the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from bokeh_ops.adapter.network import BokehAdapter
from trainer.config import Fit
from trainer.frozen.cache import stack
from trainer.frozen.model import Base, Embedding
from trainer.recipes.bokeh.localise import Localiser
from trainer.recipes.bokeh.objective import noise_level, row_losses, scene_noise, weights
from trainer.recipes.bokeh.plan import MicroBatch

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class RowLosses:
    """Losses of the rows of a micro-batch, each ``[R]``, and the noise levels they were taken at."""

    error: Tensor
    localisation: Tensor
    sigma: list[float]


class Trainee:
    """An adapter laid on a frozen base, open to gradients while :meth:`training` is.

    Args:
        base: the frozen model.
        adapter: moved to the host's device; stays in fp32.
        settings: resolved.
    """

    def __init__(self, base: Base, adapter: BokehAdapter, settings: Fit) -> None:
        from bokeh_ops.host.loading import models as loading
        from bokeh_ops.host.training import denoise
        from bokeh_ops.host.training.gradients import apply_for_training

        self.base, self.adapter, self.settings = base, adapter, settings
        self.device = loading.device()
        adapter.to(self.device)
        self.localiser = Localiser(adapter) if settings.localisation else None
        autocast = AUTOCAST[settings.precision]
        self.laid = apply_for_training(base.patcher, adapter, autocast, self.localiser)
        self.prediction = denoise.prediction(base.patcher)
        self.sigmas = None if self.prediction == "flow" else denoise.discrete_sigmas(base.patcher)
        self._open: ExitStack | None = None

    @contextmanager
    def training(self) -> Iterator[None]:
        """While this is open, :meth:`losses` may be called."""
        try:
            self._enter()
            yield
        finally:
            self._leave()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside :meth:`training`: the network as samplers need it, for a while."""
        self._leave()
        try:
            yield
        finally:
            self._enter()

    def load(self) -> None:
        """Bring the network to where it computes; only needed where something else may have taken its place."""
        from bokeh_ops.host.loading.models import on_device

        on_device(self.laid)

    def _enter(self) -> None:
        from bokeh_ops.host.training.gradients import differentiable

        self.load()
        self._open = ExitStack()
        self._open.enter_context(differentiable(self.laid, self.adapter, self.settings.checkpointing))

    def _leave(self) -> None:
        from bokeh_ops.host.loading.models import unload

        if self._open is not None:
            self._open.close()
            self._open = None
            unload()

    def noisy(self, micro: MicroBatch, latents: Tensor) -> tuple[Tensor, Tensor, list[float]]:
        """What the network is given: ``x``, ``x0`` in its own scale of latents, and noise levels.

        Args:
            micro: the plan; rows of one scene share noise and level.
            latents: as LATENT holds them, ``[R, C, H, W]``, on the CPU.
        """
        from bokeh_ops.host.training.denoise import add_noise

        shape = (int(latents.shape[1]), int(latents.shape[2]), int(latents.shape[3]))
        scenes = sorted({picture.scene for picture in micro.pictures})
        seed, offset = self.settings.seed, self.settings.noise.offset or 0.0
        drawn = {scene: scene_noise(shape, offset, seed, micro.step, scene) for scene in scenes}
        level = {scene: noise_level(self.settings, self.sigmas, shape, micro.step, scene) for scene in scenes}
        sigma = [level[picture.scene] for picture in micro.pictures]
        noise = torch.stack([drawn[picture.scene] for picture in micro.pictures]).to(self.device)
        x0 = self.base.patcher.model.process_latent_in(latents.to(self.device)).float()
        return add_noise(self.laid, x0, noise, torch.tensor(sigma, device=self.device)), x0, sigma

    def losses(
        self,
        micro: MicroBatch,
        latents: Tensor,
        texts: Sequence[Embedding],
        size: tuple[int, int],
        masks: Tensor | None = None,
    ) -> RowLosses:
        """Losses of a micro-batch, with gradients to the adapter.

        Args:
            micro: the plan.
            latents: as LATENT holds them, ``[R, C, H, W]``.
            texts: embeddings of the captions, per row.
            size: width and height of the pictures.
            masks: foreground ``[R, H, W]``, for the localisation regulariser.
        """
        from bokeh_ops.host.training.denoise import conditioning, denoise

        x, x0, sigma = self.noisy(micro, latents)
        told = [picture.told for picture in micro.pictures]
        if self.localiser is not None:
            assert masks is not None
            rows = torch.tensor(told, device=self.device)
            self.localiser.begin(rows, masks, [picture.told == picture.k for picture in micro.pictures])
        context, pooled = stack(texts)
        architecture = self.base.architecture
        positive = conditioning(
            context,
            pooled,
            self.settings.base.guidance if architecture.guided else None,
            told,
            micro.pivots(),
            architecture.picture_conditions(*size),
        )
        levels = torch.tensor(sigma, device=self.device)
        estimate = denoise(self.laid, positive, x, levels)
        error = row_losses(estimate, x0, weights(self.prediction, levels, self.settings.noise.min_snr))
        if self.localiser is None:
            return RowLosses(error, torch.zeros_like(error), sigma)
        return RowLosses(error, self.localiser.finish(), sigma)
