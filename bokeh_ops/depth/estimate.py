"""Depth of a photograph that has none, by any network that ``transformers`` loads for depth estimation.

A model is a folder as its hub has it: ``config.json``, ``preprocessor_config.json`` and weights. What its values mean
is known from its class and configuration. Code that comes with a model is not run. The library is imported when a
model is loaded, and not before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import BokehError
from ..pretrained import Task, as_pillow, load_pretrained, pixel_values
from .conventions import DepthKind, DepthMap, DepthUnit, Notice, same_shape, to_depth_map

EXAMPLES = {
    "depth-anything/Depth-Anything-V2-Small-hf": "any scene, no unit",
    "depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf": "rooms, in metres",
    "depth-anything/Depth-Anything-V2-Metric-Outdoor-Small-hf": "streets, in metres",
    "apple/DepthPro-hf": "any scene, in metres, with the focal length; large",
}
"""Repositories of models that are known to load, and what they are for."""

_KNOWN: dict[str, DepthKind] = {
    "depth_anything": DepthKind.DISPARITY,  # unless its configuration says metric
    "depth_pro": DepthKind.METRIC,
    "dpt": DepthKind.DISPARITY,
    "glpn": DepthKind.METRIC,
    "zoedepth": DepthKind.METRIC,
}
_HALVED = ("depth_anything", "depth_pro")  # made to be computed in half precision
_DEPTH = Task(
    "depth-estimation",
    "AutoModelForDepthEstimation",
    "MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES",
    "Depth",
    tuple(_KNOWN),
    "For Depth Anything and Depth Pro take the repositories whose names end in -hf.",
)


@dataclass(frozen=True, eq=False)
class Estimator:
    """A model with what belongs to it.

    Attributes:
        network: a ``transformers`` model for depth estimation, without gradients.
        processor: its image processor.
        name: what it is called: folder or hub name.
        kind: what its values mean: ``METRIC`` or ``DISPARITY``; None where that is not known.
        family: the library's word for its class, such as ``depth_anything``.
    """

    network: Any
    processor: Any
    name: str
    kind: DepthKind | None
    family: str

    @property
    def halves(self) -> bool:
        """Whether it may be computed in half precision."""
        return self.family in _HALVED


@dataclass(frozen=True, eq=False)
class Estimate:
    """What a model says of one picture.

    Attributes:
        values: ``[h, w]`` fp32 on the CPU, in the meaning of the model's ``kind``, of the picture's shape.
        scaled: False where a network that measures could not tell its scale, so that ``values`` have no unit.
        field_of_view: of the picture's width, in degrees, where the model estimates it.
    """

    values: Tensor
    scaled: bool = True
    field_of_view: float | None = None


def load_estimator(model: str | Path, dtype: torch.dtype = torch.float32, fetch: bool = False) -> Estimator:
    """A depth model from its folder, on the CPU.

    Args:
        model: the folder, or with ``fetch`` a name on the library's hub.
        dtype: of the weights; only models that may be computed so (``Estimator.halves``) take another than fp32.
        fetch: the library may download what is not there.

    Raises:
        BokehError: no such folder, part of a model, a model for something else, or files that cannot be read.
    """
    found = load_pretrained(model, _DEPTH, fetch)
    network, config = found.network, found.network.config
    network.to(dtype if config.model_type in _HALVED else torch.float32)
    kind = _KNOWN.get(config.model_type)
    if getattr(config, "depth_estimation_type", None) == "metric" and kind is not None:
        kind = DepthKind.METRIC
    return Estimator(network, found.processor, found.name, kind, config.model_type)


@torch.inference_mode()
def estimate_one(estimator: Estimator, picture: Image.Image) -> Estimate:
    """What the model says of one picture, where its weights are.

    The map has about as many pixels as the network put out, no more than the picture, and the picture's shape: what
    fits it to the picture can then tell how far edges are blurred, and the frames of a film take little memory.

    Args:
        picture: RGB, upright.

    Raises:
        BokehError: a picture that is too small or too narrow; a network that puts out no map, or nothing that is
            finite.
    """
    network, processor = estimator.network, estimator.processor
    weight = next(network.parameters())
    pixels = pixel_values(processor, picture, estimator.name)
    found = network(pixel_values=pixels.to(weight.device, weight.dtype))
    raw, angle = found.predicted_depth.float().cpu(), getattr(found, "field_of_view", None)
    if raw.ndim != 3 or len(raw) != 1 or 0 in raw.shape:
        raise BokehError(f"{estimator.name} put out {tuple(raw.shape)} for one picture; expected [1, h, w].")
    if not bool(torch.isfinite(raw).any()):
        raise BokehError(
            f"{estimator.name} put out nothing but NaN or infinity. Its weights are damaged, or it cannot be computed "
            f"in {weight.dtype}."
        )
    angle = None if angle is None else angle.float().cpu().flatten()
    return read_output(estimator, raw, angle, (picture.height, picture.width))


def read_output(estimator: Estimator, raw: Tensor, angle: Tensor | None, size: tuple[int, int]) -> Estimate:
    """What a network has put out for one picture, as a map of the picture's shape; gradients pass.

    Args:
        estimator: whose output it is.
        raw: ``[1, h, w]``.
        angle: ``[1]``, the field of view in degrees, where the network tells it.
        size: height and width of the picture.
    """
    aim = _size_like(size, raw.shape[1] * raw.shape[2])
    if estimator.family == "depth_pro":
        degrees = None if angle is None else float(angle.detach())
        known = degrees is not None and 1 < degrees < 179
        found = SimpleNamespace(predicted_depth=raw, field_of_view=angle if known else None)
        (made,) = estimator.processor.post_process_depth_estimation(found, target_sizes=[aim])
        return Estimate(made["predicted_depth"], known, degrees if known else None)
    found = SimpleNamespace(predicted_depth=raw)
    if estimator.family == "zoedepth":
        # The picture was padded, by so much of its own size that only the library knows how much.
        (made,) = estimator.processor.post_process_depth_estimation(
            found, source_sizes=[size], target_sizes=[aim]
        )
        return Estimate(made["predicted_depth"])
    (made,) = estimator.processor.post_process_depth_estimation(found)
    values = made["predicted_depth"]
    if not same_shape((values.shape[1], values.shape[0]), (size[1], size[0])):
        values = F.interpolate(values[None, None], size=aim, mode="bilinear", antialias=True)[0, 0]
    return Estimate(values)


def estimate(
    estimator: Estimator,
    pictures: Tensor,
    notice: Notice | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DepthMap:
    """Depth of pictures, one after another.

    Args:
        estimator: whose weights are where it is to be computed.
        pictures: ``[B, C, H, W]`` as displayed, 0..1, C = 1, 3 or 4 (alpha is not looked at).
        notice: told what the user should know.
        progress: called as ``progress(done, total)`` before each picture and at the end; may raise to stop.

    Returns:
        In dioptres from a model that measures, else relative. Several pictures have the median focal length.

    Raises:
        BokehError: no pictures, or a model whose values have no known meaning.
    """
    if pictures.ndim != 4 or 0 in pictures.shape or pictures.shape[1] not in (1, 3, 4):
        raise BokehError(
            f"Expected pictures [B, C, H, W] with 1, 3 or 4 channels; got {tuple(pictures.shape)}."
        )
    kind = known_kind(estimator)
    made: list[Estimate] = []
    for row, picture in enumerate(pictures):
        if progress:
            progress(row, len(pictures))
        made.append(estimate_one(estimator, as_pillow(picture)))
    found = to_map(estimator.name, kind, made, notice)
    if progress:
        progress(len(pictures), len(pictures))
    return found


def to_map(name: str, kind: DepthKind, made: Iterable[Estimate], notice: Notice | None = None) -> DepthMap:
    """Estimates of pictures of one size as disparity that knows its unit.

    Args:
        name: the model's.
        kind: what the values mean.
        made: at least one.
        notice: told where values had to be filled in, and where there is no unit though the model measures.
    """
    made = list(made)
    values = torch.stack([each.values for each in made])
    found = to_depth_map(values, kind, notice=notice)
    angles = [each.field_of_view for each in made if each.field_of_view is not None]
    focal = focal_from_view(float(np.median(angles)), values.shape[2]) if angles else None
    measured = kind is DepthKind.METRIC and all(each.scaled for each in made)
    if kind is DepthKind.METRIC and not measured and notice:
        notice(
            f"{name} gave no usable field of view, so its depth has no unit: near and far are known, metres are not."
        )
    return replace(found, unit=DepthUnit.DIOPTRES if measured else DepthUnit.RELATIVE, focal_pixels=focal)


def known_kind(estimator: Estimator) -> DepthKind:
    """What a model's values mean.

    Raises:
        BokehError: that is not known.
    """
    if estimator.kind is None:
        raise BokehError(
            f"{estimator.name} is a model of the kind {estimator.family!r}, of which it is not known what its values "
            f"mean. Use one of {', '.join(_KNOWN)}."
        )
    return estimator.kind


def focal_from_view(degrees: float, width: float) -> float:
    """Focal length in pixels from the angle of view over a width: ``w / (2 tan(angle / 2))``."""
    return 0.5 * width / math.tan(0.5 * math.radians(degrees))


def _size_like(size: tuple[int, int], pixels: int) -> tuple[int, int]:
    """Height and width of a picture of this shape, with no more pixels than given, and never larger than it is."""
    height, width = size
    scale = min(1.0, math.sqrt(pixels / (height * width)))
    return max(1, round(height * scale)), max(1, round(width * scale))
