"""The command ``prepare``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from bokeh_ops.errors import BokehError
from trainer.cli import INSTALL, UsageError
from trainer.data.prepare.lacking import what_is_lacking
from trainer.data.prepare.settings import (
    DEPTH_KINDS,
    GROUPS,
    Balance,
    Limits,
    Plan,
    Settings,
    differences,
    kind_of,
)
from trainer.options import add_options, from_arguments

_DESCRIPTION = """\
Makes an annotated data set of photographs, which `python -m trainer fit` trains on: each with its
depth, foreground, captions, the distance it is focused at, and K (blur radius in pixels per dioptre,
by eq. 9 of Bokeh Diffusion) at the training resolution.

SOURCE is a folder of photographs (JPEG, TIFF, PNG, HEIC, AVIF, WebP), a list (.txt of paths, .jsonl of
objects with "image"), a .parquet file with the fields of the Bokeh Diffusion data set, .tar files in
WebDataset layout, or a pattern such as 'shards/photos-{000..099}.tar'.

A photograph that is not taken is noted in DIR/rejected.jsonl with the reason. DIR/report/report.html
shows what was kept: look at it before training. The command may be stopped or killed at any time; the
same command goes on where it stopped.
"""

_EPILOG = """\
providers (--depth, --mask, --captions, --captions-else, --blur, --photograph):
  files                    what lies beside the picture: NAME.depth.png (.tif .npy .exr),
                           NAME.mask.png (.npy), NAME.txt with a caption a line; answers are the
                           fields `blur` and `photograph`
  files:PATTERN            the same by other names: 'files:{stem}_disparity.png'
  onnx:FILE                a network; options: range=255|1|-1|imagenet, size=WxH, output=NAME
  transformers:MODEL       a model, by name or folder; options: device=cuda:0; for masks
                           labels=person+cat; for captions task=, prompt=, tokens=; for answers
                           'no blur=LABEL+LABEL', 'desired blur=', 'yes=', or
                           task=image-text-to-text, prompt=
  python:MODULE:FUNCTION   your own, called with trainer.data.prepare.providers.Photograph
  nearest[:,ratio=1.5]     (mask) whatever is no farther than 1.5 times the nearest distance. It is
                           not a mask, only a stand-in
  none                     (captions) train without

examples:
  # maps and captions made beforehand, depth in millimetres in 16-bit PNGs
  python -m trainer prepare photos --out data --depth-kind metric --depth-scale 65.535
  # metric depth and captions by models, on one GPU
  python -m trainer prepare photos --out data --workers 1 \\
      --depth transformers:depth-anything/Depth-Anything-V2-Metric-Outdoor-Large-hf,device=cuda:0 \\
      --mask onnx:birefnet.onnx,range=imagenet \\
      --captions transformers:Salesforce/blip-image-captioning-large,device=cuda:0
  # one pool, two sets of which no photograph is in both
  python -m trainer prepare pool --out deep --set deep --blur transformers:blur-classifier ...
  python -m trainer prepare pool --out shallow --set shallow --blur transformers:blur-classifier ...
  # four machines on one disk, then once
  torchrun --nnodes 4 ... -m trainer prepare 'shards/{000..399}.tar' --out data --shard-of env ...
  python -m trainer prepare --merge data --out data
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="the photographs; left out with --merge")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the data set")
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    for kind in (Settings, Balance, Limits, Plan):
        add_options(groups, kind)
    groups["running"].add_argument(
        "--merge",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="make one data set of what was looked at in these folders",
    )
    groups["running"].add_argument(
        "--discard-work",
        action="store_true",
        help="remove DIR/work at the end, which holds every accepted photograph once more; then the data set can be "
        "neither extended nor balanced anew",
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    try:
        return _run(arguments)
    except ModuleNotFoundError as error:
        raise BokehError(
            f"The package {error.name!r}, which this needs, is not installed. Install what training needs, in the "
            f"folder of this extension: {INSTALL}"
        ) from error


def _run(arguments: argparse.Namespace) -> int:
    if (arguments.source is None) == (arguments.merge is None):
        raise UsageError("Give either a SOURCE, or --merge with the folders to bring together.")
    try:
        settings = None if arguments.merge else _settings(arguments)
        balance, limits = from_arguments(Balance, arguments), from_arguments(Limits, arguments)
        plan = from_arguments(Plan, arguments, balance=balance, limits=limits)
    except BokehError as error:
        raise UsageError(str(error)) from error
    from trainer.data.prepare import pipeline

    if _is_final(arguments.out, settings):
        print(f"{arguments.out} was finished already, and its work folder removed.")
        return 0
    if settings is not None:
        seen = pipeline.look_at_source(str(arguments.source), arguments.out, settings, plan)
        if plan.share.parts > 1:
            print(
                f"{seen} photographs of share {plan.share.part}/{plan.share.parts} are looked at. When all shares are: "
                f"python -m trainer prepare --merge {arguments.out} --out {arguments.out}"
            )
            return 0
    result = pipeline.make_dataset(arguments.merge or [arguments.out], arguments.out, plan)
    if arguments.discard_work:
        _discard(arguments.merge or [arguments.out])
    state = "was finished already" if result.unchanged else "is finished"
    print(
        f"{arguments.out} {state}: {len(result.kept)} of {result.seen} photographs. "
        f"Look at {arguments.out / 'report' / 'report.html'} before training.{pipeline.trouble(result)}"
    )
    return 0


def _settings(arguments: argparse.Namespace) -> Settings:
    settings = from_arguments(Settings, arguments, depth_kind=DEPTH_KINDS[0])
    words = {"depth": [settings.depth], "mask": [settings.mask], "captions": settings.captions}
    if settings.captions_else is not None:
        words["captions-else"] = [settings.captions_else]
    if not (arguments.out / "work").exists() and (
        lacking := what_is_lacking(arguments.source, arguments.out, words)
    ):
        raise UsageError(lacking)
    kind = kind_of(settings.depth, arguments.depth_kind)
    if kind is None:
        raise UsageError(
            f"--depth-kind is missing: say what the depth's values mean, one of {', '.join(DEPTH_KINDS)}, and "
            "--depth-scale, in which units."
        )
    return replace(settings, depth_kind=kind)


def _is_final(out: Path, settings: Settings | None) -> bool:
    """Whether it is a data set that nothing can be added to, as asked for."""
    from trainer.data import open_dataset

    if not (out / "dataset.json").exists() or (out / "work").exists():
        return False
    made = open_dataset(out).settings
    changed = (
        differences({name: made.get(name) for name in settings.to_json()}, settings.to_json())
        if settings
        else []
    )
    if changed or settings is None:
        raise BokehError(
            "\n  ".join(
                [
                    f"{out} is a finished data set, its work folder removed; choose another --out.",
                    *changed,
                ]
            )
        )
    return True


def _discard(folders: list[Path]) -> None:
    import shutil

    for folder in folders:
        shutil.rmtree(folder / "work")
