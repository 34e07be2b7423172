"""The small models that come with the extension, each with its bokeh adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import BokehError

FOLDER = Path(__file__).resolve().parents[2] / "workflows" / "assets" / "world"
"""Where they lie: ``NAME.safetensors`` and ``NAME_adapter.safetensors``."""
_ADAPTER = "_adapter"


def demo_names() -> list[str]:
    """Their names: the files' without the ending."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors") if not path.stem.endswith(_ADAPTER))


def demo_path(name: str, adapter: bool = False) -> Path:
    """The file of a demo model, or of its adapter.

    Raises:
        BokehError: there is none; the message names the folder searched and what is in it.
    """
    path = FOLDER / f"{name}{_ADAPTER if adapter else ''}.safetensors"
    if name not in demo_names() or not path.is_file():
        have = ", ".join(sorted(path.name for path in FOLDER.glob("*.safetensors"))) or "none"
        raise BokehError(
            f"No demo model {name!r}: searched {FOLDER} for {path.name} and found {have}. They come with the "
            "extension: update it, or copy that folder again."
        )
    return path


def load_demo(name: str, adapter: bool = True, node_id: str | None = None) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of a demo model.

    Args:
        name: of :func:`demo_names`.
        adapter: lay its bokeh adapter on.
        node_id: the node to speak through while sampling.

    Raises:
        BokehError: there is none of that name.
    """
    from ..formats import read_adapter
    from .lay import lay_adapter
    from .small import read_small, small_clip, small_vae

    model = read_small(demo_path(name))
    patcher = model.patcher
    if adapter:
        path = demo_path(name, adapter=True)
        patcher = lay_adapter(patcher, read_adapter(path), name=path.name, node_id=node_id)
    return patcher, small_clip(model), small_vae(model)
