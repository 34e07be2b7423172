"""Files that appear whole or not at all, also where several processes write the same one at the same time."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from bokeh_ops.errors import BokehError

WRITE_ERRORS = (OSError, SafetensorError)
"""What is raised where a file cannot be written; `safetensors` has a word of its own for it."""

_TEMPORARY = ".tmp"  # one left behind belongs to a process that was killed
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` make a temporary file of this process's own, then give it the name ``path``.

    Raises:
        BokehError: it cannot be written; the message says so when the disk is full. Nothing named ``path`` changed.
    """
    with _replacing(path) as temporary:
        write(temporary)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes its name when the ``with`` block ends well, and then lasts through a power cut.

    Raises:
        BokehError: as :func:`replace_file`; errors raised inside the block leave ``path`` alone, too.
    """
    with _replacing(path) as temporary, open(temporary, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    if os.name != "nt":  # Windows has no such call
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path: Path, content: bytes) -> None:
    """:func:`atomic_file` of this content."""
    with atomic_file(path) as file:
        file.write(content)


def replace_text(path: Path, text: str) -> None:
    """:func:`atomic_file` of this text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """:func:`atomic_file` of this value as JSON."""
    replace_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


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
    leftovers = list(folder.glob(f".*{_TEMPORARY}"))
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)


def unwritable(path: Path, error: Exception) -> BokehError:
    """What to say of a file that cannot be written, after one of :data:`WRITE_ERRORS`."""
    told = re.search(r"os error (\d+)", str(error))  # in the text alone, by `safetensors`
    number = getattr(error, "errno", None) or (int(told.group(1)) if told else None)
    why = "the disk is full, or a quota is used up" if number in _FULL else str(error)
    return BokehError(
        f"{path} could not be written: {why}. All up to the last shard or checkpoint is kept: make room, or mend the "
        "cause, and give the same command again."
    )


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except WRITE_ERRORS as error:
        raise unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
