"""``python -m trainer synthesize``: scenes of tilted planes at several apertures, to disk."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.cli import UsageError
from trainer.data.jobs import BEGUN, add_job_arguments, check_job_arguments, results, same_as_begun

if TYPE_CHECKING:
    from trainer.synthesis.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from trainer.synthesis.settings import Settings

    usual = Settings()
    parser.description = (
        "Make scenes to train a lens on: a background and one to three foregrounds with fine edges, each on a tilted "
        "plane, traced through a thin lens at several K. All is drawn unless pictures are given. The result is a data "
        "set (WebDataset shards) with exact disparity, in which the pictures of a scene follow one another, the one "
        "that is all in focus first. Given again with the same words, it goes on where it stopped."
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--scenes", type=int, default=100, help="how many (default: 100)")
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        default=[usual.width],
        metavar="PIXELS",
        help=f"width and height of the pictures; one number makes them square (default: {usual.width})",
    )
    parser.add_argument(
        "--levels",
        type=int,
        default=usual.levels,
        help=f"pictures of a scene, among them one at K = 0 (default: {usual.levels})",
    )
    parser.add_argument(
        "--k-least",
        type=float,
        default=usual.k[0],
        help="smallest K beside 0, counted at 512 pixels (default: 0)",
    )
    parser.add_argument("--k-most", type=float, default=usual.k[1], help="largest K (default: 30)")
    parser.add_argument(
        "--foregrounds",
        nargs="+",
        action="extend",
        metavar="FROM",
        help="folders of pictures with transparency, data sets made by `prepare` (cut out by their masks), and the "
        "word procedural (hair, fur, grass, leaves and lattices; the default). Each is as likely as the others",
    )
    parser.add_argument(
        "--backgrounds",
        nargs="+",
        action="extend",
        metavar="FROM",
        help="folders of photographs, data sets, and the words procedural (the default) and world (the small world)",
    )
    parser.add_argument(
        "--planes",
        type=int,
        nargs=2,
        default=usual.foregrounds,
        metavar=("LEAST", "MOST"),
        help="foregrounds of a scene (default: 1 3)",
    )
    parser.add_argument(
        "--disparity",
        type=float,
        nargs=2,
        default=usual.disparity,
        metavar=("LEAST", "MOST"),
        help="of the planes in their middle, in dioptres (default: 0.1 2.5)",
    )
    parser.add_argument(
        "--tilt",
        type=float,
        default=usual.tilt,
        help="largest change of a plane's disparity over the picture, as a share of that in its middle (default: 0.8)",
    )
    parser.add_argument("--rays", type=int, default=usual.rays, help=f"of a pixel (default: {usual.rays})")
    add_job_arguments(parser, "trace")


def run(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from trainer.data import DatasetWriter
    from trainer.synthesis.sources import source_identity

    settings = _settings(arguments)
    told = {
        name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()
    }
    # Not their paths, which may change, but what is in them.
    told["front"] = [source_identity(source, True) for source in settings.front]
    told["back"] = [source_identity(source, False) for source in settings.back]
    made = {
        "synthesis": {
            **told,
            "scenes": arguments.scenes,
            "seed": arguments.seed,
            "picture": arguments.picture,
        }
    }
    same_as_begun(arguments.out, made)
    size = settings.width, settings.height
    writer = DatasetWriter(arguments.out, size, made, arguments.samples_per_shard)
    keys = [
        [f"{_name(index)}-{level}" for level in range(settings.levels)] for index in range(arguments.scenes)
    ]
    waiting = [index for index, own in enumerate(keys) if not all(key in writer.keys for key in own)]
    work = partial(_synthesized, arguments.seed, settings, arguments.device, arguments.picture)
    done = tqdm(results(work, waiting, arguments.workers), total=len(waiting), unit="scene", desc="Tracing")
    for index, files in zip(waiting, done, strict=True):
        for key, content in zip(keys[index], files, strict=True):
            writer.add(key, content)
    writer.finish()
    (arguments.out / BEGUN).unlink(missing_ok=True)
    print(f"{arguments.scenes} scenes of {settings.levels} pictures in {arguments.out}.", file=sys.stderr)
    return 0


def _settings(arguments: argparse.Namespace) -> Settings:
    from bokeh_ops.errors import BokehError
    from trainer.synthesis.settings import PROCEDURAL, Settings

    check_job_arguments(arguments)
    if arguments.scenes < 1:
        raise UsageError(f"--scenes is {arguments.scenes}; it must be at least 1.")
    if len(arguments.size) > 2:
        raise UsageError(f"--size has {len(arguments.size)} numbers; give width and height, or one for both.")
    try:
        return Settings(
            width=arguments.size[0],
            height=arguments.size[-1],
            foregrounds=tuple(arguments.planes),
            disparity=tuple(arguments.disparity),
            tilt=arguments.tilt,
            k=(arguments.k_least, arguments.k_most),
            levels=arguments.levels,
            rays=arguments.rays,
            front=tuple(arguments.foregrounds or (PROCEDURAL,)),
            back=tuple(arguments.backgrounds or (PROCEDURAL,)),
        )
    except BokehError as error:
        raise UsageError(str(error)) from error


def _name(index: int) -> str:
    return f"scene-{index:06d}"


def _synthesized(
    seed: int, settings: Settings, device: str, picture: str, index: int
) -> list[dict[str, bytes]]:
    """The samples of a scene, as files."""
    from trainer.data import encode_sample
    from trainer.synthesis.scene import rendered, scene

    drawn = scene(seed, index, settings)
    pictures = rendered(drawn, rays=settings.rays, device=device)
    disparity, alpha = pictures.disparity.cpu().numpy(), pictures.alpha.cpu().numpy()
    info: dict[str, Any] = {
        "captions": [drawn.caption],
        "s1_m": 1 / drawn.focus,
        "scene": _name(index),
        "focused": drawn.focused,
        "rendered": "traced planes",
    }
    return [
        encode_sample(image, disparity, alpha, {**info, "k": k, "all_in_focus": k == 0}, picture)
        for k, image in zip(drawn.ks, pictures.blurred.cpu().numpy(), strict=True)
    ]
