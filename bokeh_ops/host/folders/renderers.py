"""Weights of renderers as the host's user keeps them: ``models/bokeh_renderers/``, sub-folders, extra model paths."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path, PurePath

import folder_paths

from ...errors import BokehError
from ...render import LensModel
from ...render.bokehme import load_bokehme

FOLDER = "bokeh_renderers"
BOKEHME = ("arnet", "iunet")
"""The stems of the two files that BokehMe's networks come in; they lie in one folder."""


def register_folder() -> None:
    """Tell the host of ``models/bokeh_renderers/``; what the user's extra model paths say of it is kept."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER), is_default=True)
    # The released files are pickles, which are read without being run (bokeh_ops.render.checkpoint).
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {".safetensors", ".pth"})


def bokehme_files() -> tuple[Path, Path]:
    """``arnet`` and ``iunet`` of the first folder that has both, safetensors before ``.pth``.

    Raises:
        BokehError: no folder has; the message names the folders searched.
    """
    register_folder()
    names = folder_paths.get_filename_list(FOLDER)
    found: dict[PurePath, dict[str, str]] = {}
    for name in sorted(names, key=lambda name: name.endswith(".safetensors")):
        path = PurePath(name)
        found.setdefault(path.parent, {})[path.stem.lower()] = name
    for _, stems in sorted(found.items()):
        if all(stem in stems for stem in BOKEHME):
            paths = [folder_paths.get_full_path(FOLDER, stems[stem]) for stem in BOKEHME]
            if None not in paths:
                return Path(paths[0]), Path(paths[1])
    folders = ", ".join(folder_paths.get_folder_paths(FOLDER))
    raise BokehError(
        "The lens model 'bokehme' needs the two networks of BokehMe, which are not there. Put arnet.pth and iunet.pth "
        f"(or .safetensors) into one folder below {folders}, or choose another lens model."
    )


def load_renderer() -> LensModel:
    """BokehMe with the weights found; kept until another file takes their place.

    Raises:
        BokehError: no weights, or files that are no such weights.
    """
    return _load(*((str(path), path.stat().st_mtime_ns) for path in bokehme_files()))


@lru_cache(maxsize=1)
def _load(arnet: tuple[str, int], iunet: tuple[str, int]) -> LensModel:
    return load_bokehme(arnet[0], iunet[0])
