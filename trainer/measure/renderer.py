"""Compare lens models with path-traced ground truth.

DIR is a folder in the layout of BLB (info.json, image.exr, depth.exr, bokeh_00_00.exr ...), or holds such folders.
Every picture is compared after clipping to 0..1 and raising to 1/2.2. Per case and on the mean:

  psnr       dB over the picture
  edge_psnr  dB over the pixels within 15 of a jump in disparity of over 0.15 dioptre
  ssim       uniform window of 7 pixels, as scikit-image's default
  ssim_gauss Gaussian window of 11 pixels, sigma 1.5
  lpips      perceptual distance, AlexNet; lower is better
  seconds    for rendering alone

Several models, inputs or errors of depth, separated by commas, are measured one after the other.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bokeh_ops.errors import BokehError
from trainer.cli import UsageError

HELP = "lens models against ground truth in BLB layout"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``evaluate renderer`` understands."""
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a scene, or a folder of scenes")
    parser.add_argument(
        "--model",
        default="layered",
        metavar="NAME[,NAME]",
        help="a lens model of bokeh_ops.render; `unchanged` leaves the picture as it is; peer:gaussian-mix, "
        "peer:gaussian-stack-N and peer:disc-stack-N do what common depth-blur nodes do, at the strength that is best "
        "for each picture (default: layered)",
    )
    parser.add_argument(
        "--input",
        default="hdr",
        metavar="hdr|ldr|linear",
        help="what the model is given: hdr linear light as rendered; ldr clipped to 0..1, raised to 1/2.2 and "
        "rounded to 8 bits; linear the same turned back into linear light, so that it shows what decoding alone "
        "is worth (default: hdr)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write settings, versions and all figures here"
    )
    parser.add_argument(
        "--pictures", type=Path, metavar="DIR", help="write result, ground truth and error side by side here"
    )
    parser.add_argument("--cases", metavar="PATTERN", help="only these, such as 'scene_101/02_*'")
    parser.add_argument("--k-scale", type=float, default=1.0, metavar="X", help="multiply every K by this")
    parser.add_argument(
        "--highlights",
        metavar="V",
        help="how far light that the picture's white clipped is guessed back: the lens's highlight_recovery",
    )
    parser.add_argument(
        "--erode", metavar="N[,N]", help="shrink near things in the depth map by N pixels; 0 is the right map"
    )
    parser.add_argument("--dilate", metavar="N[,N]", help="grow near things in the depth map by N pixels")
    parser.add_argument(
        "--reduce",
        metavar="N[,N]",
        help="make the depth map N times smaller, as those of networks are; 1 is its size",
    )
    parser.add_argument(
        "--align",
        action="store_true",
        help="also with its edges moved to those of the picture, as the node does",
    )
    parser.add_argument("--device", default="cpu", help="where to render and compare (default: cpu)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads that the CPU may use")
    parser.add_argument(
        "--lpips-weights", type=Path, metavar="FILE", help="weights of LPIPS, if not found by themselves"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table and write what was asked for."""
    import torch

    from trainer.measure.blb import find_scenes
    from trainer.measure.device import find_device
    from trainer.measure.metrics.weights import HOW_TO_GET, load_lpips
    from trainer.measure.report import surroundings, table, write_json
    from trainer.measure.trial import COLUMNS, MEANS, Depth, Run, Setting, check_setting, measure

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    settings = [
        Setting(model, kind, Depth(shift, reduced, aligned), arguments.k_scale, arguments.highlights)
        for model in _listed(arguments.model)
        for kind in _listed(arguments.input)
        for shift in _shifts(arguments.erode, arguments.dilate)
        for reduced in _whole(arguments.reduce, "--reduce") or [1]
        for aligned in ((False, True) if arguments.align else (False,))
    ]
    try:
        for setting in settings:
            check_setting(setting)
    except BokehError as error:
        raise UsageError(str(error)) from error
    device = find_device(arguments.device)
    scenes = find_scenes(arguments.folders)
    if arguments.pictures:
        try:
            arguments.pictures.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BokehError(f"The folder for pictures cannot be made: {error}.") from error
    lpips = load_lpips(arguments.lpips_weights, device)
    if lpips is None:
        print(HOW_TO_GET, file=sys.stderr)
    runs: list[Run] = []
    for setting in settings:
        runs.append(measure(scenes, setting, lpips, device, arguments.cases, arguments.pictures))
        print(f"\n{setting.title}")
        print(table([*runs[-1].cases, runs[-1].mean], COLUMNS))
    if len(runs) > 1:
        print("\nmeans")
        print(table([{**each.setting.words, **each.mean} for each in runs], MEANS))
    if arguments.json:
        content = {
            "evaluation": "renderer",
            **surroundings("comfyui-bokeh", "OpenEXR", "numpy"),
            "device": str(device),
            "scenes": [str(scene.folder) for scene in scenes],
            "runs": [
                {"settings": each.setting.words, "cases": each.cases, "mean": each.mean} for each in runs
            ],
        }
        write_json(arguments.json, content)
        print(f"Written: {arguments.json}", file=sys.stderr)
    return 0


def _listed(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _shifts(erode: str | None, dilate: str | None) -> list[int]:
    """Pixels by which depth is dilated, negative where it is eroded; ``[0]`` unless asked."""
    shifts = [-pixels for pixels in _whole(erode, "--erode")] + _whole(dilate, "--dilate")
    return list(dict.fromkeys(shifts)) or [0]


def _whole(text: str | None, name: str) -> list[int]:
    """The numbers of an option."""
    words = _listed(text or "")
    for word in words:
        if not word.isdecimal():
            raise UsageError(f"{name} {word}: expected whole numbers, such as 1,2,4.")
    return [int(word) for word in words]
