"""What an evaluation leaves behind: a table for the eye, JSON for everything else."""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bokeh_ops.errors import BokehError
from trainer import files


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Rows of values under headings, in columns of equal width.

    Args:
        rows: each from column to value; what is missing, ``None`` or NaN is shown as ``n/a``.
        columns: from column to the format of its numbers (``".2f"``; ``""`` for text), in order.
    """

    def shown(value: Any, spec: str) -> str:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return "n/a"
        return format(value, spec) if spec and not isinstance(value, str) else str(value)

    cells = [list(columns), *([shown(row.get(name), spec) for name, spec in columns.items()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    left = [not spec for spec in columns.values()]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if text else cell.rjust(width)
            for cell, width, text in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in cells
    )


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of those that are there (not ``None``, not NaN); ``None`` if there is none."""
    there = [value for value in values if value is not None and not math.isnan(value)]
    return sum(there) / len(there) if there else None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON so that ``path`` is either the whole of it or what it was before.

    Values that JSON has no word for (infinity, NaN) become ``null``.

    Raises:
        BokehError: the folder is missing or cannot be written to.
    """
    if not path.parent.is_dir():  # nobody asked for another folder
        raise BokehError(f"{path} cannot be written: there is no folder {path.parent}.")
    files.write_json(path, _plain(content))


def surroundings(*packages: str) -> dict[str, Any]:
    """What was measured with: versions and machine."""

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    return {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: version(name) for name in packages},
        },
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "command": sys.argv[1:],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
