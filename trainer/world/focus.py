"""What to focus on in held-out scenes of the world: the focus transformer and simpler ways, as depth gets worse.

Each way gives a disparity of a picture and a depth map. It is right where it lies nearer to the main thing's than to
that of every other thing and of the backdrop. Nothing of the world stands before its main thing but the ground; so
whoever takes the nearest point is always right by that, and how far the focus is off tells more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bokeh_ops.depth.focus import focus_at_point, focus_by_weight, focus_on_salient
from bokeh_ops.depth.focus_transformer import FocusTransformer, normalised
from bokeh_ops.errors import BokehError
from trainer.files import replace_text
from trainer.measure.metrics import Interval, bootstrap
from trainer.recipes.one_step.scenes import WAYS, worse
from trainer.seeded import generator
from trainer.world.data import scene_sample
from trainer.world.mask import MainThing
from trainer.world.scene import Scene, draw_scene
from trainer.world.sheet import write_rows

SHARES = (2.0, 5.0)
"""How wrong depth is, in percent of the picture's width."""
PICTURES = {"all in focus": True, "at a K": False}
"""By name of a kind of picture, whether it is taken through a pinhole; else at the K of its scene."""
FIGURES = ("right", "error")
_SHOWN = 8  # scenes on a sheet

Way = Callable[[Tensor, Tensor], Tensor]
"""Picture ``[1, 3, S, S]``, 0..1, and disparity ``[1, 1, S, S]`` to the disparity to focus on, ``[1]``."""
Table = Mapping[str, Mapping[str, Mapping[str, Interval]]]
"""By depth, way and figure."""


def ways(network: FocusTransformer, mask: MainThing) -> dict[str, Way]:
    """All that is compared, by name."""

    def saliency(picture: Tensor, disparity: Tensor | None) -> Tensor:
        return network(picture, None if disparity is None else normalised(disparity)).saliency

    def by_rule(picture: Tensor, disparity: Tensor) -> Tensor:
        try:
            return focus_on_salient(disparity, saliency(picture, disparity))
        except BokehError:  # nothing is salient
            return torch.full((1,), torch.nan)

    return {
        "transformer": lambda picture, disparity: focus_by_weight(disparity, saliency(picture, disparity)),
        "transformer without depth": lambda p, disparity: focus_by_weight(disparity, saliency(p, None)),
        "transformer, nearest region": by_rule,
        "mask network": lambda picture, disparity: focus_by_weight(disparity, mask(picture).sigmoid()[:, 0]),
        "centre": lambda _, disparity: focus_at_point(disparity, 0.5, 0.5),
        "nearest point": lambda _, disparity: disparity.amax((1, 2, 3)),
    }


def depths(disparity: Tensor, seed: int) -> dict[str, Tensor]:
    """A map ``[1, 1, S, S]`` as it is, and made worse."""
    angle = 2 * np.pi * generator(seed, "focus angle").random()
    faults = {
        f"{way} {share:g} %": worse(disparity, way, share / 100 * disparity.shape[-1], angle)
        for share in SHARES
        for way in WAYS
    }
    return {"exact": disparity, **faults}


def figures(scene: Scene, found: float) -> dict[str, float]:
    """``right`` (1 or 0), and ``error``: how far off the focus is, as a share of the main thing's disparity."""
    main, *others = (thing.disparity for thing in scene.things)
    off = abs(found - main)
    nearest = min(abs(found - other) for other in (*others, scene.backdrop_disparity))
    return {"right": float(off < nearest), "error": off / main}  # NaN is not right


@torch.no_grad()
def measure(
    folder: Path, network: FocusTransformer, mask: MainThing, seeds: Sequence[int]
) -> dict[str, dict[str, dict[str, dict[str, Interval]]]]:
    """Find the focus of scenes in every way; ``focus.json`` and ``focus.md`` hold the result, a sheet the first scenes.

    Args:
        folder: for the result.
        network, mask: what finds the main thing.
        seeds: of the scenes.

    Returns:
        By kind of picture, depth, way and figure the mean over scenes with its 95 % confidence interval.
    """
    compared = ways(network, mask)
    tables = {}
    for kind, sharp in PICTURES.items():
        rows: dict[str, dict[str, list[dict[str, float]]]] = {}
        shown = []
        for number, seed in enumerate(seeds):
            scene = draw_scene(seed, sharp)
            sample = scene_sample(scene)
            picture = torch.from_numpy(sample.image).movedim(-1, 0)[None].float() / 255
            disparity = torch.from_numpy(sample.disparity)[None, None]
            for depth, given in depths(disparity, seed).items():
                for name, way in compared.items():
                    found = figures(scene, float(way(picture, given)))
                    rows.setdefault(depth, {}).setdefault(name, []).append(found)
            if number < _SHOWN:
                near = normalised(disparity)
                maps = [near[0], network(picture, near).saliency, network(picture).saliency]
                maps += [mask(picture).sigmoid()[0], torch.from_numpy(sample.mask)[None]]
                shown.append(torch.cat([picture, *(each.expand(1, 3, -1, -1) for each in maps)]))
        tables[kind] = {
            depth: {
                name: {figure: bootstrap([row[figure] for row in found]) for figure in FIGURES}
                for name, found in of_depth.items()
            }
            for depth, of_depth in rows.items()
        }
        labels = ["picture", "depth", "transformer", "without depth", "mask network", "true mask"]
        write_rows(folder / f"{kind.replace(' ', '_')}.png", torch.stack(shown).movedim(2, -1), labels)
    replace_text(folder / "focus.json", json.dumps({"scenes": len(seeds), "tables": tables}, indent=1))
    replace_text(folder / "focus.md", markdown(tables))
    return tables


def markdown(tables: Mapping[str, Table]) -> str:
    """One table for each kind of picture and figure: depth down, ways across; percent, with the intervals' bounds."""
    parts = []
    for kind, table in tables.items():
        for figure in FIGURES:
            names = list(next(iter(table.values())))
            parts.append(
                f"{figure}, %, pictures {kind}\n\n| depth | {' | '.join(names)} |\n|---|{'---|' * len(names)}"
            )
            for depth, of_depth in table.items():
                parts.append(f"| {depth} | {' | '.join(_cell(of_depth[name][figure]) for name in names)} |")
            parts.append("")
    return "\n".join(parts) + "\n"


def _cell(value: Interval) -> str:
    mean, low, high = (f"{100 * each:.1f}" for each in value)
    return mean if value.low != value.low else f"{mean} ({low} to {high})"
