"""ComfyUI in a process that it did not start, such as the trainer's."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from ...errors import BokehError


def accelerated() -> bool:
    """Whether this machine has an accelerator that the host would use."""
    found = torch.cuda.is_available() or torch.backends.mps.is_available()
    return found or (hasattr(torch, "xpu") and torch.xpu.is_available())


def start_comfyui(folder: Path, cpu: bool) -> None:
    """Put ComfyUI on the path and import its core. A process has one ComfyUI; a second call changes nothing.

    Args:
        folder: the one with its main.py.
        cpu: keep it off any accelerator.

    Raises:
        BokehError: another ComfyUI is loaded already, or this Python lacks a package that ComfyUI needs.
    """
    if "comfy" in sys.modules:
        loaded = Path(next(iter(sys.modules["comfy"].__path__))).resolve().parent
        if loaded != folder:
            raise BokehError(
                f"ComfyUI of {loaded} is loaded already; {folder} cannot be used in the same process."
            )
        return
    sys.path.insert(0, str(folder))  # ahead of this repository, whose `nodes` is not ComfyUI's
    try:
        from comfy.cli_args import args  # type: ignore[import-not-found]

        args.cpu = cpu or not accelerated()
        import comfy.model_management
        import comfy.sd  # noqa: F401
    except ImportError as error:
        raise BokehError(
            f"ComfyUI of {folder} cannot be imported: {error}. Run the trainer with the Python that runs ComfyUI."
        ) from error
