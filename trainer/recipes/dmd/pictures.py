"""Real pictures as latents, and captions to make pictures of."""

from __future__ import annotations

from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bokeh_ops.digest import content_key
from bokeh_ops.errors import BokehError
from trainer.data import Dataset
from trainer.data.pairs.identity import identity
from trainer.data.sample import Taken
from trainer.frozen.cache import Store, Texts
from trainer.frozen.model import Base, Embedding
from trainer.processes import Alone
from trainer.recipes.bokeh.feed import choose_caption
from trainer.seeded import generator


class Real(NamedTuple):
    """A photograph.

    Attributes:
        key: in the data set.
        caption: one of its captions.
        text: that caption's embedding.
        latent: ``[C, h, w]``, as LATENT holds it.
        taken: how it was taken; None where that is unknown.
    """

    key: str
    caption: str
    text: Embedding
    latent: Tensor
    taken: Taken | None


Kind = Literal["any", "taken", "sharp", "shallow"]
"""Of photographs: all of them, those whose lens is known, those that are all in focus, and those of a known lens that
are not."""
_TOLD = {
    "any": "",
    "taken": " whose lens is known",
    "sharp": " that are all in focus",
    "shallow": " that are not all in focus and whose lens is known",
}


class Pictures:
    """A data set as the recipe takes it.

    Args:
        dataset: photographs.
        base: whose encoders they go through.
        texts, latents: where what the encoders made is kept.
        captions: how many captions of a photograph are used; 0 is all.
        kind: which of them.
        kept: how many, the last ones, are not trained on.

    Raises:
        BokehError: too few photographs.
    """

    def __init__(
        self,
        dataset: Dataset,
        base: Base,
        texts: Texts,
        latents: Store,
        captions: int,
        kind: Kind,
        kept: int,
    ) -> None:
        self.dataset, self.base, self.texts, self.latents = dataset, base, texts, latents
        self.captions, self.identity, self.kind = captions, identity(dataset), kind
        k, sharp = dataset.facts()
        chosen = {"any": sharp | True, "taken": k > 0, "sharp": sharp, "shallow": ~sharp & (k > 0)}[kind]
        self.indices = [int(index) for index in chosen.nonzero()[0]]
        self.kept = min(kept, len(self.indices) - 1)
        if self.kept < 1:
            raise BokehError(
                f"{dataset.folder} has {len(self.indices)} photographs{_TOLD[kind]}; training needs two and "
                "more."
            )

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """``(C, h, w)`` of their latents."""
        return tuple(self.read(0).latent.shape)

    def __len__(self) -> int:
        """How many are trained on."""
        return len(self.indices) - self.kept

    def encode(self, processes: Alone) -> None:
        """Put into the stores what will be needed; every process takes its share."""
        from tqdm import tqdm

        mine = self.indices[processes.rank :: processes.world]
        for index in tqdm(mine, desc="Encoding", unit="photo", disable=None if processes.first else True):
            sample = self.dataset.sample(index)
            if self.texts.store.folder is not None:
                self.texts(self.texts.missing(self._used(sample.captions)))
            if self.latents.folder is not None and self._name(index) not in self.latents:
                self._latent(index, sample.image)
        processes.wait()

    def drawn(self, seed: int, *purpose: str | int) -> Real:
        """One of those that are trained on, by chance."""
        chance = generator(seed, "picture", *purpose)
        return self.read(int(chance.integers(len(self))), float(chance.random()))

    def read(self, number: int, share: float = 0.0) -> Real:
        """That of a number; those from ``len`` on are not trained on. ``share``, 0 to 1, chooses the caption."""
        index = self.indices[number]
        sample = self.dataset.sample(index)
        caption = choose_caption(self._used(sample.captions), share)
        if self.kind in ("taken", "shallow") and sample.taken is None:
            raise BokehError(
                f"The photograph {sample.key!r} of {self.dataset.folder} has a K, but not all of f_number, f_mm and "
                "sensor_shown_mm, which say how it was taken. Make the data set again with this version."
            )
        kept = self.latents.get(self._name(index))
        latent = self._latent(index, sample.image) if kept is None else kept["latent"]
        return Real(sample.key, caption, self.texts([caption])[0], latent, sample.taken)

    def _used(self, captions: tuple[str, ...]) -> tuple[str, ...]:
        return captions[: self.captions or None] or ("",)

    def _name(self, index: int) -> str:
        return content_key(self.identity, index, self.base.image_fingerprint)

    def _latent(self, index: int, image: object) -> Tensor:
        (latent,) = self.base.encode_images(torch.as_tensor(image)[None])
        self.latents.put(self._name(index), {"latent": latent})
        return latent
