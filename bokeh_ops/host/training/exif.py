"""Aperture and focal length as a condition: an embedding of both that is added to the timestep's.

After Shrivastava et al., "Fine-grained Defocus Blur Control" (supp. F.3), where it is what a few-step generator without
a lens is told of the camera: sinusoidal embeddings of both numbers side by side, through two projections, on the
timestep embedding of the diffusion model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...described import Described
from ...errors import BokehError
from ...render.checkpoint import fill
from ..architectures import recognise

FILE = Described("bokeh_exif", 1, "width", "an EXIF embedding", "`python -m trainer distil`")
"""How a file is written."""
LONGEST = 2.0
"""Metres that a focal length is below: longer than any photographic lens, and shorter than any in millimetres."""
_WIDEST = 16384

# The paper does not say how the numbers are scaled. Here both are in stops, 2 log2 of the number, as lenses are marked:
# f/1.8 and f/2 are a third of a stop apart, f/16 and f/22 one, 35 mm and 50 mm one. Of the plain numbers, sinusoids
# that tell 1.8 from 2 would run through many turns between 16 and 22. How far two embeddings are apart is a matter of
# the stops between them alone: a third of a stop shows in the shortest waves; and half of the longest one is more than
# there is between all lenses (f/0.5 to f/64 14 stops, 1 mm to 2 m 22), so that no two of them look alike.
_WAVES, _SHORTEST_WAVE, _LONGEST_WAVE = 16, 1.0, 64.0


class ExifEmbedding(nn.Module):
    """F-number and focal length to what is added to a timestep embedding. A fresh one adds nothing.

    Args:
        width: of the timestep embedding (:meth:`.Architecture.timestep_embedding`).

    Raises:
        BokehError: no such width.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        if not 1 <= width <= _WIDEST:
            raise BokehError(
                f"The width of an EXIF embedding is {width}; expected 1 to {_WIDEST}. Give that of the model's "
                "timestep embedding."
            )
        self.width = width
        self.first, self.last = nn.Linear(4 * _WAVES, width), nn.Linear(width, width)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, f_number: Tensor, focal_length: Tensor) -> Tensor:
        """Differentiable in the weights.

        Args:
            f_number: ``[R]``, above 0.
            focal_length: ``[R]``, metres, above 0 and below :data:`LONGEST`.

        Returns:
            ``[R, width]``, in the type and on the device of the weights.

        Raises:
            BokehError: other shapes or numbers.
        """
        f_number, focal_length = _checked(f_number, focal_length)
        waves = torch.cat((_sinusoids(f_number), _sinusoids(focal_length)), -1)
        return self.last(nn.functional.silu(self.first(waves.to(self.first.weight))))

    def save(self, path: Path) -> None:
        """Write it to a safetensors file that :func:`read_exif` reads, in single precision."""
        FILE.write(path, self.state_dict(), self.width, torch.float32)


@contextmanager
def told(
    patcher: Any,
    embedding: ExifEmbedding,
    f_numbers: Sequence[float] | Tensor,
    focal_lengths: Sequence[float] | Tensor,
) -> Iterator[None]:
    """While this is open, every call of a MODEL's network is told how each row is photographed.

    Around one call, or around all of the host's sampling of ``R`` pictures: the host puts the rows of positive and
    negative prompt one after the other, each in the order of the pictures, and both are told the same, as they are of
    the timestep. Gradients reach the embedding, also where they are computed once this is closed.

    Args:
        patcher: the host's MODEL whose network it is; its clones are told as well.
        embedding: on any device; computed anew in each call.
        f_numbers: ``[R]``, above 0.
        focal_lengths: ``[R]``, metres, above 0 and below :data:`LONGEST`.

    Raises:
        BokehError: other numbers, an embedding of another width, a model of no known architecture; and, out of a call
            of the network, rows that are no whole multiple of ``R``.
    """
    model, network = recognise(patcher), patcher.model.diffusion_model
    module, width = model.architecture.timestep_embedding(network)
    if embedding.width != width:
        raise BokehError(
            f"The EXIF embedding is {embedding.width} wide, but the timestep embedding of {model.title} is {width} "
            "wide. It was trained on another model; connect that one, or train another embedding."
        )
    f_number, focal_length = _checked(f_numbers, focal_lengths)

    def add(_module: nn.Module, _args: Any, out: Tensor) -> Tensor:
        branches, rest = divmod(len(out), len(f_number))
        if rest:
            raise BokehError(
                f"The model is called with {len(out)} rows, but f-numbers and focal lengths of {len(f_number)} "
                "pictures are told; expected those of each row of a branch. Give one per picture of the batch."
            )
        return out + embedding(f_number, focal_length).to(out).repeat(branches, 1)

    handle = module.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def read_exif(path: str | Path) -> ExifEmbedding:
    """An embedding from its file: fp32 on the CPU, without gradients.

    Args:
        path: written by :meth:`ExifEmbedding.save`.

    Raises:
        BokehError: no such file, a damaged one, another kind of file, one of a newer version, or weights of other
            shapes than it says.
    """
    path = Path(path)
    width, weights = FILE.read(path)
    if not isinstance(width, int):
        raise BokehError(f"{path} says the width {width!r}; expected a whole number. The file is damaged.")
    embedding = ExifEmbedding(width)
    fill(embedding, weights, path)
    return embedding.eval().requires_grad_(False)


def _checked(
    f_numbers: Sequence[float] | Tensor, focal_lengths: Sequence[float] | Tensor
) -> tuple[Tensor, Tensor]:
    """Both as ``[R]`` in single precision."""
    f_number, focal_length = (
        torch.as_tensor(numbers, dtype=torch.float32) for numbers in (f_numbers, focal_lengths)
    )
    if f_number.ndim != 1 or f_number.shape != focal_length.shape or not len(f_number):
        raise BokehError(
            f"The f-numbers are {tuple(f_number.shape)} and the focal lengths {tuple(focal_length.shape)}; expected "
            "[R] of both. Give one of each per picture."
        )
    if not bool(((f_number > 0) & (f_number < math.inf)).all()):  # so written, NaN is none either
        raise BokehError(
            f"The f-numbers are {_some(f_number)}; expected finite ones above 0. Give 2.8 for f/2.8."
        )
    if not bool(((focal_length > 0) & (focal_length < LONGEST)).all()):
        raise BokehError(
            f"The focal lengths are {_some(focal_length)} m; expected metres, above 0 and below {LONGEST:g}. Give 0.05 "
            "for 50 mm."
        )
    return f_number, focal_length


def _some(numbers: Tensor) -> str:
    return ", ".join(f"{number:g}" for number in numbers[:8].tolist()) + (" ..." if len(numbers) > 8 else "")


def _sinusoids(numbers: Tensor) -> Tensor:
    """Sines and cosines ``[R, 2 waves]`` of numbers ``[R]`` in stops, in waves of lengths in even ratios."""
    ratio = math.log2(_LONGEST_WAVE / _SHORTEST_WAVE)
    lengths = _SHORTEST_WAVE * torch.logspace(0, ratio, _WAVES, base=2.0, device=numbers.device)
    phase = 2 * math.pi * (2 * torch.log2(numbers))[:, None] / lengths
    return torch.cat((phase.sin(), phase.cos()), -1)
