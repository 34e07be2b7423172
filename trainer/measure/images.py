"""Measure folders of sweeps: pictures of one scene that should differ only in how blurred they are.

DIR has a folder for each scene, and in it pictures named by K (12.png, k12.5.png) or f-number (f2.8.png), or listed
in a sweep.json. Several DIRs are measured one after the other. Per scene, and on the mean with its 95 % confidence
interval over scenes:

  lvcorr          correlation of the Laplacian variance with the reference's; 1 is best (levels)
  lvcorr_diff     the same for differences between neighbours in K
  lv_rank         rank correlation of the blur asked for with lost sharpness; needs no reference
  monotonic       share of neighbours whose energy falls as blur grows; best is what the reference has (monotonic_ref)
  monotonic_even  the same for pictures brought to one brightness, which darkening cannot fake
  lpips           mean distance between the pictures; best is what the reference has (lpips_ref), not 0
  lpips_next      mean distance between neighbours
  content         share of pixels whose class stays the same (with --segmenter)
  drift_L         largest difference of mean L*
  drift_ab        largest distance of mean a*, b*
  focus_dE        mean colour difference to the pivot, or the sharpest picture, where the sweep says it is in focus;
                  best is the reference's (focus_dE_ref)
  sharper         share of scenes whose sharpness falls with every step of blur up to the pivot (where it is named)
  blurrier        the same from the pivot on
  ordered         share of scenes where both hold
  judge_corr      correlation of a judge's strengths with the blur asked for (with --judge-url)
  judge_same      how much the scene stays the same in the judge's eyes, 0 to 100
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bokeh_ops.errors import BokehError
from trainer.cli import UsageError

if TYPE_CHECKING:
    from trainer.measure.judge import Judge

HELP = "folders of sweeps: control, consistency, drift"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``evaluate images`` understands."""
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="a folder of scenes, or one scene"
    )
    add_measuring(parser)


