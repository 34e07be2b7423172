"""Which K a set has, and how it is rendered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bokeh_ops.depth.focus import focus_in_mask
from bokeh_ops.errors import BokehError
from bokeh_ops.render import DEFAULT_MODEL, Lens, render
from trainer.dataset.sample import Sample


@dataclass(frozen=True)
class Levels:
    """How the K of a set are drawn.

    Attributes:
        count: pictures of a set, at least 2.
        least, most: range of K, pixels of blur radius per dioptre on a picture 512 wide.
        sharp: share of the sets whose smallest K is 0: the photograph itself.
    """

    count: int = 4
    least: float = 0.0
    most: float = 30.0
    sharp: float = 0.1


def draw_levels(source: np.random.Generator, levels: Levels) -> list[float]:
    """K of one set, rising. One in each of ``count`` equal parts of the range, anywhere in it.

    So every set holds weak and strong blur, while K over all sets is uniform and continuous.

    Args:
        source: what to draw from; always draws ``count + 1`` numbers.
        levels: range and count.
    """
    places = (np.arange(levels.count) + source.random(levels.count)) / levels.count
    k = [float(levels.least + (levels.most - levels.least) * place) for place in places]
    if source.random() < levels.sharp:
        k[0] = 0.0
    return k


def focus_of(sample: Sample) -> float:
    """The disparity in focus, dioptres: ``1 / S1`` as prepared, else the median of the foreground.

    Raises:
        BokehError: neither is known.
    """
    distance = sample.info.get("s1_m")
    if isinstance(distance, (int, float)) and not isinstance(distance, bool) and distance > 0:
        return 0.0 if math.isinf(distance) else 1.0 / float(distance)
    try:
        disparity, mask = torch.from_numpy(sample.disparity), torch.from_numpy(sample.mask)
        return float(focus_in_mask(disparity[None, None], mask[None]))
    except BokehError as error:
        raise BokehError(
            f"The photograph {sample.key!r} has no focus distance (s1_m) and no foreground, so there is nothing to "
            "focus on. Prepare the data set again with the filter on the foreground's area."
        ) from error


def render_set(
    sample: Sample, ks: Sequence[float], lens: str = DEFAULT_MODEL, device: torch.device | str = "cpu"
) -> np.ndarray:
    """One scene at several K.

    Args:
        sample: a photograph that is all in focus.
        ks: K, pixels of blur radius per dioptre at the photograph's own resolution (as its own ``k`` would be);
            0 gives the photograph itself.
        lens: the lens model, a key of :data:`bokeh_ops.render.MODELS`.
        device: where to render.

    Returns:
        uint8 ``[len(ks), H, W, 3]``, sRGB: 8 bits, as photographs have.

    Raises:
        BokehError: K below 0, an unknown lens model, or a photograph without focus.
    """
    image, disparity = (torch.tensor(each).to(device) for each in (sample.image, sample.disparity))
    return render_levels(image, disparity, focus_of(sample), ks, lens).cpu().numpy()


def render_levels(
    image: Tensor, disparity: Tensor, focus: float, ks: Sequence[float], lens: str = DEFAULT_MODEL
) -> Tensor:
    """:func:`render_set` of tensors, on the device that they are on: in training the one that encodes the pictures.

    Args:
        image: uint8 ``[H, W, 3]``, sRGB.
        disparity: ``[H, W]``, dioptres.
        focus: the disparity in focus, dioptres (:func:`focus_of`).
        ks, lens: as there.

    Returns:
        uint8 ``[len(ks), H, W, 3]``, on the device of ``image``.
    """
    picture, depth = image.movedim(-1, 0)[None].float() / 255, disparity[None, None].float()

    made = image.new_empty((len(ks), *image.shape))
    for place, k in enumerate(ks):
        if k == 0:
            made[place] = image
            continue
        shown = render(picture, depth, Lens(k=k, focus_disparity=focus), lens).image[0]
        made[place] = (shown.clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1)
    return made
