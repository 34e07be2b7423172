"""The command ``prepare``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from bokeh_ops.errors import BokehError
from trainer.cli import INSTALL, UsageError
from trainer.data.prepare.balance import Balance
from trainer.data.prepare.settings import CROPS, DEPTH_KINDS, Settings, differences, kind_of

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
providers (--depth, --mask, --captions):
  files                    what lies beside the picture: NAME.depth.png (.tif .npy .exr),
                           NAME.mask.png (.npy), NAME.txt with a caption a line
  files:PATTERN            the same by other names: 'files:{stem}_disparity.png'
  onnx:FILE                a network; options: range=255|1|-1|imagenet, size=WxH, output=NAME
  transformers:MODEL       a model, by name or folder; options: device=cuda:0; for masks
                           labels=person+cat; for captions task=, prompt=, tokens=
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
  # four machines on one disk, then once
  torchrun --nnodes 4 ... -m trainer prepare 'shards/{000..399}.tar' --out data --shard-of env ...
  python -m trainer prepare --merge data --out data
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    default = Settings()
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="the photographs; left out with --merge")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the data set")

    group = parser.add_argument_group("annotation")
    group.add_argument(
        "--depth", default=default.depth, metavar="PROVIDER", help="where depth is from (%(default)s)"
    )
    group.add_argument(
        "--depth-kind",
        choices=DEPTH_KINDS,
        help="what its values mean, which nobody can guess: metric (distance; far is large), disparity (one over "
        "distance; near is large), inverted (0 near to 1 far), model (what a model of transformers says itself; "
        "the default for these). Required for others",
    )
    group.add_argument(
        "--depth-scale",
        type=float,
        default=1.0,
        metavar="X",
        help="metres at value 1 for metric, dioptres at value 1 otherwise (%(default)s); the value of white is 1 in "
        "8- and 16-bit pictures",
    )
    group.add_argument(
        "--depth-offset", type=float, default=0.0, metavar="D", help="dioptres to be added (%(default)s)"
    )
    group.add_argument(
        "--depth-normalise",
        action="store_true",
        help="stretch each map to 0..1 first, for depth without units; K is then only as right as --depth-scale",
    )
    group.add_argument(
        "--mask", default=default.mask, metavar="PROVIDER", help="where the foreground is from (%(default)s)"
    )
    group.add_argument(
        "--captions",
        action="append",
        metavar="PROVIDER",
        help="where captions are from; give it several times to have all (files)",
    )
    group.add_argument(
        "--source-name", metavar="TEXT", help="noted as the source of photographs that tell none"
    )
    group.add_argument("--licence", metavar="TEXT", help="noted as the licence of photographs that tell none")

    group = parser.add_argument_group("picture")
    group.add_argument(
        "--resolution", default="512", metavar="N or WxH", help="of training, in pixels (%(default)s)"
    )
    group.add_argument(
        "--crop",
        choices=CROPS,
        default=default.crop,
        help="the crop is put over the foreground, or in the middle (%(default)s)",
    )
    group.add_argument(
        "--picture",
        choices=("jpg", "png"),
        default=default.picture,
        help="format of the pictures (%(default)s)",
    )

    group = parser.add_argument_group("focus")
    group.add_argument(
        "--nearest",
        type=float,
        default=default.nearest,
        metavar="SHARE",
        help="the focus is at the median distance of this nearest share of the foreground (%(default)s)",
    )
    group.add_argument(
        "--flat",
        type=float,
        default=default.flat,
        metavar="RATIO",
        help="a foreground that is no deeper than this (far distance over near) is at one distance (%(default)s)",
    )
    group.add_argument(
        "--subject-distance",
        action="store_true",
        help="where the camera wrote SubjectDistance, believe it instead; its scale must be that of the depth",
    )
    group.add_argument(
        "--sharp-radius",
        type=float,
        default=default.sharp_radius,
        metavar="PX",
        help="all in focus is what has a blur radius up to this in 95 %% of the picture (%(default)s)",
    )
    group.add_argument(
        "--sharp-exposure",
        type=float,
        default=default.sharp_exposure,
        metavar="S",
        help="and was exposed no longer than this, where that is known (%(default)s)",
    )

    group = parser.add_argument_group("filters")
    group.add_argument(
        "--smartphones",
        choices=("reject", "keep"),
        default="reject",
        help="phones compute blur, and hardly have any of their own (%(default)s)",
    )
    for name, unit, text in (
        ("min-foreground", "SHARE", "least share of the crop that is foreground"),
        ("max-foreground", "SHARE", "most"),
        ("min-depth-range", "D", "least depth of the crop, dioptres, from its 2nd to its 98th percentile"),
        ("max-k", "K", "largest K"),
        ("max-aspect", "RATIO", "longest shape; beyond are panoramas"),
        (
            "max-megapixels",
            "MP",
            "largest picture to be decoded; baseline JPEGs may have eight times as many",
        ),
    ):
        value = getattr(default, name.replace("-", "_"))
        group.add_argument(f"--{name}", type=float, default=value, metavar=unit, help=f"{text} (%(default)s)")
    group.add_argument(
        "--min-side",
        type=int,
        default=0,
        metavar="PX",
        help="least short side; smaller than the resolution means enlarging (that of the resolution)",
    )

    group = parser.add_argument_group("balance over K")
    group.add_argument("--bins", type=int, default=Balance.bins, metavar="N", help="of K (%(default)s)")
    group.add_argument(
        "--per-bin",
        type=int,
        metavar="N",
        help="most photographs of a bin, 0 for any number; by default twice the median, and at least "
        f"{Balance.at_least}",
    )
    group.add_argument(
        "--sharp-share",
        type=float,
        metavar="SHARE",
        help="most of all that is all in focus, such as 0.1; by default a bin like the others",
    )

    group = parser.add_argument_group("running")
    group.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes, each with models of its own (%(default)s); 0: none but this, for searching errors",
    )
    group.add_argument(
        "--shard-of",
        default="0/1",
        metavar="I/N",
        help="look at share I of N only, from 0; `env` takes both from torchrun, SLURM, MPI or Kubernetes. --merge "
        "makes the data set afterwards",
    )
    group.add_argument(
        "--merge",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="make one data set of what was looked at in these folders",
    )
    group.add_argument(
        "--timeout", type=float, default=300.0, metavar="S", help="for one photograph (%(default)s)"
    )
    group.add_argument(
        "--memory",
        type=float,
        default=8.0,
        metavar="GIB",
        help="for one process, models included (%(default)s)",
    )
    group.add_argument(
        "--piece", type=int, default=64, metavar="N", help="save after so many photographs (%(default)s)"
    )
    group.add_argument(
        "--samples-per-shard", type=int, default=256, metavar="N", help="in the data set (%(default)s)"
    )
    group.add_argument(
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
    if arguments.source is not None and not (arguments.out / "work").exists():
        from trainer.data.prepare.lacking import what_is_lacking

        captions = arguments.captions or ["files"]
        words = {"depth": [arguments.depth], "mask": [arguments.mask], "captions": captions}
        if lacking := what_is_lacking(arguments.source, arguments.out, words):
            raise UsageError(lacking)

    from trainer.data.prepare import pipeline

    try:
        plan = _plan(arguments)
        settings = None if arguments.merge else _settings(arguments)
    except BokehError as error:
        raise UsageError(str(error)) from error
    if _is_final(arguments.out, settings):
        print(f"{arguments.out} was finished already, and its work folder removed.")
        return 0
    if settings is not None:
        seen = pipeline.look_at_source(arguments.source, arguments.out, settings, plan)
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
    arguments.depth_kind = kind_of(arguments.depth, arguments.depth_kind)
    if arguments.depth_kind is None:
        raise UsageError(
            f"--depth-kind is missing: say what the depth's values mean, one of {', '.join(DEPTH_KINDS)}, and "
            "--depth-scale, in which units."
        )
    sides = arguments.resolution.lower().split("x")
    if len(sides) not in (1, 2) or not all(side.isdigit() for side in sides):
        raise UsageError(f"--resolution is {arguments.resolution!r}; write 512 or 768x512.")
    captions = tuple(arguments.captions or ["files"])
    if "none" in captions and len(captions) > 1:
        raise UsageError("--captions none excludes others.")
    same = (
        "crop picture depth depth_kind depth_scale depth_offset depth_normalise mask nearest flat subject_distance "
        "min_foreground max_foreground min_depth_range max_k sharp_radius sharp_exposure min_side max_aspect "
        "max_megapixels licence"
    )
    return Settings(
        resolution=(int(sides[0]), int(sides[-1])),
        captions=captions,
        smartphones=arguments.smartphones == "keep",
        source=arguments.source_name,
        **{name: getattr(arguments, name) for name in same.split()},
    )


def _plan(arguments: argparse.Namespace):
    from trainer.data.prepare.pipeline import Plan, Share
    from trainer.data.prepare.pool import Limits

    for name, least in (("workers", 0), ("piece", 1), ("samples_per_shard", 1), ("bins", 1), ("timeout", 1)):
        if getattr(arguments, name) < least:
            raise UsageError(
                f"--{name.replace('_', '-')} is {getattr(arguments, name)}; it must be at least {least}."
            )
    if arguments.per_bin is not None and arguments.per_bin < 0:
        raise UsageError(f"--per-bin is {arguments.per_bin}; it must be 0 or more.")
    if arguments.sharp_share is not None and not 0 <= arguments.sharp_share <= 1:
        raise UsageError(f"--sharp-share is {arguments.sharp_share}; it is a share, 0 to 1.")
    if arguments.shard_of == "env":
        share = Share.from_environment()
    else:
        part, slash, parts = arguments.shard_of.partition("/")
        if not (slash and part.isdigit() and parts.isdigit()):
            raise UsageError(f"--shard-of is {arguments.shard_of!r}; write I/N, such as 0/4, or env.")
        share = Share(int(part), int(parts))
    return Plan(
        workers=arguments.workers,
        limits=Limits(arguments.timeout, int(arguments.memory * 2**30)),
        piece=arguments.piece,
        samples_per_shard=arguments.samples_per_shard,
        balance=Balance(arguments.bins, arguments.per_bin, sharp_share=arguments.sharp_share),
        share=share,
    )


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
