"""Finding the user's ComfyUI."""

from __future__ import annotations

import os
from pathlib import Path

from bokeh_ops.errors import BokehError

VARIABLE = "BOKEH_COMFYUI"


def find_comfyui(setting: str | None, beside: Path) -> Path:
    """The folder of ComfyUI: the setting, else the environment variable, else the one this extension lies in.

    Args:
        setting: ``comfyui`` of the configuration.
        beside: folder that a relative setting starts from.

    Raises:
        BokehError: none of the three leads to a ComfyUI.
    """
    extension = Path(__file__).absolute().parents[2]
    if setting is not None:
        source, folder = "comfyui in the configuration", beside / Path(setting).expanduser()
    elif os.environ.get(VARIABLE):
        source, folder = VARIABLE, Path(os.environ[VARIABLE]).expanduser()
    elif extension.parent.name == "custom_nodes":
        source, folder = "the folder above custom_nodes", extension.parents[1]
    else:
        raise BokehError(
            "Training runs on ComfyUI's own models, and no ComfyUI was found: this extension does not lie in a "
            f"custom_nodes folder. Set {VARIABLE}, or comfyui in the configuration, to the folder with its main.py."
        )
    missing = [name for name in ("main.py", "comfy") if not (folder / name).exists()]
    if missing:
        raise BokehError(
            f"{source} names {folder}, which has no {' and no '.join(missing)}; it has to be the folder of ComfyUI."
        )
    return folder.resolve()
