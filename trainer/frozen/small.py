"""Small models as a base to train on: toys, and those of the small world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bokeh_ops.digest import content_key
from bokeh_ops.errors import BokehError
from trainer.frozen.model import Base, Embedding


class SmallBase(Base):
    """A small model read from its file (:mod:`bokeh_ops.host.small.model`).

    Args:
        path: of the file.
        dtype: of the weights.
        wanted: the architecture of the configuration.
        fingerprint: of the file.

    Raises:
        BokehError: the file is of the other architecture.
    """

    def __init__(self, path: Path, dtype: torch.dtype, wanted: str, fingerprint: str) -> None:
        from bokeh_ops.host.small.model import read_small, small_description

        described = small_description(path)
        assert described is not None
        if described["architecture"] != wanted:
            raise BokehError(
                f"{path} is a small model of {described['architecture']}, but base.architecture is {wanted}."
            )
        self.small = read_small(path, dtype)
        super().__init__(self.small.architecture, self.small.patcher, fingerprint)
        # Of text encoder and codec alone, so that what they make is still good when the network has learnt more.
        words, sizes = self.small.words, getattr(self.small.codec, "sizes", None)
        table = b"" if words.table is None else words.table.numpy().tobytes()
        self.text_fingerprint = content_key("small", words.tokens, words.width, str(words.vocabulary), table)
        own = b"" if sizes is None else sizes.numpy().tobytes()
        self.image_fingerprint = content_key("small", described["pictures"], self.small.codec.channels, own)

    def encode_text(self, texts: Sequence[str]) -> list[Embedding]:
        return [Embedding(*self.small.words.encode(text)) for text in texts]

    def encode_images(self, images: Tensor) -> Tensor:
        return self.small.encode_images(images.cpu().float() / 255)

    def decode(self, latents: Tensor) -> Tensor:
        return self.small.decode(latents)

    def closed(self, images: Tensor) -> Tensor:
        return self.small.codec.encode(images)

    def opened(self, latents: Tensor) -> Tensor:
        return self.small.codec.decode(latents)

    def write(self, weights: Mapping[str, Tensor], path: Path) -> None:
        self.small.save(path, torch.float16, weights)

    def read(self, path: Path) -> dict[str, Tensor]:
        from bokeh_ops.host.small.model import read_small, small_description

        if small_description(path) != self.small.description:
            raise BokehError(
                f"{path} is no model of the base's sizes and words; give one that was trained from the same base."
            )
        return read_small(path, torch.float32).network.state_dict()