def add_measuring(parser: argparse.ArgumentParser) -> None:
    """How sweeps are measured."""
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="DIR",
        help="the same scenes at the same values, as they should look",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write settings, versions and all figures here"
    )
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw trends and figures into this folder")
    parser.add_argument(
        "--segmenter",
        metavar="NAME",
        help="module:function, or an .onnx file (docs/evaluate.md says what they do)",
    )
    parser.add_argument(
        "--content-limit",
        type=float,
        metavar="V",
        help="content and lpips_next only up to this K, or from this f-number on (default: 4 for f-numbers, else all)",
    )
    parser.add_argument(
        "--lpips-weights", type=Path, metavar="FILE", help="weights of LPIPS, if not found by themselves"
    )
    parser.add_argument("--device", default="cpu", help="where LPIPS is computed (default: cpu)")
    judge = parser.add_argument_group("a vision-language model as a judge")
    judge.add_argument(
        "--judge-url", metavar="URL", help="an OpenAI-compatible endpoint, such as http://localhost:8000/v1"
    )
    judge.add_argument("--judge-model", metavar="NAME", help="the model's name there")
    judge.add_argument(
        "--judge-key-variable",
        default="OPENAI_API_KEY",
        metavar="NAME",
        help="environment variable that holds the key (default: OPENAI_API_KEY); none is sent where it is not set",
    )
    judge.add_argument(
        "--judge-log", type=Path, metavar="FILE", help="keep answers here, and do not ask them again"
    )
    judge.add_argument(
        "--judge-most", type=float, default=30, metavar="K", help="end of the judge's scale (default: 30)"
    )
    judge.add_argument(
        "--judge-extra",
        default='{"temperature": 0}',
        metavar="JSON",
        help='what else to put into the request (default: {"temperature": 0})',
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the tables and write what was asked for."""
    return measure(arguments, "images", {})


def measure(arguments: argparse.Namespace, evaluation: str, more: dict[str, Any]) -> int:
    """Measure sweeps that are there.

    Args:
        arguments: of :func:`add_measuring`, and ``folders``.
        evaluation: what to call it in the JSON file.
        more: settings to note there.
    """
    from tqdm import tqdm

    from trainer.measure.device import find_device
    from trainer.measure.metrics.weights import HOW_TO_GET, load_lpips
    from trainer.measure.report import surroundings, table, write_json
    from trainer.measure.segment import load_segmenter
    from trainer.measure.sweep_measures import COLUMNS, FIGURES, measure_sweep, summarise
    from trainer.measure.sweeps import find_sweeps, match_reference

    judge = _judge(arguments)
    runs = [(folder, find_sweeps(folder)) for folder in arguments.folders]
    references = find_sweeps(arguments.reference) if arguments.reference else None
    matched = [
        [(sweep, match_reference(sweep, references) if references else None) for sweep in sweeps]
        for _, sweeps in runs
    ]
    segmenter = load_segmenter(arguments.segmenter) if arguments.segmenter else None
    lpips = load_lpips(arguments.lpips_weights, find_device(arguments.device))
    if lpips is None:
        print(HOW_TO_GET, file=sys.stderr)
    content: list[dict[str, Any]] = []
    for (folder, _), pairs in zip(runs, matched, strict=True):
        scenes = []
        for sweep, reference in tqdm(pairs, desc=str(folder), unit="scene"):
            limit = arguments.content_limit
            if limit is None and sweep.kind == "f_number":
                limit = 4.0
            scenes.append(
                measure_sweep(sweep, reference, lpips, segmenter, judge, limit, arguments.judge_most)
            )
            if "judge_error" in scenes[-1]:
                print(f"{sweep.name}: {scenes[-1]['judge_error']}", file=sys.stderr)
        content.append({"folder": str(folder), "scenes": scenes, "summary": summarise(scenes)})
        shown = {
            name: spec
            for name, spec in COLUMNS.items()
            if name not in FIGURES or any(scene.get(name) is not None for scene in scenes)
        }
        ends = [
            {"scene": label, **{name: interval[i] for name, interval in content[-1]["summary"].items()}}
            for i, label in enumerate(("mean", "95 % from", "95 % to"))
        ]
        print(f"\n{folder}")
        print(table([*scenes, *ends], shown))
    if len(content) > 1:
        print("\nmeans")
        rows = [{"scene": run["folder"], **{k: v.mean for k, v in run["summary"].items()}} for run in content]
        print(table(rows, {name: spec for name, spec in COLUMNS.items() if name != "pictures"}))
    if arguments.plots:
        from trainer.measure.plots import plot_sweeps

        for path in plot_sweeps(content, arguments.plots):
            print(f"Written: {path}", file=sys.stderr)
    if arguments.json:
        settings = {
            **more,
            "reference": arguments.reference,
            "segmenter": arguments.segmenter,
            "content_limit": arguments.content_limit,
            "judge": {
                "url": arguments.judge_url,
                "model": arguments.judge_model,
                "most": arguments.judge_most,
            }
            if judge
            else None,
        }
        for run_ in content:
            run_["summary"] = {name: interval._asdict() for name, interval in run_["summary"].items()}
        write_json(
            arguments.json,
            {
                "evaluation": evaluation,
                **surroundings("comfyui-bokeh", "numpy"),
                "settings": settings,
                "runs": content,
            },
        )
        print(f"Written: {arguments.json}", file=sys.stderr)
    return 0


def _judge(arguments: argparse.Namespace) -> Judge | None:
    if not arguments.judge_url:
        if arguments.judge_model or arguments.judge_log:
            raise UsageError("A judge needs --judge-url as well.")
        return None
    if not arguments.judge_model:
        raise UsageError("--judge-url needs --judge-model: the name of the model at that endpoint.")
    from trainer.measure.judge import Judge

    try:
        extra = json.loads(arguments.judge_extra)
        if not isinstance(extra, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise UsageError(f"--judge-extra is not a JSON object: {error}.") from error
    try:
        return Judge(
            arguments.judge_url,
            arguments.judge_model,
            os.environ.get(arguments.judge_key_variable, ""),
            extra,
            log=arguments.judge_log,
        )
    except BokehError as error:
        raise UsageError(str(error)) from error
