"""Scenes to learn from, and what depth estimators do to depth."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bokeh_ops.errors import BokehError
from trainer.data import Dataset
from trainer.data.pairs.render import focus_of
from trainer.seeded import generator

WAYS = ("eroded", "dilated", "blurred", "shifted")


@dataclass(frozen=True)
class Example:
    """One picture to render.

    Attributes:
        key: of the target in the data set.
        sharp, truth: ``[3, H, W]``, 0..1, sRGB: all in focus, and through the lens.
        disparity: ``[1, H, W]``, dioptres.
        focus: the disparity in focus.
        k: pixels of blur radius per dioptre at this resolution.
    """

    key: str
    sharp: Tensor
    truth: Tensor
    disparity: Tensor
    focus: float
    k: float


class Scenes:
    """The scenes of a data set in which each was rendered at several K, the first all in focus.

    Args:
        dataset: made by ``python -m trainer synthesize`` or ``pairs``.

    Raises:
        BokehError: no scene has a picture that is all in focus and another.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        sharp = dataset.facts()[1]
        groups: dict[str, list[int]] = defaultdict(list)
        for index in range(len(dataset)):
            groups[dataset.key(index).rpartition("-")[0]].append(index)
        self.scenes = [
            (next(index for index in group if sharp[index]), [index for index in group if not sharp[index]])
            for group in groups.values()
            if any(sharp[index] for index in group) and not all(sharp[index] for index in group)
        ]
        if not self.scenes:
            raise BokehError(
                f"{dataset.folder} has no scene with a picture that is all in focus and one that is not. Make one with "
                "`python -m trainer synthesize`."
            )

    def __len__(self) -> int:
        return len(self.scenes)

    def example(self, number: int, level: int) -> Example:
        """A scene at one of its K; both count round."""
        first, others = self.scenes[number % len(self.scenes)]
        sharp, target = self.dataset.sample(first), self.dataset.sample(others[level % len(others)])
        return Example(
            target.key,
            _picture(sharp.image),
            _picture(target.image),
            torch.from_numpy(sharp.disparity)[None],
            focus_of(target),
            float(target.k or 0.0),
        )

    def drawn(self, seed: int, step: int, count: int, first: int, among: int) -> list[Example]:
        """The examples number ``first`` to ``first + count`` of a step, of the first ``among`` scenes."""
        found = []
        for slot in range(first, first + count):
            chance = generator(seed, "scene", step, slot)
            found.append(self.example(int(chance.integers(among)), int(chance.integers(1 << 30))))
        return found


def _picture(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).movedim(-1, 0).float() / 255


def worse(disparity: Tensor, way: str, pixels: float, angle: float = 0.0) -> Tensor:
    """A disparity map with the faults of estimated ones.

    Args:
        disparity: ``[..., H, W]``.
        way: of :data:`WAYS`: near things grown thinner or thicker, all edges smooth, the map beside the picture.
        pixels: how far.
        angle: of a shift, radians.
    """
    if not pixels:
        return disparity
    planes = disparity.reshape(-1, 1, *disparity.shape[-2:])
    reach = round(pixels)
    if way in ("eroded", "dilated"):
        sign = 1.0 if way == "dilated" else -1.0
        planes = sign * F.max_pool2d(sign * planes, 2 * reach + 1, 1, reach)
    elif way == "blurred":
        half = max(1, round(2.5 * pixels))
        at = torch.arange(-half, half + 1, dtype=planes.dtype, device=planes.device)
        kernel = torch.softmax(-0.5 * (at / pixels).square(), 0)
        planes = F.pad(planes, [half] * 4, mode="replicate")
        planes = F.conv2d(F.conv2d(planes, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    elif way == "shifted":
        dx, dy = round(pixels * np.cos(angle)), round(pixels * np.sin(angle))
        side = max(abs(dx), abs(dy))
        padded = F.pad(planes, [side] * 4, mode="replicate")
        height, width = planes.shape[-2:]
        planes = padded[..., side + dy : side + dy + height, side + dx : side + dx + width]
    else:
        raise BokehError(f"There is no way {way!r} to make depth worse; there are {', '.join(WAYS)}.")
    return planes.reshape(disparity.shape)


def estimated(disparity: Tensor, most: float, seed: int, step: int, slot: int) -> Tensor:
    """A map made worse by chance: by one of :data:`WAYS`, by up to ``most`` of the picture's width; one in five not."""
    chance = generator(seed, "depth", step, slot)
    way, amount, angle, spared = chance.integers(len(WAYS)), chance.random(), chance.random(), chance.random()
    if spared < 0.2:
        return disparity
    return worse(
        disparity, WAYS[int(way)], float(amount) * most * disparity.shape[-1], 2 * np.pi * float(angle)
    )
