"""Pictures of the report: histograms, and contact sheets of what was kept."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bokeh_ops.picture.sheet import contact_sheet
from trainer.data.sample import Sample
from trainer.files import write_bytes

CELL = 192
KEPT, SURPLUS = "#3b6ea5", "#c8c8c8"


def histograms(
    path: Path, kept: Sequence[dict[str, Any]], surplus: Sequence[dict[str, Any]], max_k: float
) -> None:
    """Distributions of what was kept, and above it, in grey, of what was left out to even out K.

    Args:
        path: of the PNG.
        kept: of each photograph, ``k``, ``f_number``, ``f_mm``, ``s1_m``, ``foreground_area``, ``depth_range`` and
            ``blur_px``; None is unknown.
        surplus: likewise.
        max_k: right end of K's axis.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    panels = (
        ("k", "K, pixels per dioptre", False),
        ("f_number", "f-number", True),
        ("f_mm", "focal length, mm", True),
        ("s1_m", "focus distance S1, m", True),
        ("depth_range", "depth range, dioptres", True),
        ("foreground_area", "foreground, share of the crop", False),
        ("blur_px", "blur radius at the 95th percentile, pixels", True),
    )
    figure = Figure(figsize=(15, 6.4))
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.04, right=0.99, bottom=0.08, top=0.98, wspace=0.2, hspace=0.25)
    axes = list(figure.subplots(2, 4).flat)
    for axis, (name, label, spread) in zip(axes, panels, strict=False):
        values = [
            np.array([row[name] for row in rows if row[name] is not None], dtype=np.float64)
            for rows in (kept, surplus)
        ]
        together = np.concatenate(values)
        together = together[together > 0] if spread else together
        # Marks of a logarithmic axis run into each other where it spans little.
        logarithmic = spread and together.size > 0 and together.max() > 3 * together.min()
        if name == "k":
            edges = np.linspace(0, max_k, 31)
        elif name == "foreground_area":
            edges = np.linspace(0, 1, 21)
        elif together.size:
            low, high = float(together.min()), float(together.max())
            space = np.geomspace if logarithmic else np.linspace
            edges = space(low / 1.01, high * 1.01, 25)
        else:
            edges = np.linspace(0, 1, 2)
        axis.hist(
            values, bins=edges.tolist(), stacked=True, color=[KEPT, SURPLUS], label=["kept", "left out"]
        )
        if logarithmic:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(label)
        axis.set_ylabel("photographs")
        axis.yaxis.get_major_locator().set_params(integer=True)
        if name == "k":
            axis.legend(frameon=False)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=90)
    write_bytes(path, content.getvalue())


def sheet(path: Path, samples: Sequence[Sample], columns: int = 2) -> None:
    """A contact sheet, at each photograph its disparity (near is bright) and its foreground.

    Args:
        path: of the JPEG.
        samples: at least one.
        columns: photographs in a row.
    """
    cells = torch.from_numpy(np.stack([_cell(sample) for sample in samples]))
    labels = [_label(sample) for sample in samples]
    page = contact_sheet(cells, labels, min(columns, len(samples)), background="white")
    content = io.BytesIO()
    Image.fromarray((page[0] * 255).round().to(torch.uint8).numpy()).save(content, "JPEG", quality=88)
    write_bytes(path, content.getvalue())


def _label(sample: Sample) -> str:
    info = sample.info
    parts = ["K ?" if sample.k is None else f"K {sample.k:.3g}"]
    if info.get("f_mm") and info.get("f_number"):
        parts.append(f"{info['f_mm']:.3g} mm f/{info['f_number']:.3g}")
    if info.get("s1_m"):
        parts.append(f"S1 {info['s1_m']:.3g} m")
    if info.get("blur_px") is not None:
        parts.append(f"blur {info['blur_px']:.2g} px")
    name = str(info.get("id", sample.key)).rpartition("/")[2]
    # Names of one series differ at their end.
    parts.append(name if len(name) <= 28 else f"{name[:10]}...{name[-15:]}")
    return ", ".join(parts)


def _cell(sample: Sample) -> np.ndarray:
    """Picture, disparity and foreground side by side, float32 ``[h, w, 3]``."""
    height, width = sample.image.shape[:2]
    size = (CELL * width // max(height, width), CELL * height // max(height, width))
    disparity = sample.disparity / max(float(sample.disparity.max()), 1e-9) * 255
    outside = (sample.image * 0.2 + 190).astype(np.float32)
    inside = sample.mask[..., None]
    pictures = (
        sample.image,
        np.repeat(disparity[..., None], 3, axis=2).astype(np.uint8),
        (sample.image * inside + outside * (1 - inside)).astype(np.uint8),
    )
    parts = [np.asarray(Image.fromarray(each).resize(size, Image.Resampling.BOX)) for each in pictures]
    return np.concatenate(parts, axis=1).astype(np.float32) / 255
