"""Compare lens models with photographs: pairs like those of EBB!, sharp and with a wide aperture.

DIR has the folders original, bokeh and disparity, with pictures of the same names in each. Nothing is known of the
lens, so, as is usual for this data (BokehDiff, supplement):

  exposure  the sharp picture is brought to the mean of its ground truth
  disparity is stretched to 0..1
  focus     is the disparity at which the ground truth kept most detail, or what --focus says
  K         is the one with the best ssim, searched for each picture and model

Per picture and on the mean: psnr, ssim, ssim_gauss and lpips as in `evaluate renderer`, and the K found, in pixels of
blur radius over the whole depth of the scene.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bokeh_ops.errors import BokehError
from trainer.cli import UsageError

if TYPE_CHECKING:
    from trainer.measure.pair_files import Pair

HELP = "lens models against pairs of photographs, as in EBB!"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``evaluate pairs`` understands."""
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="with the folders original, bokeh and disparity"
    )
    parser.add_argument(
        "--model",
        default="layered",
        metavar="NAME[,NAME]",
        help="as for `evaluate renderer` (default: layered)",
    )
    parser.add_argument(
        "--inverted", action="store_true", help="far is bright in the maps of the folder disparity"
    )
    parser.add_argument(
        "--focus", type=Path, metavar="FILE", help="JSON: from name to the disparity in focus, 0 to 1"
    )
    parser.add_argument("--side", type=int, metavar="N", help="reduce pictures to this longest side first")
    parser.add_argument(
        "--k-range",
        default="1,100",
        metavar="LOW,HIGH",
        help="where K is searched, in pixels (default: 1,100)",
    )
    parser.add_argument(
        "--trials", type=int, default=9, metavar="N", help="renderings to find K with (default: 9)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write settings, versions and all figures here"
    )
    parser.add_argument(
        "--pictures", type=Path, metavar="DIR", help="write result, ground truth and error here"
    )
    parser.add_argument("--device", default="cpu", help="where to render and compare (default: cpu)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads that the CPU may use")
    parser.add_argument(
        "--lpips-weights", type=Path, metavar="FILE", help="weights of LPIPS, if not found by themselves"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the tables and write what was asked for."""
    import torch

    from trainer.measure.device import find_device
    from trainer.measure.metrics.weights import HOW_TO_GET, load_lpips
    from trainer.measure.models import check_model
    from trainer.measure.pair_files import find_pairs
    from trainer.measure.report import mean, surroundings, table, write_json

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    models = [word.strip() for word in arguments.model.split(",") if word.strip()]
    try:
        for model in models:
            check_model(model)
    except BokehError as error:
        raise UsageError(str(error)) from error
    bounds = _bounds(arguments.k_range)
    if arguments.trials < 2:
        raise UsageError(f"--trials {arguments.trials}: a search takes at least 2.")
    device = find_device(arguments.device)
    pairs = find_pairs(arguments.folder)
    focus = _focus(arguments.focus, pairs)
    if arguments.pictures:
        try:
            arguments.pictures.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BokehError(f"The folder for pictures cannot be made: {error}.") from error
    lpips = load_lpips(arguments.lpips_weights, device)
    if lpips is None:
        print(HOW_TO_GET, file=sys.stderr)
    runs = []
    for model in models:
        rows = _measure(pairs, model, focus, bounds, lpips, device, arguments)
        means = {"name": "mean", **{name: mean([row[name] for row in rows]) for name in _FIGURES}}
        runs.append({"settings": {"model": model}, "pictures": rows, "mean": means})
        print(f"\n{model}")
        print(table([*rows, means], {"name": "", "focus": ".3f", **_FIGURES}))
    if len(runs) > 1:
        print("\nmeans")
        print(
            table(
                [{**each["mean"], "name": each["settings"]["model"]} for each in runs],
                {"name": "", **_FIGURES},
            )
        )
    if arguments.json:
        settings = {
            "inverted": arguments.inverted,
            "side": arguments.side,
            "k_range": bounds,
            "trials": arguments.trials,
            "focus": arguments.focus,
        }
        content = {
            "evaluation": "pairs",
            **surroundings("comfyui-bokeh", "numpy"),
            "settings": settings,
            "runs": runs,
        }
        write_json(arguments.json, content)
        print(f"Written: {arguments.json}", file=sys.stderr)
    return 0


_FIGURES = {"k": ".2f", "psnr": ".2f", "ssim": ".4f", "ssim_gauss": ".4f", "lpips": ".4f", "seconds": ".3f"}


def _measure(
    pairs: list[Pair],
    model: str,
    focus: dict[str, float],
    bounds: tuple[float, float],
    lpips: Any,
    device: Any,
    arguments: argparse.Namespace,
) -> list[dict[str, Any]]:
    import time

    import torch
    from tqdm import tqdm

    from trainer.measure.lens import make_lens
    from trainer.measure.metrics import psnr, ssim
    from trainer.measure.models import UNCHANGED, apply_model
    from trainer.measure.pair_files import align_mean, focus_of
    from trainer.measure.pictures import write_comparison
    from trainer.measure.search import best_value

    rows = []
    for pair in tqdm(pairs, desc=model, unit="picture"):
        original, truth, disparity = (
            each.to(device) for each in pair.load(arguments.side, arguments.inverted)
        )
        given = align_mean(original, truth)
        at = focus.get(pair.name, math.nan)
        if math.isnan(at):
            at = focus_of(original, truth, disparity)

        def show(k: float, given=given, disparity=disparity, at=at) -> torch.Tensor:
            return apply_model(model, given, disparity, make_lens(k, at, encoded=True)).clamp(0, 1)

        k = 0.0
        if model != UNCHANGED:
            k = best_value(
                lambda value, show=show, truth=truth: ssim(show(value), truth), *bounds, arguments.trials
            )
        start = time.perf_counter()
        shown = show(k)
        if shown.device.type == "cuda":
            torch.cuda.synchronize(shown.device)
        row = {"name": pair.name, "focus": at, "k": k, "seconds": time.perf_counter() - start}
        row |= {
            "psnr": psnr(shown, truth),
            "ssim": ssim(shown, truth),
            "ssim_gauss": ssim(shown, truth, "gaussian"),
        }
        row["lpips"] = None if lpips is None else float(lpips(shown[None], truth[None]))
        rows.append(row)
        if arguments.pictures:
            path = arguments.pictures / f"{pair.name}_{model.replace(':', '-')}.png"
            write_comparison(path, shown, truth, model, {"scene": pair.name, "case": f"K {k:.1f}", **row})
    return rows


def _bounds(text: str) -> tuple[float, float]:
    try:
        low, high = (float(word) for word in text.split(","))
    except ValueError as error:
        raise UsageError(f"--k-range {text}: expected two numbers, such as 1,100.") from error
    if not 0 < low < high < math.inf:
        raise UsageError(f"--k-range {text}: expected a number above 0 and a larger one.")
    return low, high


def _focus(path: Path | None, pairs: list[Pair]) -> dict[str, float]:
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BokehError(f"{path} cannot be read as JSON: {error}.") from error
    names = {pair.name for pair in pairs}
    good = isinstance(content, dict) and set(content) <= names
    if not good or not all(isinstance(v, (int, float)) and 0 <= v <= 1 for v in content.values()):
        raise BokehError(f"{path}: expected an object from names of pictures to disparities from 0 to 1.")
    return content
