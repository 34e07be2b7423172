"""What commands have in common that make a data set job by job, in several processes, and go on where they stopped."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from trainer.cli import UsageError

Job = TypeVar("Job")
Result = TypeVar("Result")

BEGUN = "begun.json"
"""Beside the shards while the data set is being made: the settings that it was begun with."""


def add_job_arguments(parser: argparse.ArgumentParser, device: str) -> None:
    """The arguments of such a command.

    Args:
        parser: of the command.
        device: what it is for, in a word or two.
    """
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--device", default="cpu", help=f"where to {device}, such as cuda (default: cpu)")
    parser.add_argument(
        "--picture", choices=("png", "jpg"), default="png", help="how pictures are kept (default: png)"
    )
    parser.add_argument("--samples-per-shard", type=int, default=256, help=argparse.SUPPRESS)


def check_job_arguments(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be.

    Raises:
        UsageError: fewer than one process, a seed below 0, or a device that is not there.
    """
    from trainer.measure.device import find_device

    if arguments.workers < 1:
        raise UsageError(f"--workers is {arguments.workers}; it must be at least 1.")
    if arguments.seed < 0:
        raise UsageError(f"--seed is {arguments.seed}; it must be 0 or more.")
    find_device(arguments.device)


def same_as_begun(folder: Path, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse to go on with what was begun with other settings: half of it would be of the one kind.

    Args:
        folder: of the data set. The settings are written down there if nothing was begun.
        settings: by name, under the name of the command; as JSON has them, lists and not tuples.

    Raises:
        BokehError: they are others; the message names them.
    """
    from bokeh_ops.errors import BokehError
    from trainer.files import read_json, write_json

    path = folder / BEGUN
    if path.is_file():
        begun = read_json(path, "the settings that rendering was begun with")
        if begun != settings:
            changed = [
                key
                for command, own in settings.items()
                for key, value in own.items()
                if begun.get(command, {}).get(key) != value
            ]
            raise BokehError(
                f"{folder} was begun with other settings ({', '.join(changed)}); give those again, or choose another "
                "folder."
            )
        return
    if not (folder / "dataset.json").exists():
        write_json(path, settings)


def results(work: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    """What becomes of jobs, in their order, a few ahead at a time, so that memory does not grow with their number.

    Args:
        work: done in other processes where there are several, each with one thread.
        jobs: what it is given.
        workers: processes; 1 does the work in this one.
    """
    if workers == 1:
        yield from map(work, jobs)
        return
    from concurrent.futures import Future, ProcessPoolExecutor

    from trainer.data.prepare.pool import process_context

    with ProcessPoolExecutor(workers, mp_context=process_context(), initializer=_one_thread) as pool:
        ahead: list[Future[Result]] = []
        for job in jobs:
            ahead.append(pool.submit(work, job))
            if len(ahead) > 2 * workers:
                yield ahead.pop(0).result()
        for future in ahead:
            yield future.result()


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
