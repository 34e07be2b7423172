"""Plots of an evaluation of sweeps. matplotlib is imported when something is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bokeh_ops.errors import BokehError
from trainer.measure.metrics import Interval

_SHOWN = (
    "lvcorr",
    "lvcorr_diff",
    "lv_rank",
    "monotonic",
    "monotonic_ref",
    "monotonic_even",
    "content",
    "judge_corr",
)


def plot_sweeps(runs: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draw ``trends.png`` (sharpness, energy and brightness over K) and ``figures.png`` (means with their intervals).

    Args:
        runs: with ``folder``, ``scenes`` of :func:`~trainer.measure.sweep_measures.measure_sweep` and ``summary``.
        folder: made if it is not there.

    Returns:
        The files written.

    Raises:
        BokehError: the folder cannot be written to.
    """
    from matplotlib.figure import Figure

    rows = [
        ("laplacian_variance", "Laplacian variance,\nshare of the sharpest"),
        ("energy", "energy,\nshare of the sharpest"),
        ("brightness", "mean brightness"),
    ]
    figure = Figure(figsize=(5 * len(runs), 8.5), layout="constrained")
    axes = figure.subplots(len(rows), len(runs), squeeze=False, sharex="col", sharey="row")
    for column, run in enumerate(runs):
        axes[0][column].set_title(Path(run["folder"]).name)
        for row, (key, label) in enumerate(rows):
            axis = axes[row][column]
            for number, scene in enumerate(run["scenes"]):
                colour = f"C{number % 10}"
                axis.plot(scene["values"], _scaled(scene[key], row < 2), "o-", color=colour, ms=3, lw=1)
                if f"{key}_ref" in scene:
                    axis.plot(scene["values"], _scaled(scene[f"{key}_ref"], True), ":", color=colour, lw=1)
            axis.grid(alpha=0.3)
            if column == 0:
                axis.set_ylabel(label)
        kind = run["scenes"][0]["kind"]
        axes[-1][column].set_xlabel("K" if kind == "k" else "f-number")
    dotted = any("laplacian_variance_ref" in scene for run in runs for scene in run["scenes"])
    figure.suptitle("One line for each scene" + ("; dotted: its reference" if dotted else ""), fontsize=10)
    written = [_save(figure, folder / "trends.png")]

    names = [name for name in _SHOWN if any(not math.isnan(run["summary"][name].mean) for run in runs)]
    figure = Figure(figsize=(1.5 + 1.3 * len(names) * max(1, len(runs) / 2), 5), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(runs)
    for number, run in enumerate(runs):
        intervals = [run["summary"][name] for name in names]
        places = [place + (number - (len(runs) - 1) / 2) * width for place in range(len(names))]
        spans = [[i.mean - i.low for i in intervals], [i.high - i.mean for i in intervals]]
        label = f"{Path(run['folder']).name} ({len(run['scenes'])} scenes)"
        axis.bar(places, [i.mean for i in intervals], width, yerr=spans, capsize=3, label=label)
    axis.set_xticks(range(len(names)), names, rotation=20)
    axis.axhline(0, color="black", lw=0.8)
    axis.set_ylim(top=1.1)
    axis.grid(axis="y", alpha=0.3)
    axis.set_title("Means over scenes, 95 % confidence intervals", fontsize=10)
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    return [*written, _save(figure, folder / "figures.png")]


Curves = Mapping[str, Sequence[tuple[float, Interval]]]
"""By name places and what was found there."""


def plot_panels(panels: Mapping[str, Curves], across: str, up: str, path: Path) -> Path:
    """Curves with their intervals, a panel for each title, one name in one colour.

    Args:
        panels: by title.
        across, up: what the axes are.
        path: of the PNG.

    Raises:
        BokehError: it cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(panels), 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for name, curve in curves.items():
            places, found = [place for place, _ in curve], [each for _, each in curve]
            colour = f"C{names.index(name) % 10}"
            axis.plot(places, [each.mean for each in found], "o-", color=colour, ms=3, lw=1.2, label=name)
            lows, highs = [each.low for each in found], [each.high for each in found]
            axis.fill_between(places, lows, highs, color=colour, alpha=0.12, lw=0)
        axis.set_title(title)
        axis.set_xlabel(across, fontsize=8)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(up)
    lines, labels = axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, fontsize=8, loc="outside lower center", ncols=len(names))
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    # The canvas is made by hand: pyplot would choose a window system, and keep figures alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise BokehError(f"{path} cannot be written: {error}.") from error
    return path


def _scaled(values: Sequence[float], relative: bool) -> list[float]:
    """Shares of the first value, that of the sharpest picture."""
    return [value / values[0] if relative and values[0] > 0 else value for value in values]
