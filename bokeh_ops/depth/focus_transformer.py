"""What a picture is focused on: a saliency transformer on picture and depth (the focus distance transformer).

After Shrivastava et al., "Fine-grained Defocus Blur Control" (sec. 3.2), with the plan of the Visual Saliency
Transformer (Liu et al., ICCV 2021) that it builds on: tokens of picture and depth see one another in an encoder; a
decoder has a learnt saliency token beside the patch tokens, and where these agree with it is the saliency map. The map
gives the focus (eq. 4, :func:`bokeh_ops.depth.focus.focus_by_weight`), and the saliency token after the decoder's first
layer the scale of the focus distance (eq. 5). Small, and trained by ``python -m trainer focus``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..described import Described
from ..errors import BokehError
from ..render.checkpoint import fill
from .conventions import robust_range

SHIPPED = Path(__file__).with_suffix(".safetensors")
"""Weights that come with the project, trained on pictures of the small world (``docs/world.md``)."""
FILE = Described("bokeh_focus_transformer", 1, "sizes", "a focus transformer", "`python -m trainer focus`")
"""How a file is written."""
UNKNOWN = 0.5
"""What is told everywhere where no depth is known."""
_FINE = 8  # channels of what a pixel is compared by
_MLP = 2  # width of a layer's hidden part, over its width


@dataclass(frozen=True)
class Sizes:
    """How large a network is.

    Attributes:
        side: pixels, both ways, that any picture is resized to.
        patch: pixels of a token, both ways; even, and a divisor of ``side``.
        width: of a token.
        heads: of attention; a divisor of ``width``.
        layers: of the encoder.

    Raises:
        BokehError: sizes that do not go together.
    """

    side: int = 64
    patch: int = 8
    width: int = 64
    heads: int = 4
    layers: int = 3

    def __post_init__(self) -> None:
        values = asdict(self)
        whole = all(isinstance(value, int) and 1 <= value <= 4096 for value in values.values())
        if not whole or self.patch % 2 or self.side % self.patch or self.width % self.heads:
            raise BokehError(
                f"The sizes of a focus transformer are {values}; expected whole numbers of 1 to 4096, of which patch "
                "is even and divides side, and heads divides width."
            )


class MainThing(NamedTuple):
    """What the network says of a batch of pictures."""

    logits: Tensor
    """``[B, H, W]``, of the saliency, at the pictures' resolution."""
    scale: Tensor
    """``[B]``, > 0: the scale of the focus distance (eq. 5)."""

    @property
    def saliency(self) -> Tensor:
        """``[B, H, W]``, 0..1: the weights of eq. 4."""
        return self.logits.sigmoid()


