"""``python -m trainer pairs``: contrastive sets to disk, to look at or to train from many times."""

from __future__ import annotations

import argparse
import hashlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trainer.cli import UsageError
from trainer.data.jobs import BEGUN, add_job_arguments, check_job_arguments, results, same_as_begun
from trainer.data.pairs.identity import identity
from trainer.data.pairs.render import Levels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Render one scene at several K from every photograph of a data set that is all in focus. `fit` does this by "
        "itself while it trains, with new K every time; on disk the sets can be looked at, and fast training is not "
        "held up by rendering. The result is a data set too (WebDataset shards), in which the pictures of a scene "
        "follow one another; name it as data.pairs in the configuration of `fit`. Given again with the same words, "
        "it goes on where it stopped."
    )
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="folder made by `prepare`")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--levels", type=int, default=4, help="pictures of a set (default: 4)")
    parser.add_argument(
        "--variants", type=int, default=1, help="sets of a scene, each with its own K (default: 1)"
    )
    parser.add_argument(
        "--k-least",
        type=float,
        default=0.0,
        help="smallest K that is drawn, counted at 512 pixels (default: 0)",
    )
    parser.add_argument("--k-most", type=float, default=30.0, help="largest K that is drawn (default: 30)")
    parser.add_argument(
        "--sharp",
        type=float,
        default=0.1,
        help="share of the sets that hold the photograph itself (default: 0.1)",
    )
    parser.add_argument("--lens", help="lens model (default: that of the render node)")
    add_job_arguments(parser, "render")


def run(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from bokeh_ops.errors import BokehError
    from bokeh_ops.render import DEFAULT_MODEL
    from trainer.data import DatasetWriter, open_dataset

    levels = _levels(arguments)
    lens = arguments.lens or DEFAULT_MODEL
    dataset = open_dataset(arguments.dataset)
    chosen = np.flatnonzero(dataset.facts()[1]).tolist()
    if not chosen:
        raise BokehError(
            f"None of the {len(dataset)} photographs of {arguments.dataset} is all in focus, so there is nothing to "
            "render blur onto. Prepare it from more photographs taken at small apertures or short focal lengths."
        )
    settings = {
        "pairs": {
            "levels": levels.count,
            "variants": arguments.variants,
            "k": [levels.least, levels.most],
            "sharp": levels.sharp,
            "lens": lens,
            "seed": arguments.seed,
            "dataset": identity(dataset),
        }
    }
    same_as_begun(arguments.out, settings)
    writer = DatasetWriter(arguments.out, dataset.resolution, settings, arguments.samples_per_shard)
    jobs = [(index, variant) for index in chosen for variant in range(arguments.variants)]
    keys = {job: set_keys(dataset.key(job[0]), job[1], levels.count) for job in jobs}
    waiting = [job for job in jobs if not all(key in writer.keys for key in keys[job])]
    render = partial(
        _render, str(arguments.dataset), levels, lens, arguments.device, arguments.seed, arguments.picture
    )
    done = tqdm(results(render, waiting, arguments.workers), total=len(waiting), unit="set", desc="Rendering")
    for job, files in zip(waiting, done, strict=True):
        for key, content in zip(keys[job], files, strict=True):
            writer.add(key, content)
    writer.finish()
    (arguments.out / BEGUN).unlink(missing_ok=True)
    print(
        f"{len(jobs)} sets of {levels.count} pictures from {len(chosen)} photographs in {arguments.out}.",
        file=sys.stderr,
    )
    return 0


def set_keys(photograph: str, variant: int, count: int) -> list[str]:
    """Keys of the pictures of one set, at most 80 characters each."""
    ending = f"-{variant}-{count - 1}"
    if len(photograph) + len(ending) > 80:
        photograph = hashlib.sha256(photograph.encode()).hexdigest()[:40]
    return [f"{photograph}-{variant}-{level}" for level in range(count)]


def _levels(arguments: argparse.Namespace) -> Levels:
    from bokeh_ops.render import MODELS

    check_job_arguments(arguments)
    if arguments.levels < 2 or arguments.variants < 1:
        raise UsageError("--levels must be at least 2, and --variants at least 1.")
    if not 0 <= arguments.k_least < arguments.k_most < float("inf"):
        raise UsageError(
            f"K is to lie between {arguments.k_least} and {arguments.k_most}; give 0 or more, the least first."
        )
    if not 0 <= arguments.sharp <= 1:
        raise UsageError(f"--sharp is {arguments.sharp}; it is a share, 0 to 1.")
    if arguments.lens is not None and arguments.lens not in MODELS:
        raise UsageError(f"There is no lens model {arguments.lens!r}; there are {', '.join(sorted(MODELS))}.")
    return Levels(arguments.levels, arguments.k_least, arguments.k_most, arguments.sharp)


_opened: dict[str, Any] = {}


def _render(
    folder: str, levels: Levels, lens: str, device: str, seed: int, picture: str, job: tuple[int, int]
) -> list[dict[str, bytes]]:
    from bokeh_ops.camera.optics import k_at_width
    from trainer.data import encode_sample, open_dataset
    from trainer.data.pairs.render import draw_levels, focus_of, render_set
    from trainer.seeded import generator

    if folder not in _opened:
        _opened[folder] = open_dataset(folder)
    index, variant = job
    sample = _opened[folder].sample(index)
    width = max(sample.image.shape[:2])
    drawn = draw_levels(generator(seed, "pairs", index, variant), levels)
    ks = [
        float(k_at_width(k, width)) for k in drawn
    ]  # as the format counts K: at the picture's own resolution
    focus = focus_of(sample)
    return [
        encode_sample(
            image,
            sample.disparity,
            sample.mask,
            {
                "captions": list(sample.captions),
                "k": k,
                "all_in_focus": k == 0,
                "s1_m": 1 / focus if focus > 0 else None,
                "scene": sample.key,
                "rendered": lens,
            },
            picture,
        )
        for k, image in zip(ks, render_set(sample, ks, lens, device), strict=True)
    ]
