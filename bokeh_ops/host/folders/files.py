"""Files that a graph names: which there are, and that a name leads nowhere else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

import folder_paths

from ...digest import file_key
from ...errors import BokehError


def input_pictures(more: tuple[str, ...] = ()) -> list[str]:
    """Names of the pictures in the host's input folder, sorted, without those in sub-folders.

    Args:
        more: endings in small letters, with the dot, that count too.
    """
    folder = folder_paths.get_input_directory()
    if not os.path.isdir(folder):
        return []
    names = [entry.name for entry in os.scandir(folder) if entry.is_file()]
    found = set(folder_paths.filter_files_content_types(names, ["image"]))
    return sorted(found | {name for name in names if name.lower().endswith(more)})


def input_file(name: object) -> Path:
    """Path of a file that a graph names, in the input folder unless the name ends with ``[output]`` or ``[temp]``.

    Sub-folders are fine. What the name says counts, on every host: the host's own look-up follows it anywhere.

    Args:
        name: from a widget or a link.

    Raises:
        BokehError: it is no name, or what it names is outside that folder, or not there, or no file.
    """
    if not isinstance(name, str):
        raise BokehError(f"Expected the name of a file in the input folder; got {type(name).__name__}.")
    bare, annotated = folder_paths.annotated_filepath(name)
    inputs = folder_paths.get_input_directory()
    root = annotated or inputs
    path = os.path.abspath(os.path.join(root, bare))
    if not is_within(path, [root]):
        raise BokehError(f"{name!r} is outside the input folder {inputs}; copy the file there.")
    if not os.path.isfile(path):
        raise BokehError(f"There is no file {name!r} in {root}; upload it, or choose another and refresh.")
    return Path(path)


def check_names(find: Callable[[str], object], *names: str | None) -> bool | str:
    """For a node's ``validate_inputs``: True, or what ``find`` says against a name.

    That takes the place of the host's "value not in list": where was searched, and what to do.

    Args:
        find: what the node will find the file by.
        names: None where one comes by a link: then it is known, and checked, only as the node runs.
    """
    try:
        for name in names:
            if name is not None:
                find(name)
    except BokehError as error:
        return str(error)
    return True


def check_input_file(name: str | None) -> bool | str:
    """:func:`check_names` of a file that a graph names (:func:`input_file`)."""
    return check_names(input_file, name)


def input_file_hash(name: str | None) -> str | float:
    """For a node's ``fingerprint_inputs``: changes when the content of the file that a graph names does.

    Args:
        name: None where it comes by a link: then the file is not known yet, and NaN makes the host look at it anew.
    """
    return float("nan") if name is None else content_hash(input_file(name))


def is_within(path: str | Path, roots: Iterable[str]) -> bool:
    """Whether a path lies below one of these folders, by what it says.

    Links are not resolved: one that someone laid inside a folder is theirs to follow.
    """
    own = os.path.abspath(path)
    return any(own.startswith(os.path.join(os.path.abspath(root), "")) for root in roots)


def content_hash(*paths: Path) -> str:
    """Changes when the content of any of these files does; those that are not there count for nothing."""
    there = ((path, path.stat()) for path in paths if path.is_file())
    return "-".join(_file_key(str(path), status.st_size, status.st_mtime_ns) for path, status in there)


@lru_cache(maxsize=32)
def _file_key(path: str, size: int, modified: int) -> str:
    return file_key(path)
