"""Depth of pictures with gradients to them: what a generator has made is judged, or blurred, by where things are.

The model and what its values mean are :mod:`bokeh_ops.depth.estimate`'s. Its processor takes pictures of 8 bits and
gives no gradient, so here pictures are made ready for the network by tensors alone, in the way of the processor.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from bokeh_ops.depth.conventions import DepthKind
from bokeh_ops.depth.estimate import EXAMPLES, Estimator, read_output
from bokeh_ops.errors import BokehError

NEAREST = 0.01
"""Metres: nothing is taken to be nearer. No lens focuses there, and 1/metres has so steep a slope there already
(10^4) that a single wild pixel would outweigh the rest of a batch."""

Resize = Callable[[Tensor, tuple[int, int], str], Tensor]


def _as_pillow(pictures: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Every pixel counts; what bicubic overshoots is cut, as 8 bits do."""
    return F.interpolate(pictures, size, mode=mode, antialias=True).clamp(0, 1)


def _by_samples(pictures: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    return F.interpolate(pictures, size, mode=mode)


def _padded(pictures: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """With a mirrored rim, which the library's reading of the output takes off."""
    high, wide = (int(np.sqrt(side / 2) * 3) for side in pictures.shape[2:])
    rimmed = F.pad(pictures, (wide, wide, high, high), mode="reflect")
    return F.interpolate(rimmed, size, mode=mode, align_corners=True)


_RESIZE: dict[str, Resize] = {
    "depth_anything": _as_pillow,
    "depth_pro": _by_samples,
    "glpn": _as_pillow,
    "zoedepth": _padded,
}
"""How the processors of families that measure change a picture's size."""
_MODES = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}
_ROUNDING = 2 / 255
"""What a processor's own rounding to 8 bits may change a pixel by, after a change of size too."""


class FrozenDepth(nn.Module):
    """Pictures ``[R, 3, H, W]``, 0..1, to disparity ``[R, 1, H, W]`` in dioptres, with gradients to the pictures.

    As :func:`~bokeh_ops.depth.estimate.estimate_one` finds it, but for the rounding to 8 bits. Disparity and not metres
    is brought to the pictures' size: planes are linear in it, and blur is. What is outside of 0..1 is cut, and has no
    gradient there. Weights have gradients where the estimator's ask for them, which those that are loaded do not.

    Args:
        estimator: a model that measures metres, as :func:`~bokeh_ops.depth.estimate.load_estimator` gives it.

    Raises:
        BokehError: a model that does not measure, or pictures are made ready for it in a way that is not known here;
            when called: a picture too small for it, or one whose scale the network could not tell.
    """

    def __init__(self, estimator: Estimator) -> None:
        super().__init__()
        self.estimator, self.network = estimator, estimator.network
        self._sizes: dict[tuple[int, int], tuple[int, int]] = {}
        _check_measures(estimator)
        self._check_ready()

    def forward(self, pictures: Tensor) -> Tensor:
        weight = next(self.network.parameters())
        found = self.network(pixel_values=self._ready(pictures).to(weight.dtype))
        angles = getattr(found, "field_of_view", None)
        size = (pictures.shape[2], pictures.shape[3])
        rows: list[Tensor] = []
        for row, raw in enumerate(found.predicted_depth.to(pictures.dtype)):
            angle = None if angles is None else angles.to(pictures.dtype).flatten()[row : row + 1]
            made = read_output(self.estimator, raw[None], angle, size)
            if not made.scaled:
                raise BokehError(
                    f"{self.estimator.name} gave no usable field of view for a picture, so its depth is not in metres; "
                    "expected an angle from 1 to 179 degrees. Use a model that measures without one."
                )
            rows.append(F.interpolate(1 / made.values.clamp(min=NEAREST)[None, None], size, mode="bilinear"))
        return torch.cat(rows)

    def _ready(self, pictures: Tensor) -> Tensor:
        """What the processor would give the network."""
        processor = self.estimator.processor
        height, width = pictures.shape[2:]
        if (height, width) not in self._sizes:
            seen = self._processed(np.zeros((height, width, 3), np.uint8)).shape
            self._sizes[height, width] = seen[2], seen[3]
        ready = _RESIZE[self.estimator.family](
            pictures.clamp(0, 1), self._sizes[height, width], _MODES[processor.resample]
        )
        if not getattr(processor, "do_normalize", False):
            return ready
        mean, std = (
            ready.new_tensor(each)[:, None, None] for each in (processor.image_mean, processor.image_std)
        )
        return (ready - mean) / std

    def _processed(self, picture: np.ndarray) -> Tensor:
        try:
            return self.estimator.processor(images=Image.fromarray(picture), return_tensors="pt").pixel_values
        except (ValueError, RuntimeError) as error:  # a side that would have no pixels left
            raise BokehError(
                f"{self.estimator.name} cannot look at a picture of {picture.shape[1]} x {picture.shape[0]} pixels "
                f"({error}). Give larger ones."
            ) from error

    def _check_ready(self) -> None:
        """Processors differ between models and between versions of the library; this one is asked."""
        estimator = self.estimator
        # So grey that bicubic overshoots nowhere: 8 bits cut it after each direction, here both are one step.
        picture = np.random.default_rng(0).integers(64, 192, (96, 128, 3), np.uint8)
        known = estimator.family in _RESIZE and getattr(estimator.processor, "resample", None) in _MODES
        if known:
            theirs = self._processed(picture)
            ours = self._ready(torch.from_numpy(picture).movedim(-1, 0)[None].float() / 255)
            steps = _ROUNDING / min(getattr(estimator.processor, "image_std", None) or [1.0])
            known = ours.shape == theirs.shape and float((ours - theirs).abs().max()) < steps
        if not known:
            raise BokehError(
                f"{estimator.name} makes pictures ready for its network ({type(estimator.processor).__name__}) in a "
                f"way that is not known here, so there is no gradient through it. Use one of {_measuring()}."
            )


def _check_measures(estimator: Estimator) -> None:
    scaled = getattr(estimator.network.config, "use_fov_model", True)  # Depth Pro without it knows no scale
    if estimator.kind is DepthKind.METRIC and scaled:
        return
    means = "values of unknown meaning" if estimator.kind is None else estimator.kind.value
    means = means if scaled else "metres without their scale, as it has no network for the field of view"
    raise BokehError(
        f"{estimator.name}, of the kind {estimator.family!r}, gives {means}. Training through depth needs metres, to "
        f"know how large blur is. Use a model that measures them, such as {_measuring()}."
    )


def _measuring() -> str:
    return ", ".join(name for name, what in EXAMPLES.items() if "in metres" in what)
