"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from bokeh_ops.errors import BokehError

TEMPORARY = ".tmp"
"""Ending of a file that is being written. One left behind belongs to a process that was killed."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes its name only when it is complete and on the disk.

    On any error, also one raised inside the ``with`` block, nothing named ``path`` has changed.

    Raises:
        BokehError: the file cannot be written; the message says so when the disk is full.
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
        except OSError as error:
            why = "the disk is full, or a quota is used up" if error.errno in _FULL else str(error)
            raise BokehError(
                f"{path} could not be written: {why}. What was finished before is kept: make room, or mend the "
                "cause, and give the same command again."
            ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a small file, whole or not at all (:func:`atomic_file`)."""
    with atomic_file(path) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all (:func:`atomic_file`)."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path, what: str) -> dict[str, Any]:
    """An object from a JSON file.

    Args:
        path: the file.
        what: what it is, for the message.

    Raises:
        BokehError: missing, no JSON, or no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BokehError(f"{path} ({what}) does not exist.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise BokehError(f"{path} ({what}) cannot be read as JSON: {error}.") from error
    if not isinstance(value, dict):
        raise BokehError(f"{path} ({what}) holds a JSON {type(value).__name__}, expected an object.")
    return value


def remove_leftovers(folder: Path) -> int:
    """Remove the temporary files of killed processes in a folder, and return how many there were."""
    leftovers = list(folder.glob(f".*{TEMPORARY}"))
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)


def _sync_folder(folder: Path) -> None:
    """Make a renaming last through a power cut; Windows has no such call."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