class _Layer(nn.Module):
    """Self-attention and a perceptron, each after a norm and beside a way around it: ``[B, N, width]`` to the same."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width
        self.heads = sizes.heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, _MLP * width), nn.GELU(), nn.Linear(_MLP * width, width))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.before(x)).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        x = x + self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return x + self.mlp(self.between(x))


class FocusTransformer(nn.Module):
    """Pictures and their depth to what they are focused on. A fresh one says the scale 1.

    Args:
        sizes: of the network.
    """

    def __init__(self, sizes: Sizes = Sizes()) -> None:
        super().__init__()
        self.sizes = sizes
        side, patch, width = sizes.side, sizes.patch, sizes.width
        tokens = (side // patch) ** 2
        self.picture, self.depth = (nn.Conv2d(channels, width, patch, patch) for channels in (3, 1))
        # Two of each place, as picture and depth are told apart by them.
        self.places = nn.Parameter(0.02 * torch.randn(2 * tokens, width))
        self.encoder = nn.Sequential(*(_Layer(sizes) for _ in range(sizes.layers)))
        self.fuse = nn.Linear(2 * width, width)
        self.token = nn.Parameter(0.02 * torch.randn(width))
        self.first, self.second = _Layer(sizes), _Layer(sizes)
        self.finer = nn.Linear(width, 4 * width)
        self.again = nn.Conv2d(4, width, patch // 2, patch // 2)
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, _FINE * (patch // 2) ** 2)
        self.detail = nn.Sequential(
            nn.Conv2d(4, _FINE, 3, padding=1), nn.GELU(), nn.Conv2d(_FINE, _FINE, 3, padding=1)
        )
        self.compared = nn.Linear(width, _FINE + 1)
        self.scale_norm, self.scale = nn.LayerNorm(width), nn.Linear(width, 1)
        nn.init.zeros_(self.scale.weight)
        nn.init.zeros_(self.scale.bias)

    def forward(self, pictures: Tensor, depth: Tensor | None = None) -> MainThing:
        """Find the main thing. Differentiable in pictures, depth and weights.

        Args:
            pictures: ``[B, 3, H, W]`` as displayed, 0..1, of any size and aspect ratio.
            depth: disparity ``[B or 1, 1, h, w]``, each map from 0 (farthest) to 1 (nearest)
                (:func:`normalised`), of any size; None where it is not known.

        Raises:
            BokehError: other shapes.
        """
        if pictures.ndim != 4 or pictures.shape[1] != 3 or 0 in pictures.shape:
            raise BokehError(f"Expected pictures [B, 3, H, W]; got {tuple(pictures.shape)}.")
        batch, _, height, width = pictures.shape
        if depth is None:
            depth = pictures.new_full((1, 1, 1, 1), UNKNOWN)
        if depth.ndim != 4 or depth.shape[0] not in (1, batch) or depth.shape[1] != 1 or 0 in depth.shape:
            raise BokehError(
                f"Expected one depth map [1, 1, h, w], or one for each of {batch} pictures; got {tuple(depth.shape)}."
            )
        shown = [self._resized(each) * 2 - 1 for each in (pictures, depth.expand(batch, -1, -1, -1))]
        both = torch.cat(shown, 1)
        tokens = [
            embed(each).flatten(2).mT for embed, each in zip((self.picture, self.depth), shown, strict=True)
        ]
        x = self.encoder(torch.cat(tokens, 1) + self.places)
        x = self.fuse(torch.cat(x.chunk(2, 1), -1))
        x = self.first(torch.cat((self.token.expand(batch, 1, -1), x), 1))
        token, x = x[:, :1], x[:, 1:]
        scale = self.scale(self.scale_norm(token)).exp()[:, 0, 0]
        # Twice as many tokens each way, as the reverse tokens-to-token of the Visual Saliency Transformer.
        x = (self._unfolded(self.finer(x), 2) + self.again(both)).flatten(2).mT
        x = self.norm(self.second(torch.cat((token, x), 1)))
        features = self._unfolded(self.pixels(x[:, 1:]), self.sizes.patch // 2) + self.detail(both)
        wanted = self.compared(x[:, 0])
        logits = torch.einsum("bchw,bc->bhw", features, wanted[:, 1:]) + wanted[:, :1, None]
        if logits.shape[1:] != (height, width):
            logits = F.interpolate(logits[:, None], (height, width), mode="bilinear")[:, 0]
        return MainThing(logits, scale)

    def find(self, pictures: Tensor, disparity: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As :class:`bokeh_ops.depth.main_thing.Finder` has it."""
        found = self(
            pictures.to(self.token), None if disparity is None else normalised(disparity.to(self.token))
        )
        return found.saliency, found.scale

    @property
    def working_memory(self) -> int:
        """As :class:`bokeh_ops.depth.main_thing.Finder` has it."""
        return 64 * 2**20

    def _resized(self, maps: Tensor) -> Tensor:
        size = (self.sizes.side, self.sizes.side)
        if maps.shape[2:] == size:
            return maps
        return F.interpolate(maps, size, mode="bilinear", antialias=True)

    @staticmethod
    def _unfolded(tokens: Tensor, factor: int) -> Tensor:
        """Tokens ``[B, N, c factor^2]`` of a square as a map ``[B, c, n factor, n factor]``."""
        side = round(tokens.shape[1] ** 0.5)
        return F.pixel_shuffle(tokens.mT.unflatten(2, (side, side)), factor)


def normalised(disparity: Tensor) -> Tensor:
    """Disparity as the network is told it: each map from 0, its farthest, to 1, its nearest.

    Args:
        disparity: ``[B, 1, h, w]``, finite, larger is nearer, in any unit.

    Returns:
        The same shape. A few values far outside what the others span do not count, and are cut off. A map that is flat
        says nothing, and is :data:`UNKNOWN` everywhere.
    """
    found = []
    for plane in disparity:
        low, high = robust_range(plane)
        flat = bool(low == high)
        found.append(torch.full_like(plane, UNKNOWN) if flat else ((plane - low) / (high - low)).clamp(0, 1))
    return torch.stack(found)


def write_focus_transformer(
    path: Path, network: FocusTransformer, dtype: torch.dtype = torch.float16
) -> None:
    """Write a network to a safetensors file that :func:`read_focus_transformer` reads.

    Args:
        path: of the file.
        network: to write.
        dtype: that the weights are kept in.
    """
    FILE.write(path, network.state_dict(), asdict(network.sizes), dtype)


def read_focus_transformer(path: str | Path = SHIPPED) -> FocusTransformer:
    """A network from its file: fp32 on the CPU, without gradients.

    Args:
        path: written by :func:`write_focus_transformer`.

    Raises:
        BokehError: no such file, a damaged one, another kind of file, one of a newer version, or weights of other
            shapes than it says.
    """
    path = Path(path)
    said, weights = FILE.read(path)
    network = FocusTransformer(_sizes(said, path))
    fill(network, weights, path)
    return network.eval().requires_grad_(False)


def _sizes(said: Any, path: Path) -> Sizes:
    """What the metadata of a file says."""
    known = {field.name for field in fields(Sizes)}
    if not isinstance(said, dict) or set(said) != known:
        raise BokehError(f"{path} says the sizes {said!r}; expected values of {', '.join(sorted(known))}.")
    return Sizes(**said)
