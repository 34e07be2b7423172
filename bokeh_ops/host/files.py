"""Files that the host lets people choose from."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import folder_paths

from ..errors import BokehError


def input_pictures() -> list[str]:
    """Names of the pictures in the host's input folder, sorted, without those in sub-folders."""
    folder = folder_paths.get_input_directory()
    if not os.path.isdir(folder):
        return []
    names = [entry.name for entry in os.scandir(folder) if entry.is_file()]
    return sorted(folder_paths.filter_files_content_types(names, ["image"]))


def input_file(name: str) -> Path:
    """Path of a file that a combo box named, in the input folder unless it ends with ``[output]`` or ``[temp]``.

    Raises:
        BokehError: it is not there, or outside these folders.
    """
    path = os.path.abspath(folder_paths.get_annotated_filepath(name))
    roots = (
        folder_paths.get_input_directory(),
        folder_paths.get_output_directory(),
        folder_paths.get_temp_directory(),
    )
    # Not resolved: a link that someone laid inside the folder is theirs to follow.
    if not any(path.startswith(os.path.join(os.path.abspath(root), "")) for root in roots):
        raise BokehError(f"{name!r} is outside the input folder {roots[0]}; copy the file there.")
    if not os.path.isfile(path):
        raise BokehError(
            f"There is no file {name!r} in {roots[0]}; upload it, or choose another and refresh."
        )
    return Path(path)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()
