"""Everything that is measured of one sweep, and the summary over scenes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.measure.judge import Judge, UnreadableAnswer
from trainer.measure.metrics import (
    Interval,
    Lpips,
    blur_monotonicity,
    bootstrap,
    both_sides,
    content_consistency,
    drift,
    energy,
    focus_drift,
    laplacian_variance,
    lvcorr,
    mean_lab,
    pearson,
    rank_correlation,
)
from trainer.measure.segment import Segmenter
from trainer.measure.sweeps import Sweep

COLUMNS = {
    "scene": "",
    "pictures": "g",
    "lvcorr": ".3f",
    "lvcorr_diff": ".3f",
    "lv_rank": ".3f",
    "monotonic": ".3f",
    "monotonic_ref": ".3f",
    "monotonic_even": ".3f",
    "lpips": ".4f",
    "lpips_ref": ".4f",
    "lpips_next": ".4f",
    "content": ".4f",
    "drift_L": ".2f",
    "drift_ab": ".2f",
    "focus_dE": ".2f",
    "focus_dE_ref": ".2f",
    "sharper": ".3f",
    "blurrier": ".3f",
    "ordered": ".3f",
    "judge_corr": ".3f",
    "judge_same": ".1f",
}
"""Figures of a scene and the format of each."""

LEAST_SIDE = 32
"""Pictures with a shorter side, such as a toy's, have no LPIPS: its network would have nothing left of them."""

FIGURES = tuple(name for name in COLUMNS if name not in ("scene", "pictures"))


def measure_sweep(
    sweep: Sweep,
    reference: Sweep | None = None,
    lpips: Lpips | None = None,
    segmenter: Segmenter | None = None,
    judge: Judge | None = None,
    content_limit: float | None = None,
    judge_most: float = 30,
) -> dict[str, Any]:
    """Measure one scene.

    Args:
        sweep: what is measured.
        reference: the same scene as it should be, at the same values.
        lpips, segmenter, judge: what is not there is left out.
        content_limit: only pictures blurred no more than at this value count for ``content`` and ``lpips_next``: K
            up to it, or f-numbers from it on (4 in Fine-grained Defocus).
        judge_most: the upper end of the judge's scale.

    Returns:
        The columns of :data:`COLUMNS`, ``None`` where something is missing, and the lists they were made of.

    Raises:
        BokehError: pictures that cannot be read or compared, or a judge that cannot be reached.
    """
    pictures = sweep.load()
    blur = [value if sweep.kind == "k" else -value for value in sweep.values]
    trend = [laplacian_variance(picture) for picture in pictures]
    energies = [energy(picture) for picture in pictures]
    means = [mean_lab(picture) for picture in pictures]
    brightness = [float(picture.mean()) for picture in pictures]
    # A picture twice as bright has four times the energy, so this one cannot be raised by brightness alone.
    even = [value / max(mean, 1e-6) ** 2 for value, mean in zip(energies, brightness, strict=True)]
    moved = drift(means)
    found: dict[str, Any] = {
        "scene": sweep.name,
        "pictures": len(pictures),
        "kind": sweep.kind,
        "values": list(sweep.values),
        "laplacian_variance": trend,
        "energy": energies,
        "brightness": brightness,
        "lab": [list(mean) for mean in means],
        "lv_rank": rank_correlation(blur, [-value for value in trend]),
        "monotonic": blur_monotonicity(energies[::-1]),
        "monotonic_even": blur_monotonicity(even[::-1]),
        "drift_L": moved.lightness,
        "drift_ab": moved.colour,
    }
    kept = [
        i
        for i, value in enumerate(blur)
        if content_limit is None or value <= (content_limit if sweep.kind == "k" else -content_limit)
    ]
    if min(pictures[0].shape[1:]) < LEAST_SIDE:
        lpips = None
    if lpips is not None:
        found.update(_distances(pictures, kept, lpips))
    if segmenter is not None and len(kept) > 1:
        found["content"] = content_consistency([segmenter(pictures[i]) for i in kept])
    focus = sweep.load_focus()
    if focus is not None:
        found["focus_dE"] = _focus_drift(sweep, pictures, focus)
    if sweep.pivot is not None:
        value, _ = sweep.pivot
        own = (value if sweep.kind == "k" else -value, laplacian_variance(sweep.load_pivot()))
        found["sharper"], found["blurrier"] = both_sides(blur, trend, own)
        known = [side for side in (found["sharper"], found["blurrier"]) if not math.isnan(side)]
        found["ordered"] = min(known, default=math.nan)
    if reference is not None:
        references = reference.load()
        theirs = reference.load_focus() if reference.focus is not None else focus
        if theirs is not None and theirs.shape == references[0].shape[1:]:
            pivot = _pivot_of(reference, sweep)
            if pivot is not None or sweep.pivot is None:
                found["focus_dE_ref"] = _focus_drift(replace(reference, pivot=pivot), references, theirs)
        trend = [laplacian_variance(picture) for picture in references]
        found["laplacian_variance_ref"] = trend
        found["lvcorr"], found["lvcorr_diff"] = lvcorr(found["laplacian_variance"], trend)
        found["monotonic_ref"] = blur_monotonicity([energy(picture) for picture in references[::-1]])
        if lpips is not None:
            found["lpips_ref"] = _distances(references, [], lpips)["lpips"]
    if judge is not None:
        found.update(_judged(judge, sweep, pictures, judge_most))
    return found


