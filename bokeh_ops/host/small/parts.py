"""What small models have in place of an autoencoder and a text encoder: fixed transforms with nothing to learn.

Pictures become latents by moving pixels into channels, texts become the vectors of their words. Both cost nothing, so
all of a small model's weights and time go into the diffusion model itself.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import BokehError

STOP_WORDS = frozenset({"a", "an", "the", "and", "on", "by", "of", "in", "at", "with"})
"""Words that carry nothing in the captions of a small world; a vocabulary leaves them out."""


class Codec(Protocol):
    """Pictures to latents, as a small network takes them, and back.

    Attributes:
        channels: of the latents.
        patch: pixels, both ways, that one place of the latents stands for.
    """

    channels: int
    patch: int

    def encode(self, images: Tensor) -> Tensor:
        """``[N, H, W, 3]``, 0..1, to ``[N, C, H / patch, W / patch]``."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """``[N, C, h, w]`` to ``[N, h patch, w patch, 3]``, about 0..1: what is beyond is for others to cut."""
        ...


class Grey:
    """Grey only: 2 x 2 pixels at each place, as often as the channels allow (for toys)."""

    patch = 2

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def encode(self, images: Tensor) -> Tensor:
        grey = (images.float() * 2 - 1).mean(-1)[:, None]
        return F.pixel_unshuffle(grey, 2).repeat(1, self.channels // 4, 1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        pixels = F.pixel_shuffle(latents.unflatten(1, (-1, 4)).mean(1), 2)
        return ((pixels.expand(-1, 3, -1, -1) + 1) / 2).movedim(1, -1)


class Pixels:
    """4 x 4 pixels at each place, all three colours of each: nothing is lost."""

    patch = 4
    channels = 48

    def encode(self, images: Tensor) -> Tensor:
        return F.pixel_unshuffle(images.float().movedim(-1, 1) * 2 - 1, self.patch)

    def decode(self, latents: Tensor) -> Tensor:
        return (F.pixel_shuffle(latents.float(), self.patch).movedim(1, -1) + 1) / 2


class Cosines:
    """The cosine transform of 4 x 4 pixels: all 16 coefficients of brightness, 2 x 2 of each difference of colour.

    Exact in brightness, so nothing of a picture's sharpness is lost. Each coefficient is scaled to the square root of
    its usual size: fine detail stays weaker than coarse, so that in sampling it is settled later, but not so weak
    that the network would leave it to the last.

    Args:
        sizes: standard deviation of each coefficient over the pictures of the world, ``[24]``, from
            :func:`cosine_sizes`.
    """

    patch = 4
    channels = 24

    def __init__(self, sizes: Tensor) -> None:
        if tuple(sizes.shape) != (self.channels,) or not bool((sizes > 0).all()):
            raise BokehError(
                f"The sizes of the cosine transform are {list(sizes.shape)}; expected {self.channels} numbers above 0."
            )
        self.sizes = sizes.float()

    def encode(self, images: Tensor) -> Tensor:
        return _cosines(images) / self.sizes.sqrt()[:, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        found = latents.float() * self.sizes.sqrt()[:, None, None]
        batch, _, height, width = found.shape
        full = found.new_zeros(batch, 3, 4, 4, height, width)
        full[:, 0] = found[:, :16].unflatten(1, (4, 4))
        full[:, 1:, :2, :2] = found[:, 16:].unflatten(1, (2, 2, 2))
        basis = _basis()
        pixels = torch.einsum("ai,bj,ncabhw->nchiwj", basis, basis, full).reshape(
            batch, 3, 4 * height, 4 * width
        )
        rgb = torch.einsum("ij,njhw->nhwi", torch.linalg.inv(_YCC), pixels)
        return (rgb + 1) / 2

    def rgb_factors(self) -> list[list[float]]:
        """Rough colours of latents, for previews: ``[C][3]``."""
        flat = self.decode(torch.eye(self.channels)[:, :, None, None]).clamp(0, 1).mean((1, 2)) * 2 - 1
        return flat.tolist()


_YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
"""Brightness and differences of colour (ITU-R BT.601)."""


def _basis() -> Tensor:
    """The orthonormal cosine basis of 4 points, a row each."""
    place, wave = torch.arange(4) + 0.5, torch.arange(4)[:, None]
    basis = torch.cos(torch.pi * place * wave / 4) * math.sqrt(0.5)
    basis[0] = 0.5
    return basis


def _cosines(images: Tensor) -> Tensor:
    ycc = torch.einsum("ij,nhwj->nihw", _YCC, images.float() * 2 - 1)
    height, width = ycc.shape[2:]
    if height % 4 or width % 4:
        raise BokehError(f"The pictures are {width} x {height} pixels; both must be multiples of 4.")
    blocks = ycc.unflatten(3, (-1, 4)).unflatten(2, (-1, 4))
    basis = _basis()
    all_of_them = torch.einsum("ai,bj,nchiwj->ncabhw", basis, basis, blocks)
    brightness, colour = all_of_them[:, 0].flatten(1, 2), all_of_them[:, 1:, :2, :2].flatten(1, 3)
    return torch.cat((brightness, colour), 1)


def cosine_sizes(images: Tensor) -> Tensor:
    """Standard deviations of the coefficients of :class:`Cosines` over pictures ``[N, H, W, 3]``, 0..1."""
    return _cosines(images).std((0, 2, 3)).clamp(min=1e-4)


class Words:
    """The text encoder of a small model: every word has random numbers of its own.

    A word's row also holds, turned, the numbers of the word before it, so that *red ball* differs from *blue ball*
    where *ball* stands; and numbers of its place in the text.

    Args:
        width: of a row.
        pooled: whether the network also takes the sum of all rows (FLUX).
        tokens: rows of every text: a beginning, the words, and rows of zeros.
        vocabulary: the words that are known; None knows every word, and tells neighbours and places not.
        table: ``[1 + len(vocabulary) + tokens, width]``, the numbers; drawn when missing.
    """

    def __init__(
        self,
        width: int,
        pooled: int | None,
        tokens: int,
        vocabulary: Sequence[str] | None = None,
        table: Tensor | None = None,
    ) -> None:
        self.width, self.pooled, self.tokens = width, pooled, tokens
        self.vocabulary = None if vocabulary is None else tuple(vocabulary)
        if self.vocabulary is not None and table is None:
            names = ["<begin>", *self.vocabulary, *(f"<place {n}>" for n in range(tokens))]
            table = torch.stack([_numbers(name, width) for name in names])
        self.table = table

    def split(self, text: str) -> list[str]:
        """The words of a text that the encoder takes.

        Raises:
            BokehError: a word that is not in the vocabulary, or more words than there are rows.
        """
        if self.vocabulary is None:
            return text.split()[: self.tokens - 1]
        words = text.lower().replace(",", " ").replace(".", " ").split()
        words = [word for word in words if word not in STOP_WORDS]
        unknown = [word for word in words if word not in self.vocabulary]
        if unknown:
            raise BokehError(
                f"The small model does not know {', '.join(map(repr, dict.fromkeys(unknown)))}. It knows: "
                f"{', '.join(self.vocabulary)}."
            )
        if len(words) >= self.tokens:
            raise BokehError(
                f"The text has {len(words)} words, not counting {', '.join(sorted(STOP_WORDS))}; the small model takes "
                f"at most {self.tokens - 1}."
            )
        return words

    def encode(self, text: str) -> tuple[Tensor, Tensor | None]:
        """Rows ``[tokens, width]`` of a text, and their sum ``[pooled]`` where the network takes it.

        Raises:
            BokehError: what :meth:`split` raises.
        """
        return self.encode_words(self.split(text))

    def encode_words(self, words: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """The same of words that :meth:`split` gave."""
        if self.vocabulary is None:
            rows = torch.stack([_numbers(word, self.width) for word in ("<begin>", *words)])
        else:
            assert self.table is not None
            known = {word: number + 1 for number, word in enumerate(self.vocabulary)}
            own = self.table[[0, *(known[word] for word in words)]]
            before = torch.cat((torch.zeros(1, self.width), own[:-1])).roll(self.width // 3, 1)
            places = self.table[1 + len(known) :][: len(own)]
            rows = own + 0.7 * before + 0.5 * places
        pooled = None
        if self.pooled:
            if self.vocabulary is None:
                pooled = torch.stack([_numbers(f"{word} in all", self.pooled) for word in ("", *words)]).mean(
                    0
                )
            else:
                pooled = F.pad(rows.sum(0) / len(rows) ** 0.5, (0, self.pooled - self.width))
        return F.pad(rows, (0, 0, 0, self.tokens - len(rows))), pooled


def _numbers(name: str, count: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
