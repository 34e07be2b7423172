"""Depth models: the user's folders in ``models/depth/``, its sub-folders and extra model paths, and the shipped one."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.model_management as management
import comfy.model_patcher
import comfy.utils
import torch
from torch import Tensor, nn

from ...depth.conventions import DepthMap, Notice
from ...depth.estimate import EXAMPLES, Estimator, estimate, load_estimator
from ...errors import BokehError
from ...pretrained import FILES
from ..differences import out_of_memory
from ..small.shipped import DEPTH
from .model_folder import WORLD, ModelFolder

FOLDER = ModelFolder("depth")
NONE = "none found: see models/depth"
"""Stands in the list, and is what is chosen, where the user has no model: it leads to what to download."""
_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
# Bytes in use while a picture is looked at, for each byte of the picture that the network sees.
_WORKING = 500


def depth_models() -> list[str]:
    """Every folder with a ``config.json``, by its path below the host's folder, ``NONE`` where there is none.

    The shipped model is the last, so that it is not what stands there before somebody chooses: photographs are not
    what it knows.
    """
    return [*(FOLDER.folders() or [NONE]), WORLD]


def model_folder(name: str) -> Path:
    """The folder behind ``name``.

    Raises:
        BokehError: there is none; the message names the folders searched, what is in them, and what belongs there.
    """
    if name == WORLD:
        return DEPTH
    roots = FOLDER.roots()
    found = FOLDER.find_folder(name)
    if found is not None:
        return found
    have = ", ".join(FOLDER.folders()) or "no folder with a config.json"
    loose = sorted(
        {str(folder) for folder, files in FOLDER.loose() if any(each.endswith(_WEIGHTS) for each in files)}
    )
    if loose:
        have += f", and weights that are in no folder of their own with a config.json in {', '.join(loose)}"
    first = next(iter(EXAMPLES))
    others = "; ".join(f"{repository}: {what}" for repository, what in EXAMPLES.items())
    raise BokehError(
        f"No depth model {'' if name == NONE else repr(name) + ' '}in {', '.join(roots)}: found {have}. Download "
        f"{', '.join(FILES)} of {first} into {Path(roots[0]) / first.split('/')[1]} and press R. Others ({others}) go "
        "into folders of their own."
    )


def model_stamp(name: str | None) -> str | float:
    """For a node's ``fingerprint_inputs``: changes when the model's files do. None, from a link: looked at anew."""
    return float("nan") if name is None else str(_stamp(model_folder(name)))


def estimate_depth(name: str, images: Tensor, notice: Notice | None = None) -> DepthMap:
    """Depth of pictures by a model, on the host's device, with its progress and interruption.

    Args:
        name: of :func:`depth_models`.
        images: ``[B, H, W, C]``, 0..1.
        notice: as :func:`bokeh_ops.depth.estimate.estimate` takes it.

    Raises:
        BokehError: as :func:`model_folder`, :func:`load_estimator` and :func:`estimate` do.
    """
    if images.ndim != 4 or 0 in images.shape:
        raise BokehError(f"Expected pictures [B, H, W, C], at least one; got {tuple(images.shape)}.")
    folder = model_folder(name)
    device = management.get_torch_device()
    half = management.should_use_fp16(device, prioritize_performance=False)
    estimator, patcher = _load(folder, _stamp(folder), torch.float16 if half else torch.float32)
    management.load_models_gpu(
        [patcher], memory_required=_working_memory(estimator, images), force_full_load=True
    )
    bar = comfy.utils.ProgressBar(len(images))

    def progress(done: int, total: int) -> None:
        management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    pictures = images.movedim(-1, 1)
    try:
        return estimate(estimator, pictures, notice, progress)
    except Exception as error:
        if device.type == "cpu" or not out_of_memory(error):
            raise
    # Only here, as inside the handler the error still holds what the failed run held.
    _load.cache_clear()
    management.soft_empty_cache()
    if notice:
        notice(
            f"{name} does not fit in the memory of {device}; its depth is estimated on the CPU, which takes longer."
        )
    return estimate(load_estimator(folder), pictures, notice, progress)


class _Held(nn.Module):
    """The library's networks have a ``device`` that cannot be set, which the host's ModelPatcher does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.device: Any = None


@lru_cache(maxsize=1)
def _load(folder: Path, _: object, dtype: torch.dtype) -> tuple[Estimator, Any]:
    estimator = load_estimator(folder, dtype)
    patcher = comfy.model_patcher.ModelPatcher(
        _Held(estimator.network),
        load_device=management.get_torch_device(),
        offload_device=management.unet_offload_device(),
    )
    return estimator, patcher


def _working_memory(estimator: Estimator, images: Tensor) -> int:
    size = getattr(estimator.processor, "size", None) or {}
    height, width = (
        size.get(key) or side for key, side in zip(("height", "width"), images.shape[1:3], strict=True)
    )
    return _WORKING * 3 * height * width * next(estimator.network.parameters()).element_size()


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    found = (path for path in sorted(folder.iterdir()) if path.is_file())
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in found)
