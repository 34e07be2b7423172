"""What commands have in common that make a data set job by job, in several processes, and go on where they stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

BEGUN = "begun.json"
"""Beside the shards while the data set is being made: the settings that it was begun with."""


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
