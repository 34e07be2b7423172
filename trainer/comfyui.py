"""Finding the user's ComfyUI, and starting it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from bokeh_ops.errors import BokehError

_kept = []  # a torch Library takes its operators with it when it is collected
VARIABLE = "BOKEH_COMFYUI"


def find_comfyui(setting: str | None, beside: Path) -> Path:
    """The folder of ComfyUI: the setting, else the environment variable, else the one this extension lies in.

    Args:
        setting: ``comfyui`` of the configuration.
        beside: folder that a relative setting starts from.

    Raises:
        BokehError: none of the three leads to a ComfyUI.
    """
    extension = Path(__file__).absolute().parents[1]
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


def start(setting: str | None, beside: Path, cpu: bool) -> None:
    """Import the core of the user's ComfyUI.

    Args:
        setting, beside: as for :func:`find_comfyui`.
        cpu: keep it off any accelerator.

    Raises:
        BokehError: there is none, or it cannot be imported.
    """
    from bokeh_ops.host.loading.start import start_comfyui

    folder = find_comfyui(setting, beside)
    make_torchvision_importable()
    start_comfyui(folder, cpu)


def make_torchvision_importable() -> None:
    """Declare two operators of torchvision where it cannot be imported without them.

    Its wheel for CUDA beside a torch for the CPU does not load its compiled part, and it stops because nobody declared
    ``nms`` and ``qnms``, which ComfyUI does not use.
    """
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise BokehError(f"torchvision, which ComfyUI imports, cannot be imported: {error}") from error
    else:
        return
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)
