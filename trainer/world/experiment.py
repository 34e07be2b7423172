"""The experiment: the paper's comparisons (tables 1 and 3) on the small world, as sweeps, figures and one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bokeh_ops.errors import BokehError
from bokeh_ops.numbers import format_value
from trainer.files import replace_text
from trainer.measure.metrics import Interval, Lpips, bootstrap
from trainer.measure.sweep_measures import measure_sweep
from trainer.measure.sweeps import find_sweeps, match_reference
from trainer.world.mask import MainThing
from trainer.world.sheet import write_rows
from trainer.world.sweeps import Variant, file_name, held_out, scene_name, write_reference, write_sweeps

STEPS = 20
SHOWN = 8
"""Scenes on the sheet of a variant."""
MAIN = "both"
"""The adapter that all comparisons but that of the data are made with: trained in the wild and on contrastive sets."""

FIGURES = (
    "lvcorr",
    "lvcorr_diff",
    "lv_rank",
    "sharper",
    "blurrier",
    "ordered",
    "lpips",
    "lpips_ref",
    "focus_dE",
    "focus_dE_ref",
    "drift_L",
    "drift_ab",
)
"""As :mod:`trainer.measure.images` explains them."""


def variants(names: Sequence[str]) -> dict[str, tuple[str | None, Variant]]:
    """Everything that is compared: by name the adapter, or None, and the way of sampling.

    Args:
        names: of the adapters there are; :data:`MAIN` is one of them, others differ in how they were trained.
    """
    usual = Variant(steps=STEPS)
    found: dict[str, tuple[str | None, Variant]] = {
        # Table 1: what is added one after the other; and what grounding does where words are what changes.
        "words": (None, replace(usual, control="words", grounding=0)),
        "words, grounded": (None, replace(usual, control="words")),
        "cross-attention": (MAIN, replace(usual, grounding=0)),
        "grounded": (MAIN, usual),
        "grounded, colours": (MAIN, replace(usual, colours="mean and deviation")),
        "grounded, mean colours": (MAIN, replace(usual, colours="mean")),
        # Table 3: data, grounded steps, pivots; and which branches are grounded, which the paper leaves open.
        **{f"adapter {name}": (name, usual) for name in names if name != MAIN},
        **{
            f"adapter {name}, not grounded": (name, replace(usual, grounding=0))
            for name in names
            if name != MAIN
        },
        "grounded, both branches": (MAIN, replace(usual, branches="positive and negative")),
    }
    for share in (0.2, 0.4, 0.8, 1.0):
        found[f"grounded for {share:.0%}"] = (MAIN, replace(usual, grounding=round(share * STEPS)))
    for k in (4.0, 26.0):
        found[f"pivot {k:g}"] = (MAIN, replace(usual, pivot=k))
    # Beyond the paper.
    found["subject, not grounded"] = (MAIN, replace(usual, subject=True, grounding=0))
    found["subject"] = (MAIN, replace(usual, subject=True))
    for scale in (2.0, 5.0):  # SD1.5's usual guidance, 3, is between them
        guided = replace(usual, bokeh_guidance=scale)
        found[f"K guidance {scale:g}, not grounded"] = (MAIN, replace(guided, grounding=0))
        found[f"K guidance {scale:g}"] = (MAIN, guided)
        found[f"subject, K guidance {scale:g}"] = (MAIN, replace(guided, subject=True))
    return found


def run(
    folder: Path,
    model: Any,
    adapters: Mapping[str, Any],
    network: MainThing,
    lpips: Lpips | None,
    scenes: int,
    chosen: Mapping[str, tuple[str | None, Variant]] | None = None,
) -> dict[str, dict[str, Interval]]:
    """Sample and measure every variant; ``table.md`` and ``figures.json`` hold the result. Goes on where it stopped.

    Args:
        folder: for sweeps and result.
        model: a :class:`~bokeh_ops.host.small.model.SmallModel`.
        adapters: by name.
        network: finds the main thing.
        lpips: None leaves it out.
        scenes: how many held-out scenes.
        chosen: other variants than those of :func:`variants`.

    Returns:
        By variant and figure the mean with its 95 % confidence interval.
    """
    seeds = held_out(scenes)
    write_reference(folder / "reference", seeds)
    references = find_sweeps(folder / "reference")
    table = _figures(folder / "figures.json", scenes)
    every = variants(list(adapters))
    for name, (adapter, variant) in (chosen or every).items():
        own = folder / file_name(name)
        plain = None
        if variant.colours:
            same = (adapter, replace(variant, colours=False))
            found = (folder / file_name(other) for other, each in every.items() if each == same)
            plain = next(
                (each for each in found if all((each / scene_name(s)).is_dir() for s in seeds)), None
            )
        made = None if adapter is None else adapters[adapter]
        write_sweeps(own, model, made, seeds, variant, network, plain)
        write_sweep_sheet(folder / "sheets" / f"{own.name}.png", own, seeds[:SHOWN])
        sweeps = [sweep for sweep in find_sweeps(own) if int(sweep.name.removeprefix("scene")) in seeds]
        rows = [measure_sweep(sweep, match_reference(sweep, references), lpips) for sweep in sweeps]
        table[name] = {figure: bootstrap([row.get(figure) for row in rows]) for figure in FIGURES}
        figures = {
            key: {figure: list(cell) for figure, cell in cells.items()} for key, cells in table.items()
        }
        replace_text(folder / "figures.json", json.dumps({"scenes": scenes, "variants": figures}, indent=1))
        replace_text(folder / "table.md", markdown(table))
    return table


def _figures(path: Path, scenes: int) -> dict[str, dict[str, Interval]]:
    """What was measured before, of as many scenes."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["scenes"] != scenes:
            return {}
        return {
            name: {figure: Interval(*cell) for figure, cell in cells.items()}
            for name, cells in content["variants"].items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BokehError(
            f"{path} is not what this command wrote there ({error}). Delete it: the sweeps beside it are kept, and "
            "are measured again."
        ) from error


def write_sweep_sheet(path: Path, folder: Path, seeds: Sequence[int]) -> None:
    """A sheet of some of the sweeps in a folder: a line for each scene, the pivot first, then every K."""
    rows, labels = [], []
    for sweep in find_sweeps(folder):
        if int(sweep.name.removeprefix("scene")) in seeds:
            assert sweep.pivot is not None
            rows.append(torch.stack([sweep.load_pivot(), *sweep.load()]).movedim(1, -1))
            labels = [f"pivot, K = {format_value(sweep.pivot[0])}", *sweep.labels]
    write_rows(path, torch.stack(rows), labels)


def markdown(table: Mapping[str, Mapping[str, Interval]]) -> str:
    """The table, each cell a mean and the bounds of its interval."""
    lines = ["| | " + " | ".join(FIGURES) + " |", "|---|" + "---|" * len(FIGURES)]
    for name, cells in table.items():
        lines.append(f"| {name} | " + " | ".join(_cell(cells[figure]) for figure in FIGURES) + " |")
    return "\n".join(lines) + "\n"


def _cell(value: Interval) -> str:
    if value.mean != value.mean:  # NaN: nothing to take a mean of
        return "n/a"
    if value.low != value.low:  # of one scene there is no telling how sure it is
        return f"{value.mean:.3f} (n/a)"
    return f"{value.mean:.3f} ({value.low:.3f} to {value.high:.3f})"
