"""The small models that come with the extension."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import BokehError

FOLDER = Path(__file__).resolve().parents[2] / "workflows" / "assets" / "world"
"""Where they lie."""


def demo_names() -> list[str]:
    """Their names: the files' without the ending."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors") if "adapter" not in path.stem)


def demo_path(name: str) -> Path:
    """The file of a demo model.

    Raises:
        BokehError: there is none; the message names the folder searched and what is in it.
    """
    if name not in demo_names():
        have = ", ".join(demo_names()) or "none"
        raise BokehError(
            f"No demo model {name!r}. Searched {FOLDER} and found {have}. They come with the extension: update it, or "
            "copy that folder again."
        )
    return FOLDER / f"{name}.safetensors"


def load_demo(name: str) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of a demo model.

    Raises:
        BokehError: there is none of that name.
    """
    from .small import SmallClip, SmallVae, read_small

    model = read_small(demo_path(name))
    return model.patcher, SmallClip(model.words), SmallVae(model)
