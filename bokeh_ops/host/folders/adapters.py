"""Adapter files as the host's user keeps them: ``models/bokeh/``, sub-folders, extra model paths."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import folder_paths

from ...errors import BokehError
from .files import file_hash, is_within

FOLDER = "bokeh"


def register_folder() -> None:
    """Tell the host of ``models/bokeh/``; what the user's extra model paths say of it is kept."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER), is_default=True)
    # A new kind accepts every file ending; only safetensors is ever read here.
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {".safetensors"})


def adapter_names() -> list[str]:
    """Every adapter file, by its path below its folder."""
    register_folder()
    return folder_paths.get_filename_list(FOLDER)


def adapter_path(name: str) -> Path:
    """The file behind ``name``.

    Raises:
        BokehError: there is none; the message names the folders searched and what is in them.
    """
    register_folder()
    roots = folder_paths.get_folder_paths(FOLDER)
    found = folder_paths.get_full_path(FOLDER, name) if name and isinstance(name, str) else None
    if found is None or not is_within(found, roots):
        folders = ", ".join(roots)
        have = ", ".join(adapter_names()) or "no .safetensors file"
        raise BokehError(
            f"No adapter {name!r}. Searched {folders} and found {have}. Put the adapter's .safetensors file there "
            "(a released one together with its config.json, in a folder of its own) and press R to refresh."
        )
    return Path(found)


def adapter_hash(name: str | None) -> str | float:
    """SHA-256 over the adapter's file and the ``config.json`` beside it: changes when what is loaded changes.

    Args:
        name: None where it comes by a link: then the file is not known yet, and NaN makes the host look at it anew.
    """
    if name is None:
        return float("nan")
    path = adapter_path(name)
    parts = [path, path.parent / "config.json"]
    return "-".join(_file_hash(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in parts if p.is_file())


@lru_cache(maxsize=32)
def _file_hash(path: str, size: int, modified: int) -> str:
    return file_hash(path)
