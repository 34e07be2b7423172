"""Lens models on synthesised scenes, as depth gets worse: the question BokehDiff was made for.

Scenes that no lens was trained on, every K of each, through each lens model with the exact depth, with depth that is
eroded, dilated, blurred or shifted, and with that of a network; against the traced truth.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bokeh_ops.errors import BokehError
from bokeh_ops.render import Lens, LensModel, render
from trainer.data import open_dataset
from trainer.data.pairs.identity import identity
from trainer.data.prepare.providers.onnx import OnnxMap
from trainer.files import read_json, replace_text
from trainer.measure.metrics import Interval, Lpips, bootstrap, psnr
from trainer.measure.metrics.fidelity import BAND_PIXELS, depth_edge_band
from trainer.measure.plots import Curves, plot_panels
from trainer.recipes.one_step.scenes import WAYS, Example, Scenes, worse
from trainer.world.sheet import write_rows

SHARES = (0.5, 1.0, 2.0, 3.0)
"""How wrong depth is, in percent of the picture's width."""
Depth = Callable[[Example], Tensor]
"""The disparity map ``[1, H, W]`` that a lens is given in place of an example's own."""


def _worse(way: str, share: float) -> Depth:
    return lambda example: worse(example.disparity, way, share / 100 * example.disparity.shape[-1])


FAULTS: dict[str, Depth] = {
    "exact": lambda example: example.disparity,
    **{f"{way} {share:g} %": _worse(way, share) for way in WAYS for share in SHARES},
}
"""By name how depth is made worse."""
FIGURES = ("psnr", "edge_psnr", "lpips")
_BAND_WIDTH = 512  # pixels of width that the band about edges is counted at
_SHEETS = 4

Values = dict[str, dict[str, dict[str, dict[str, float]]]]
"""By model, fault and picture the figures."""
BUILT_IN = "of this project"
"""What a lens model without a file is made of."""


@torch.no_grad()
def measure(
    folder: Path,
    dataset: Path,
    models: Mapping[str, str | LensModel],
    scenes: int,
    lpips: Lpips | None,
    faults: Mapping[str, Depth] = MappingProxyType(FAULTS),
    made_of: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, dict[str, dict[str, Interval]]]:
    """Render and compare; ``values.json``, ``lenses.md`` and ``lenses.png`` hold the result, sheets the first scenes.

    Goes on where it stopped.

    Args:
        folder: for the result.
        dataset: made by ``python -m trainer synthesize``.
        models: by name; "unchanged" is none at all.
        scenes: the first so many.
        lpips: None leaves it out.
        faults: what depth is given, such as :data:`FAULTS`.
        made_of: names the content of a model's or a fault's file; where that is another one, it is measured anew.

    Returns:
        By model and fault PSNR, PSNR about depth edges, and LPIPS of pictures as displayed: means over scenes.

    Raises:
        BokehError: no scenes, or the folder holds what was measured of other scenes.
    """
    opened = open_dataset(dataset)
    found, of_scenes = Scenes(opened), identity(opened)
    path = folder / "values.json"
    before: dict[str, Any] = {"scenes": of_scenes, "made_of": {}, "values": {}}
    if path.is_file():
        before = read_json(path, "what was measured before")
    if before.get("scenes") != of_scenes:
        raise BokehError(f"{path} is of other scenes. Delete it, or give another folder.")
    files = before["made_of"] | {name: made_of.get(name, BUILT_IN) for name in (*models, *faults)}

    def same(name: str) -> bool:
        return before["made_of"].get(name, BUILT_IN) == files.get(name, BUILT_IN)

    values: Values = {
        name: {fault: each for fault, each in of_model.items() if same(fault)}
        for name, of_model in before["values"].items()
        if same(name)
    }
    for number in range(min(scenes, len(found))):
        levels = len(found.scenes[number][1])
        examples = [found.example(number, level) for level in range(levels)]
        fresh = False
        for name, model in models.items():
            for fault, depth in faults.items():
                known = values.setdefault(name, {}).setdefault(fault, {})
                if all(each.key in known for each in examples):
                    continue
                for each in examples:
                    known[each.key] = compared(rendered(each, model, depth), each, lpips)
                fresh = True
        if fresh:
            replace_text(path, json.dumps({"scenes": of_scenes, "made_of": files, "values": values}))
            replace_text(folder / "lenses.md", markdown(summary(values)))
            if number < _SHEETS:
                _sheet(folder / "sheets" / f"{number:03d}.png", examples[-1], models, faults)
    table = summary({name: values.get(name, {}) for name in models})
    if table:
        plot_panels(
            _curves(table), "share of the width by which depth is wrong, %", "PSNR, dB", folder / "lenses.png"
        )
    return table


