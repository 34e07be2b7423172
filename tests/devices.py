"""The devices that tests run on: the CPU, and an accelerator where this machine has one."""

from __future__ import annotations

import os
from types import ModuleType

import torch

CPU = "cpu"


def available() -> list[str]:
    """``cpu``, and ``cuda`` or ``mps`` where there is one.

    ``BOKEH_DEVICE=cpu`` leaves the accelerator out, and ``card`` has :mod:`tests.pretended` take its place.
    """
    wanted = os.environ.get("BOKEH_DEVICE")
    if wanted == CPU:
        return [CPU]
    if wanted == "card":
        prepare(wanted)
        return [CPU, wanted]
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    return [CPU, *(name for name, found in there.items() if found())]


def prepare(device: str) -> None:
    """Have a device and its arithmetic be as the tests want them, before anything is computed there."""
    if device == "card":
        from tests import pretended

        pretended.insert()
    # Single precision that is one: on NVIDIA's cards PyTorch rounds what convolutions multiply to TF32.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def load_pack(device: str) -> ModuleType:
    """Host and extension in this process, the host computing on ``device``; one device to a process."""
    from tests.host import inprocess

    prepare(device)
    pack = inprocess.load_pack(cpu=device in (CPU, "card"))
    if device == "card":
        from tests import pretended

        pretended.tell_host()
    return pack


def synchronise(device: torch.device | str) -> None:
    """Wait until an accelerator has done what it was given."""
    kind = torch.device(device).type
    if kind in ("cuda", "mps"):
        getattr(torch, kind).synchronize()
