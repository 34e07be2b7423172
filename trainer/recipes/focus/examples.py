"""Pictures to learn from: what is told of each, and where its main thing is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bokeh_ops.depth.focus import focus_by_weight
from bokeh_ops.depth.focus_transformer import UNKNOWN, normalised
from bokeh_ops.errors import BokehError
from trainer.data import Dataset
from trainer.recipes.one_step.scenes import estimated
from trainer.seeded import generator


@dataclass(frozen=True)
class Example:
    """One picture, or a batch of them: then each with one dimension more.

    Attributes:
        picture: ``[3, H, W]``, 0..1.
        near: ``[1, H, W]``, its disparity, perhaps made worse, from 0 (farthest) to 1 (nearest).
        told: ``[1, H, W]``, what the network is told of it: the same, or nothing.
        mask: ``[H, W]``, 0..1.
        focus: ``[]``, the true disparity of the mask (eq. 4), in the units of ``near``.
        known: ``[]``, 1 where the network is told the depth, else 0.
    """

    picture: Tensor
    near: Tensor
    told: Tensor
    mask: Tensor
    focus: Tensor
    known: Tensor


def example(dataset: Dataset, index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Picture ``[3, H, W]``, 0..1, disparity ``[1, H, W]``, dioptres, and mask ``[H, W]``, 0..1.

    Raises:
        BokehError: nothing is in the mask.
    """
    sample = dataset.sample(index)
    mask = torch.from_numpy(sample.mask)
    if not bool((mask > 0.5).any()):
        raise BokehError(
            f"The photograph {sample.key!r} has no value above 0.5 in its mask, so there is nothing to focus on. "
            "Prepare the data set again with the filter on the foreground's area."
        )
    picture = torch.from_numpy(sample.image).movedim(-1, 0).float() / 255
    return picture, torch.from_numpy(sample.disparity)[None], mask


def told(picture: Tensor, disparity: Tensor, mask: Tensor, worse: Tensor, known: bool = True) -> Example:
    """What the network is told where depth came out ``worse`` than it is.

    The focus to be found is that of the true disparity, in the units of the map that is told: so the network learns to
    look where a wrong map is right.
    """
    low, high = worse.min(), worse.max()
    near = normalised(worse[None])[0]
    focus = focus_by_weight(disparity[None], mask[None])[0]
    focus = (focus - low) / (high - low) if bool(high > low) else focus.new_tensor(UNKNOWN)
    shown = near if known else torch.full_like(near, UNKNOWN)
    return Example(picture, near, shown, mask, focus, torch.tensor(float(known)))


def drawn(
    dataset: Dataset, among: int, worse_depth: float, no_depth: float, seed: int, step: int, slot: int
) -> Example:
    """The example number ``slot`` of a step, of the first ``among`` pictures; mirrored at random."""
    chance = generator(seed, "focus", step, slot)
    index, mirrored, known = int(chance.integers(among)), chance.random() < 0.5, chance.random() >= no_depth
    found = example(dataset, index)
    picture, disparity, mask = (each.flip(-1) if mirrored else each for each in found)
    worse = estimated(disparity, worse_depth, seed, step, slot)
    return told(picture, disparity, mask, worse, known)


def stacked(examples: list[Example], device: torch.device) -> Example:
    """A batch of examples."""
    names = Example.__dataclass_fields__
    return Example(
        **{name: torch.stack([getattr(each, name) for each in examples]).to(device) for name in names}
    )
