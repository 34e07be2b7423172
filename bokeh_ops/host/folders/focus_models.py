"""Focus transformers: the one that comes with the extension, and the user's in ``models/bokeh_focus/``."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.model_management as management
import comfy.model_patcher
import comfy.utils
from torch import Tensor

from ...depth.conventions import DepthMap
from ...depth.focus_transformer import SHIPPED, FocusTransformer, find_main_thing, read_focus_transformer
from ...errors import BokehError
from .files import content_hash
from .model_folder import WORLD, ModelFolder

FOLDER = ModelFolder("bokeh_focus", {".safetensors"})
# Bytes in use while a picture is looked at: the picture and its map some times over, and what the network makes of it.
_COPIES, _WORKING = 8, 64 * 2**20


def focus_models() -> list[str]:
    """The shipped network, and every file by its path below the host's folder."""
    return [WORLD, *FOLDER.names()]


def focus_model_path(name: str) -> Path:
    """The file behind a name of :func:`focus_models`.

    Raises:
        BokehError: there is none; the message names the folders searched.
    """
    found = SHIPPED if name == WORLD else FOLDER.find(name)
    if found is None:
        raise BokehError(
            f"No focus network {name!r}. Searched {', '.join(FOLDER.roots())} and found "
            f"{', '.join(FOLDER.names()) or 'none'}. Put a file that `python -m trainer focus` has written there and "
            f"press R, or choose {WORLD!r}."
        )
    return found


def focus_model_stamp(name: str | None) -> str | float:
    """For a node's ``fingerprint_inputs``: changes when the file does. None, from a link: looked at anew."""
    return float("nan") if name is None else content_hash(focus_model_path(name))


def main_thing(name: str, images: Tensor, depth: DepthMap | None = None) -> tuple[Tensor, Tensor]:
    """The main thing of pictures, on the host's device, with its progress and interruption.

    Args:
        name: of :func:`focus_models`.
        images: ``[B, H, W, C]``, 0..1.
        depth: of them, one map for all or one for each; None where it is not known.

    Returns:
        As :func:`bokeh_ops.depth.focus_transformer.find_main_thing`.

    Raises:
        BokehError: as :func:`focus_model_path`, :func:`read_focus_transformer` and :func:`find_main_thing` do.
    """
    path = focus_model_path(name)
    network, patcher = _load(path, content_hash(path))
    if images.ndim != 4:
        raise BokehError(f"Expected pictures [B, H, W, C]; got {tuple(images.shape)}.")
    memory = _COPIES * 4 * images[0].numel() + _WORKING if len(images) else 0
    management.load_models_gpu([patcher], memory_required=memory, force_full_load=True)
    bar = comfy.utils.ProgressBar(len(images))

    def progress(done: int, total: int) -> None:
        management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return find_main_thing(
        network, images.movedim(-1, 1), None if depth is None else depth.disparity, progress
    )


@lru_cache(maxsize=1)
def _load(path: Path, _: str) -> tuple[FocusTransformer, Any]:
    network = read_focus_transformer(path)
    patcher = comfy.model_patcher.ModelPatcher(
        network,
        load_device=management.get_torch_device(),
        offload_device=management.unet_offload_device(),
    )
    return network, patcher