def _curves(table: Mapping[str, Mapping[str, Mapping[str, Interval]]]) -> dict[str, Curves]:
    """PSNR of each model over how wrong depth is, for each way."""
    return {
        way: {
            name: [
                (share, of_model[fault]["psnr"])
                for share, fault in ((0.0, "exact"), *((share, f"{way} {share:g} %") for share in SHARES))
                if fault in of_model
            ]
            for name, of_model in table.items()
        }
        for way in WAYS
    }


def rendered(example: Example, model: str | LensModel, depth: Depth) -> Tensor:
    """A picture as a model makes it of some depth, ``[3, H, W]``, 0..1."""
    if model == "unchanged":
        return example.sharp
    lens = Lens(example.k, example.focus, gamma="srgb", highlight_recovery=0.0)
    return render(example.sharp[None], depth(example)[None], lens, model).image[0].clamp(0, 1)


def depth_by(file: Path) -> Depth:
    """Depth by a network, fitted to the exact disparity by a factor and an offset, as it has no unit.

    Args:
        file: ONNX, of a network that gives disparity of pictures in 0..255.

    Raises:
        BokehError: no such file, or no such network.
    """
    network = OnnxMap(str(file))

    def depth(example: Example) -> Tensor:
        pixels = (example.sharp.movedim(0, -1) * 255).round().to(torch.uint8)
        made = torch.from_numpy(network.of(Image.fromarray(pixels.numpy()))).float()
        size = example.disparity.shape[-2:]
        found = F.interpolate(made[None, None], size, mode="bilinear")[0]
        truth = example.disparity.flatten()
        terms = torch.stack([found.flatten(), torch.ones_like(truth)], 1)
        factor, offset = torch.linalg.lstsq(terms, truth[:, None]).solution.flatten().tolist()
        return (factor * found + offset).clamp_min(0)

    return depth


def compared(picture: Tensor, example: Example, lpips: Lpips | None) -> dict[str, float]:
    """The figures of one picture."""
    width = example.disparity.shape[-1]
    band = depth_edge_band(example.disparity[0], reach=max(1, round(BAND_PIXELS * width / _BAND_WIDTH)))
    figures = {
        "psnr": min(psnr(picture, example.truth), 99.0),
        "edge_psnr": min(psnr(picture, example.truth, band), 99.0),
    }
    if lpips is not None:
        figures["lpips"] = float(lpips(picture[None], example.truth[None]))
    return figures


def summary(values: Values) -> dict[str, dict[str, dict[str, Interval]]]:
    """Means over scenes, each of which counts once however many K it has; of scenes that all models have been given."""
    table: dict[str, dict[str, dict[str, Interval]]] = {}
    for name, of_model in values.items():
        for fault, pictures in of_model.items():
            everywhere = set.intersection(*(set(each[fault]) for each in values.values() if each.get(fault)))
            scenes: dict[str, list[dict[str, float]]] = {}
            for key in sorted(everywhere & set(pictures)):
                figures = pictures[key]
                scenes.setdefault(key.rpartition("-")[0], []).append(figures)
            table.setdefault(name, {})[fault] = {
                figure: bootstrap(
                    [_mean([each[figure] for each in group if figure in each]) for group in scenes.values()]
                )
                for figure in FIGURES
            }
    return table


def _mean(values: Sequence[float]) -> float | None:
    there = [value for value in values if value == value]  # a picture without a depth edge has no band
    return sum(there) / len(there) if there else None


def markdown(table: Mapping[str, Mapping[str, Mapping[str, Interval]]]) -> str:
    """One table for each figure: faults down, models across."""
    if not table:
        raise BokehError("Nothing was measured.")
    parts = []
    for figure in FIGURES:
        parts.append(f"{figure}\n\n| depth | " + " | ".join(table) + " |\n|---|" + "---|" * len(table))
        for fault in next(iter(table.values())):
            cells = [of_model[fault][figure] if fault in of_model else None for of_model in table.values()]
            places = 3 if figure == "lpips" else 2
            told = ["" if each is None else f"{each.mean:.{places}f}" for each in cells]
            parts.append(f"| {fault} | " + " | ".join(told) + " |")
        parts.append("")
    return "\n".join(parts) + "\n"


def _sheet(
    path: Path, example: Example, models: Mapping[str, str | LensModel], faults: Mapping[str, Depth]
) -> None:
    """What each model makes of one picture with each depth."""
    rows = [
        torch.stack(
            [example.sharp, example.truth, *(rendered(example, model, depth) for model in models.values())]
        )
        for depth in faults.values()
    ]
    write_rows(path, torch.stack(rows).movedim(2, -1), ["all in focus", "truth", *models])
