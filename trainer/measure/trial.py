"""One lens model over scenes with ground truth: what it is given, how long it takes, how near it comes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from bokeh_ops.depth.conventions import fit_to_image
from bokeh_ops.errors import BokehError
from trainer.cli import UsageError
from trainer.measure.blb import Case, Scene
from trainer.measure.lens import make_lens
from trainer.measure.metrics import DISPLAY_GAMMA, Lpips, depth_edge_band, display_encode, psnr, ssim
from trainer.measure.models import USUAL_STRENGTH, apply_model, check_model
from trainer.measure.peers import PREFIX, STRENGTHS
from trainer.measure.pictures import write_comparison
from trainer.measure.report import mean
from trainer.measure.search import best_value

INPUTS = ("hdr", "ldr", "linear")
"""Linear light as rendered; 8-bit values raised to 1/2.2; those values turned back into linear light."""

_FIGURES = {
    "psnr": ".2f",
    "edge_psnr": ".2f",
    "ssim": ".4f",
    "ssim_gauss": ".4f",
    "lpips": ".4f",
    "seconds": ".3f",
}
COLUMNS = {"scene": "", "case": "", "k": "g", "focus": ".3f", **_FIGURES}
MEANS = {"model": "", "input": "", "depth": "", **_FIGURES}


@dataclass(frozen=True)
class Depth:
    """How wrong the disparity that a model is told is made."""

    shift: int = 0
    """Pixels by which near things grow; negative: shrink."""
    reduced: int = 1
    """The map is made smaller by this and enlarged again, as maps of networks are."""
    aligned: bool = False
    """Its edges are moved to those of the picture then (:func:`bokeh_ops.depth.conventions.fit_to_image`)."""

    def __str__(self) -> str:
        moved = f"{'dilated' if self.shift > 0 else 'eroded'} by {abs(self.shift)}" if self.shift else ""
        reduced = f"reduced by {self.reduced}" if self.reduced > 1 else ""
        wrong = " and ".join(word for word in (moved, reduced) if word) or "as it is"
        return wrong + ", aligned" * self.aligned

    def of(self, disparity: Tensor, picture: Tensor) -> Tensor:
        """What is told of disparity ``[H, W]`` to a picture ``[3, H, W]`` in linear light."""
        height, width = disparity.shape
        told = shift_edges(disparity, self.shift)[None, None]
        if self.reduced > 1:
            size = max(1, height // self.reduced), max(1, width // self.reduced)
            told = F.interpolate(told, size, mode="area")
        guide = encode_8bit(picture)[None] if self.aligned else None
        return fit_to_image(told, 1, height, width, guide=guide)[0, 0]


@dataclass(frozen=True)
class Setting:
    """What is measured: a model, what it is given, and what it is told of depth."""

    model: str
    kind: str
    depth: Depth = Depth()
    k_scale: float = 1.0
    highlights: str | None = None

    @property
    def words(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "input": self.kind,
            "depth": str(self.depth),
            "k_scale": self.k_scale,
            "highlights": self.highlights,
        }

    @property
    def title(self) -> str:
        return f"{self.model}, {self.kind}, depth {self.depth}"


@dataclass
class Run:
    """The figures of one setting."""

    setting: Setting
    cases: list[dict[str, Any]] = field(default_factory=list)

    @property
    def mean(self) -> dict[str, Any]:
        figures = {name: mean([case[name] for case in self.cases]) for name in _FIGURES}
        return {"scene": "mean", "case": "", "k": None, "focus": None, **figures}


def check_setting(setting: Setting) -> None:
    """Refuse what cannot be measured before anything is.

    Raises:
        BokehError: an unknown model or input, or a lens that cannot be made.
    """
    check_model(setting.model)
    if setting.kind not in INPUTS:
        raise BokehError(f"The input {setting.kind!r} is none of {', '.join(INPUTS)}.")
    make_lens(setting.k_scale, 0.0, setting.kind == "ldr", setting.highlights)


def measure(
    scenes: Sequence[Scene],
    setting: Setting,
    lpips: Lpips | None,
    device: torch.device,
    pattern: str | None = None,
    pictures: Path | None = None,
) -> Run:
    """Render every case of every scene and compare it with its ground truth.

    Args:
        scenes: from :func:`trainer.measure.blb.find_scenes`.
        setting: what to measure.
        lpips: on ``device``; ``None`` leaves that figure out.
        device: where to render and compare.
        pattern: only cases whose ``scene/0i_0j`` matches it.
        pictures: a folder for comparisons, one PNG a case.

    Raises:
        UsageError: no case matches the pattern.
        BokehError: a file cannot be read, or what the model refuses.
    """
    jobs = [
        (
            scene,
            [
                case
                for case in scene.cases
                if not pattern or fnmatchcase(f"{scene.name}/{case.name}", pattern)
            ],
        )
        for scene in scenes
    ]
    total = sum(len(cases) for _, cases in jobs)
    if not total:
        raise UsageError(
            f"No case matches {pattern!r}; the first is {scenes[0].name}/{scenes[0].cases[0].name}."
        )
    result = Run(setting)
    with tqdm(total=total, desc=setting.title, unit="picture") as bar:
        for scene, cases in jobs:
            if not cases:
                continue
            picture, disparity = (each.to(device) for each in scene.load())
            band = depth_edge_band(disparity)
            given = given_as(picture, setting.kind)
            told = setting.depth.of(disparity, picture)
            for case in cases:
                truth = display_encode(case.truth((picture.shape[1], picture.shape[2])).to(device))
                shown, noted = _render(given, told, case, setting, truth)
                figures = {
                    "scene": scene.name,
                    "case": case.name,
                    "k": case.k,
                    "focus": case.focus_disparity,
                    **_compare(shown, truth, band, lpips),
                    **noted,
                }
                result.cases.append(figures)
                if pictures:
                    name = (
                        f"{scene.name}_{case.name}_{setting.title.replace(', ', '_').replace(' ', '-')}.png"
                    )
                    write_comparison(pictures / name.replace(":", "-"), shown, truth, setting.title, figures)
                bar.update()
    return result


def given_as(linear: Tensor, kind: str) -> Tensor:
    """The picture that a model is given: one of :data:`INPUTS` of linear light. Elementwise."""
    if kind == "hdr":
        return linear
    encoded = encode_8bit(linear)
    return encoded if kind == "ldr" else encoded**DISPLAY_GAMMA


def encode_8bit(linear: Tensor) -> Tensor:
    """What a camera or a model would give: clipped to 0..1, raised to 1/2.2, rounded to 8 bits. Elementwise."""
    return (display_encode(linear) * 255).round() / 255


def shift_edges(disparity: Tensor, pixels: int) -> Tensor:
    """Grey-scale dilation (``pixels`` > 0: near things grow) or erosion of disparity ``[H, W]``, over the square
    that reaches that far each way."""
    if pixels == 0:
        return disparity
    sign, reach = (1, pixels) if pixels > 0 else (-1, -pixels)
    return sign * F.max_pool2d(sign * disparity[None, None], 2 * reach + 1, stride=1, padding=reach)[0, 0]


def _render(
    given: Tensor, disparity: Tensor, case: Case, setting: Setting, truth: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """The model's picture, display-encoded ``[3, H, W]``; seconds, and a peer's best strength."""
    encoded = setting.kind == "ldr"
    lens = make_lens(case.k * setting.k_scale, case.focus_disparity, encoded, setting.highlights)

    def show(strength: float) -> Tensor:
        output = apply_model(setting.model, given, disparity, lens, strength)
        return output.clamp(0, 1) if encoded else display_encode(output)

    noted: dict[str, float] = {}
    strength = USUAL_STRENGTH
    if setting.model.startswith(PREFIX):
        strength = best_value(lambda value: psnr(show(value), truth), *STRENGTHS, trials=9)
        noted["strength"] = strength
    start = time.perf_counter()
    shown = show(strength)
    if shown.device.type == "cuda":
        torch.cuda.synchronize(shown.device)
    return shown, {"seconds": time.perf_counter() - start, **noted}


def _compare(shown: Tensor, truth: Tensor, band: Tensor, lpips: Lpips | None) -> dict[str, float | None]:
    return {
        "psnr": psnr(shown, truth),
        "edge_psnr": psnr(shown, truth, band),
        "ssim": ssim(shown, truth),
        "ssim_gauss": ssim(shown, truth, "gaussian"),
        "lpips": None if lpips is None else float(lpips(shown[None], truth[None])),
    }
