"""What finds the main thing: the network that comes with the extension, and the user's in ``models/bokeh_focus/``."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

import comfy.model_management as management
import comfy.model_patcher
import comfy.utils
from torch import Tensor

from ...depth.conventions import DepthMap
from ...depth.focus_transformer import SHIPPED
from ...depth.main_thing import Finder, find_main_thing, read_finder
from ...errors import BokehError
from ...pretrained import FILES
from .files import content_hash
from .model_folder import WORLD, ModelFolder

FOLDER = ModelFolder("bokeh_focus", {".safetensors", ".onnx"})
_COPIES = 8  # of a picture and its map, in use while it is looked at


def focus_models() -> list[str]:
    """The shipped network, and every file and every folder of a model by its path below the host's folder."""
    folders = FOLDER.folders()

    def alone(name: str) -> bool:
        return not (name.endswith(".safetensors") and PurePath(name).parent.as_posix() in folders)

    return [WORLD, *sorted([*filter(alone, FOLDER.names()), *folders])]


def focus_model_path(name: str) -> Path:
    """The file or folder behind a name of :func:`focus_models`.

    Raises:
        BokehError: there is none; the message names the folders searched.
    """
    found = SHIPPED if name == WORLD else FOLDER.find(name) or FOLDER.find_folder(name)
    if found is None:
        raise BokehError(
            f"No focus network {name!r}. Searched {', '.join(FOLDER.roots())} and found "
            f"{', '.join(focus_models()[1:]) or 'none'}. Put a file that `python -m trainer focus` has written there, "
            f"a folder with {', '.join(FILES)} of a model for semantic segmentation, or an .onnx file, and press R; "
            f"or choose {WORLD!r}."
        )
    return found


def focus_model_stamp(name: str | None) -> str | float:
    """For a node's ``fingerprint_inputs``: changes when its files do. None, from a link: looked at anew."""
    return float("nan") if name is None else _stamp(focus_model_path(name))


def main_thing(name: str, images: Tensor, depth: DepthMap | None = None) -> tuple[Tensor, Tensor]:
    """The main thing of pictures, on the host's device, with its progress and interruption.

    Args:
        name: of :func:`focus_models`.
        images: ``[B, H, W, C]``, 0..1.
        depth: of them, one map for all or one for each; None where it is not known.

    Returns:
        As :func:`bokeh_ops.depth.main_thing.find_main_thing`.

    Raises:
        BokehError: as :func:`focus_model_path`, :func:`read_finder` and :func:`find_main_thing` do.
    """
    path = focus_model_path(name)
    network, patcher = _load(path, _stamp(path))
    if images.ndim != 4:
        raise BokehError(f"Expected pictures [B, H, W, C]; got {tuple(images.shape)}.")
    memory = _COPIES * 4 * images[0].numel() + network.working_memory if len(images) else 0
    management.load_models_gpu([patcher], memory_required=memory, force_full_load=True)
    bar = comfy.utils.ProgressBar(len(images))

    def progress(done: int, total: int) -> None:
        management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return find_main_thing(
        network, images.movedim(-1, 1), None if depth is None else depth.disparity, progress
    )


@lru_cache(maxsize=1)
def _load(path: Path, _: str) -> tuple[Finder, Any]:
    device = management.get_torch_device()
    network = read_finder(path, accelerated=device.type != "cpu")
    patcher = comfy.model_patcher.ModelPatcher(
        network, load_device=device, offload_device=management.unet_offload_device()
    )
    return network, patcher


def _stamp(path: Path) -> str:
    """Of a folder's files, or of a file and the JSON file that may lie beside it."""
    return content_hash(path, path.with_suffix(".json"), *sorted(path.glob("*")))