def summarise(scenes: Sequence[dict[str, Any]]) -> dict[str, Interval]:
    """Mean and 95 % confidence interval of every figure, over scenes."""
    return {name: bootstrap([scene.get(name) for scene in scenes]) for name in FIGURES}


def _focus_drift(sweep: Sweep, pictures: Sequence[Tensor], focus: Tensor) -> float:
    """To the pivot where there is one, else to the sharpest picture."""
    if sweep.pivot is None:
        return focus_drift(pictures[0], pictures[1:], focus)
    value, _ = sweep.pivot
    others = [picture for own, picture in zip(sweep.values, pictures, strict=True) if own != value]
    return focus_drift(sweep.load_pivot(), others, focus)


def _pivot_of(reference: Sweep, sweep: Sweep) -> tuple[float, Path] | None:
    """The reference's own pivot, or its picture where the sweep has its pivot."""
    if reference.pivot is not None or sweep.pivot is None or sweep.pivot[0] not in reference.values:
        return reference.pivot
    return sweep.pivot[0], reference.paths[reference.values.index(sweep.pivot[0])]


@torch.no_grad()
def _distances(pictures: Sequence[Tensor], kept: Sequence[int], lpips: Lpips) -> dict[str, float | None]:
    """``lpips`` is the mean over all pairs, ``lpips_next`` over neighbours among ``kept``."""
    device = next(lpips.parameters()).device
    features = [lpips.unit_features(picture[None].to(device)) for picture in pictures]

    def mean(pairs: Sequence[tuple[int, int]]) -> float | None:
        values = [float(lpips.distance(features[i], features[j])) for i, j in pairs]
        return math.fsum(values) / len(values) if values else None

    return {
        "lpips": mean([(i, j) for j in range(len(features)) for i in range(j)]),
        "lpips_next": mean(list(itertools.pairwise(kept))),
    }


def _judged(judge: Judge, sweep: Sweep, pictures: Sequence[Tensor], most: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        scores = judge.strengths(pictures, most, sweep.name)
        blur = [
            value if sweep.kind == "k" else 1 / value for value in sweep.values
        ]  # both grow with the aperture
        found["judge_scores"], found["judge_corr"] = scores, pearson(scores, blur)
    except UnreadableAnswer as error:
        found["judge_error"] = str(error)
    try:
        found["judge_same"] = judge.consistency(pictures, sweep.name)
    except UnreadableAnswer as error:
        found["judge_error"] = str(error)
    return found
