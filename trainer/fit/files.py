"""Files that appear whole, also where several processes write the same one at the same time."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from bokeh_ops.errors import BokehError

WRITE_ERRORS = (OSError, SafetensorError)
"""What is raised where a file cannot be written; `safetensors` has a word of its own for it."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` make a temporary file of this process's own, then give it the name ``path``.

    Raises:
        BokehError: it cannot be written; the message says so when the disk is full. Nothing named ``path`` changed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except WRITE_ERRORS as error:
        raise unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """:func:`replace_file` for a text."""
    replace_file(path, lambda temporary: _write(temporary, text))


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def unwritable(path: Path, error: Exception) -> BokehError:
    """What to say of a file that cannot be written, after one of :data:`WRITE_ERRORS`."""
    told = re.search(r"os error (\d+)", str(error))  # in the text alone, by `safetensors`
    number = getattr(error, "errno", None) or (int(told.group(1)) if told else None)
    why = "the disk is full, or a quota is used up" if number in _FULL else str(error)
    return BokehError(
        f"{path} could not be written: {why}. The last checkpoint is kept: make room, or mend the cause, and give the "
        "same command again."
    )
