"""Folders below ``models/``: their sub-folders, and what the user's extra model paths say of them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

import folder_paths

from ...pretrained import FILES
from .files import is_within

WORLD = "small world (comes with it)"
"""In place of the name of a user's file or folder: the network that comes with the extension, for the demo models."""


class ModelFolder:
    """``models/NAME/`` of the host's user.

    Args:
        name: of the folder.
        endings: files that count, with the dot; None: every one.
    """

    def __init__(self, name: str, endings: Collection[str] | None = None) -> None:
        self.name, self.endings = name, endings

    def roots(self) -> list[str]:
        """The folders, the default one first. The host is told of them here, as it forgets what it was told."""
        folder_paths.add_model_folder_path(
            self.name, str(Path(folder_paths.models_dir) / self.name), is_default=True
        )
        if self.endings is not None:  # a new kind accepts every file ending
            paths, _ = folder_paths.folder_names_and_paths[self.name]
            folder_paths.folder_names_and_paths[self.name] = (paths, set(self.endings))
        return folder_paths.get_folder_paths(self.name)

    def names(self) -> list[str]:
        """Every file, by its path below its folder."""
        self.roots()
        return folder_paths.get_filename_list(self.name)

    def find(self, name: object) -> Path | None:
        """The file behind a name; None where there is none, or where the name leads out of the folders."""
        roots = self.roots()
        found = folder_paths.get_full_path(self.name, name) if name and isinstance(name, str) else None
        return Path(found) if found is not None and is_within(found, roots) else None

    def folders(self) -> list[str]:
        """Every folder with a ``config.json``, by its path below its root."""
        return sorted({name for name, _ in self._folders()})

    def find_folder(self, name: object) -> Path | None:
        """The folder behind a name of :meth:`folders`; None where there is none."""
        roots = self.roots()
        return next(
            (path for known, path in self._folders() if known == name and is_within(path, roots)), None
        )

    def loose(self) -> Iterator[tuple[Path, list[str]]]:
        """The roots and the folders without a ``config.json``, each with the names of its files."""
        return ((path, files) for name, path, files in self._walk() if not _is_model(name, files))

    def _folders(self) -> Iterator[tuple[str, Path]]:
        return ((name, path) for name, path, files in self._walk() if _is_model(name, files))

    def _walk(self) -> Iterator[tuple[str, Path, list[str]]]:
        """Name, path and files of every root and every folder below it."""
        for root in self.roots():
            for folder, _, files in os.walk(root, followlinks=True):
                yield os.path.relpath(folder, root).replace(os.sep, "/"), Path(folder), files


def _is_model(name: str, files: Collection[str]) -> bool:
    return FILES[0] in files and name != "."  # what lies in the root itself has no name to choose it by
