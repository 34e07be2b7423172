"""Weights of renderers as the host's user keeps them: ``models/bokeh_renderers/``.

The released files are pickles, which are read without being run (:mod:`bokeh_ops.render.checkpoint`).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path, PurePath

from ...errors import BokehError
from ...render import LensModel
from ...render.bokehme import load_bokehme
from .files import content_hash
from .model_folder import ModelFolder

FOLDER = ModelFolder("bokeh_renderers", {".safetensors", ".pth", ".ckpt"})
BOKEHME = ("arnet", "iunet")
"""The stems of the two files that BokehMe's networks come in; they lie in one folder."""


NONE = "none"
"""In place of the name of a file."""


def weights_path(name: str) -> Path | None:
    """The file behind a name; None for :data:`NONE`.

    Raises:
        BokehError: there is none of that name; the message names the folders searched.
    """
    if name == NONE:
        return None
    found = FOLDER.find(name)
    if found is None:
        raise BokehError(
            f"No file {name!r}. Searched {', '.join(FOLDER.roots())} and found {', '.join(FOLDER.names()) or 'none'}. "
            "Put the lens's files there, in a folder of their own, and press R to refresh."
        )
    return found


def weights_hash(*names: str | None) -> str | float:
    """Changes when the content of these files does, or of a ``config.json`` beside them.

    Args:
        names: None where one comes by a link: then the file is not known yet, and NaN makes the host look at it anew.
    """
    if None in names:
        return float("nan")
    paths = [path for name in names if name is not None and (path := weights_path(name)) is not None]
    return content_hash(*paths, *(path.parent / "config.json" for path in paths))


def bokehme_files() -> tuple[Path, Path]:
    """``arnet`` and ``iunet`` of the first folder that has both, safetensors before ``.pth``.

    Raises:
        BokehError: no folder has; the message names the folders searched.
    """
    found: dict[PurePath, dict[str, str]] = {}
    for name in sorted(FOLDER.names(), key=lambda name: name.endswith(".safetensors")):
        path = PurePath(name)
        found.setdefault(path.parent, {})[path.stem.lower()] = name
    for _, stems in sorted(found.items()):
        if all(stem in stems for stem in BOKEHME):
            arnet, iunet = (FOLDER.find(stems[stem]) for stem in BOKEHME)
            if arnet is not None and iunet is not None:
                return arnet, iunet
    folders = ", ".join(FOLDER.roots())
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
