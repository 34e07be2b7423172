"""From a planned micro-batch to pictures, masks and captions: reading, rendering, and looking into the cache.

All of it runs in worker processes, ahead of the training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bokeh_ops.camera.optics import TRAINING_WIDTH, k_at_width
from bokeh_ops.errors import BokehError
from bokeh_ops.render import DEFAULT_MODEL
from trainer.data.pairs.render import focus_of, render_set
from trainer.data.sample import Sample
from trainer.fit.cache import Store, content_key
from trainer.fit.plan import MicroBatch, Picture, Stock


class Photographs(Protocol):
    """What is asked of a data set (:class:`trainer.data.Dataset`)."""

    @property
    def resolution(self) -> tuple[int, int]: ...

    @property
    def settings(self) -> dict[str, Any]: ...

    def __len__(self) -> int: ...

    def key(self, index: int) -> str: ...

    def sample(self, index: int) -> Sample: ...

    def facts(self) -> tuple[np.ndarray, np.ndarray]: ...


def stock(photographs: Photographs, pairs: Any | None = None) -> Stock:
    """What there is to train on, with every K counted at 512 pixels, as adapters are told it.

    Args:
        photographs: the data set.
        pairs: the data set that `pairs` made, or None.

    Raises:
        BokehError: the folder of pairs is something else, or of another resolution.
    """
    k, all_in_focus = photographs.facts()
    at_512 = TRAINING_WIDTH / max(photographs.resolution)
    if pairs is None:
        return Stock(k * at_512, all_in_focus)
    levels = pairs.settings.get("pairs", {}).get("levels")
    if not isinstance(levels, int) or levels < 2 or len(pairs) % levels:
        raise BokehError(
            f"{pairs.folder} holds no contrastive sets; make some with `python -m trainer pairs`."
        )
    if pairs.resolution != photographs.resolution:
        raise BokehError(
            f"The sets in {pairs.folder} are {pairs.resolution[0]} x {pairs.resolution[1]} and the photographs "
            f"{photographs.resolution[0]} x {photographs.resolution[1]}; render them from this data set."
        )
    return Stock(k * at_512, all_in_focus, pairs.facts()[0].reshape(-1, levels) * at_512)


@dataclass
class Fed:
    """A micro-batch with what it takes to train on it.

    Attributes:
        micro: the plan.
        keys: names of the photographs, per row.
        captions: per row.
        masks: foreground, fp32 ``[R, H, W]``.
        latents: per row what the cache held, or None.
        images: uint8 ``[M, H, W, 3]``, the pictures of the rows without a latent.
        names: per row the name of the latent in the cache.
    """

    micro: MicroBatch
    keys: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    masks: Tensor = field(default_factory=lambda: torch.empty(0))
    latents: list[Tensor | None] = field(default_factory=list)
    images: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    names: list[str] = field(default_factory=list)


class Feeder:
    """Makes a :class:`Fed` of a :class:`~trainer.fit.plan.MicroBatch`.

    Args:
        photographs: the data set.
        pairs: contrastive sets on disk, or None to render them.
        latents: where latents are kept.
        fingerprint: of the autoencoder, part of their names.
        lens: lens model that renders.
        captions: how many captions of a photograph are used; 0 is all.
    """

    def __init__(
        self,
        photographs: Photographs,
        pairs: Photographs | None,
        latents: Store,
        fingerprint: str,
        lens: str = DEFAULT_MODEL,
        captions: int = 0,
    ) -> None:
        self.photographs, self.pairs = photographs, pairs
        self.latents, self.fingerprint, self.lens = latents, fingerprint, lens
        self.captions = captions

    def __getitem__(self, micro: MicroBatch) -> Fed | BokehError:
        # An error is handed over rather than raised: from a worker it would arrive wrapped in its traceback.
        try:
            return self.feed(micro)
        except BokehError as error:
            return error

    def feed(self, micro: MicroBatch) -> Fed:
        """Read, and render where needed.

        Raises:
            BokehError: a photograph cannot be read or rendered.
        """
        fed = Fed(micro)
        masks: list[Tensor] = []
        images: list[np.ndarray] = []
        for scene in _scenes(micro.pictures):
            samples, pictures = self._scene(micro, scene, fed)
            images.extend(pictures)
            for row, sample in zip(scene, samples, strict=True):
                fed.keys.append(sample.key)
                fed.captions.append(choose_caption(self.used(sample), row.caption))
                masks.append(torch.from_numpy(sample.mask))
        fed.masks = torch.stack(masks)
        if images:
            fed.images = torch.from_numpy(np.stack(images))
        return fed

    def used(self, sample: Sample) -> Sequence[str]:
        """The captions of a photograph that are trained on."""
        return sample.captions[: self.captions or None]

    def picture_name(self, image: np.ndarray) -> str:
        """The name under which the latent of a picture is kept."""
        return content_key(self.fingerprint, "picture", image.tobytes())

    def _scene(
        self, micro: MicroBatch, scene: Sequence[Picture], fed: Fed
    ) -> tuple[list[Sample], list[np.ndarray]]:
        """The samples of one scene's rows, and the pictures of those whose latents are not kept."""
        rendered = micro.kind == "contrastive" and not micro.stored
        if rendered:
            samples = [self.photographs.sample(scene[0].index)] * len(scene)
            content = [samples[0].image.tobytes(), samples[0].disparity.tobytes(), focus_of(samples[0])]
            names = [
                content_key(self.fingerprint, "rendered", *content, row.k, self.lens)
                if row.k
                else self.picture_name(samples[0].image)
                for row in scene
            ]
        else:
            source = self.pairs if micro.kind == "contrastive" else self.photographs
            assert source is not None
            samples = [source.sample(row.index) for row in scene]
            names = [self.picture_name(sample.image) for sample in samples]
        kept = [self._kept(name) for name in names]
        fed.names.extend(names)
        fed.latents.extend(kept)
        missing = [place for place, latent in enumerate(kept) if latent is None]
        if not rendered:
            return samples, [samples[place].image for place in missing]
        width = max(self.photographs.resolution)
        own = [float(k_at_width(scene[place].k, width)) for place in missing]
        return samples, list(render_set(samples[0], own, self.lens))

    def _kept(self, name: str) -> Tensor | None:
        tensors = self.latents.get(name)
        return None if tensors is None else tensors["latent"]


