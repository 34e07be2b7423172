"""Adapter files as the host's user keeps them: ``models/bokeh/``."""

from __future__ import annotations

from pathlib import Path

from ...errors import BokehError
from .files import content_hash
from .model_folder import ModelFolder

FOLDER = ModelFolder("bokeh", {".safetensors"})  # only safetensors is ever read here


def adapter_path(name: str) -> Path:
    """The file behind ``name``.

    Raises:
        BokehError: there is none; the message names the folders searched and what is in them.
    """
    found = FOLDER.find(name)
    if found is None:
        folders = ", ".join(FOLDER.roots())
        have = ", ".join(FOLDER.names()) or "no .safetensors file"
        raise BokehError(
            f"No adapter {name!r}. Searched {folders} and found {have}. Put the adapter's .safetensors file there "
            "(a released one together with its config.json, in a folder of its own) and press R to refresh."
        )
    return found


def adapter_hash(name: str | None) -> str | float:
    """Changes when the adapter's file or the ``config.json`` beside it does.

    Args:
        name: None where it comes by a link: then the file is not known yet, and NaN makes the host look at it anew.
    """
    if name is None:
        return float("nan")
    path = adapter_path(name)
    return content_hash(path, path.parent / "config.json")
