"""LoRAs as the host's user keeps them: ``models/loras/``."""

from __future__ import annotations

from pathlib import Path

from ...errors import BokehError
from .files import content_hash
from .model_folder import ModelFolder

FOLDER = ModelFolder("loras")


def names() -> list[str]:
    """Files that may be read here."""
    return [name for name in FOLDER.names() if name.endswith(".safetensors")]


def lora_path(name: str) -> Path:
    """The file behind a name.

    Raises:
        BokehError: there is none; the message names the folders searched.
    """
    found = FOLDER.find(name)
    if found is None:
        raise BokehError(
            f"No LoRA {name!r}. Searched {', '.join(FOLDER.roots())} and found {len(names())} .safetensors files. Put "
            "deblurNet.safetensors and bokehNet.safetensors of Genfocus there and press R to refresh."
        )
    return found


def lora_hash(name: str | None) -> str | float:
    """Changes when the file's content does; NaN where the name comes by a link, so that the host looks anew."""
    return float("nan") if name is None else content_hash(lora_path(name))