def _scenes(pictures: Sequence[Picture]) -> Iterator[list[Picture]]:
    """Rows of the same scene, which follow one another."""
    scene: list[Picture] = []
    for picture in pictures:
        if scene and picture.scene != scene[0].scene:
            yield scene
            scene = []
        scene.append(picture)
    yield scene


def choose_caption(captions: Sequence[str], share: float | None) -> str:
    """One of several captions by a number 0 to 1; the empty one for None, or where there is none."""
    if share is None or not captions:
        return ""
    return captions[min(int(share * len(captions)), len(captions) - 1)]


def feed_ahead(feeder: Feeder, micros: Iterable[MicroBatch], workers: int) -> Iterator[Fed]:
    """Micro-batches in their order, made by ``workers`` processes ahead of time (0: when asked for).

    Raises:
        BokehError: what :meth:`Feeder.feed` raises.
    """
    made: Iterable[Fed | BokehError]
    if workers == 0:
        made = (feeder[micro] for micro in micros)
    else:
        from torch.utils.data import DataLoader

        made = DataLoader(
            feeder,  # type: ignore[arg-type] (its indices are micro-batches)
            sampler=micros,
            batch_size=None,
            num_workers=workers,
            multiprocessing_context="spawn",
            worker_init_fn=_one_thread,
        )
    for fed in made:
        if isinstance(fed, BokehError):
            raise fed
        yield fed


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)
