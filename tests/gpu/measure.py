"""What a piece of work costs on a device: seconds, kernels launched, waits of the CPU, and memory."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from tests.devices import synchronise
from tests.launches import operators, waits
from tests.memory import Peak

LONG = 3.0
"""Seconds after which a piece of work that was timed once more is not run again for the sake of a median."""


def cost(run: Callable[[], object], device: str, rounds: int = 3, counted: bool = True) -> dict[str, Any]:
    """Fields of a :class:`.board.Row`.

    On an NVIDIA card PyTorch's profiler counts kernels and waits; elsewhere operators are counted, each of which would
    be a kernel at least, and memory is that of the tensors.

    Args:
        rounds: how often it is timed after the first time; only once where that takes long.
        counted: whether to run it once more for launches and waits.
    """
    cuda = torch.device(device).type == "cuda"
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    first = _seconds(run, device)
    taken: list[float] = []
    while len(taken) < rounds and (not taken or first + sum(taken) < LONG):
        taken.append(_seconds(run, device))
    found: dict[str, Any] = {"first": first, "seconds": statistics.median(taken) if taken else first}
    if cuda:
        found["megabytes"] = (torch.cuda.max_memory_allocated() - held) / 1e6
        if counted:
            try:
                found["launches"], found["syncs"] = _profiled(run)
            except Exception as error:  # noqa: BLE001 (what was timed is worth more)
                found["note"] = f"not profiled: {type(error).__name__}: {error}"
    elif counted:
        with Peak() if device == "cpu" else nullcontext() as peak:
            calls = operators(run)
        found["launches"], found["syncs"] = calls.total(), waits(calls)
        found["megabytes"] = None if peak is None else peak.bytes / 1e6
    return found


def _seconds(run: Callable[[], object], device: str) -> float:
    synchronise(device)
    start = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - start


def _profiled(run: Callable[[], object]) -> tuple[int, int | None]:
    """Kernels and copies on the card, and how often the CPU waited for it; None where that was not recorded."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as record:
        run()
    events = record.key_averages()
    launched = sum(event.count for event in events if event.device_type.name == "CUDA")
    calls = {event.key: event.count for event in events if event.key.startswith("cuda")}
    # The profiler waits for the whole device itself, as it ends.
    waited = calls.get("cudaStreamSynchronize", 0) + calls.get("cudaEventSynchronize", 0)
    return launched, waited if calls else None


def free_bytes(device: str) -> int | None:
    """Memory that is free on a device; None where nobody says."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    import psutil

    return psutil.virtual_memory().available


def about(device: str) -> str:
    """The device by name, and what runs on it."""
    import datetime

    from tests.host.setup import host_folder

    version = (host_folder() / "comfyui_version.py").read_text().split('"')[1]
    name = f"CPU, {torch.get_num_threads()} threads" if device == "cpu" else device
    if torch.device(device).type == "cuda":
        card = torch.cuda.get_device_properties(device)
        name = f"{card.name}, {card.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    return f"{name}; PyTorch {torch.__version__}, ComfyUI {version}; {datetime.date.today():%Y-%m-%d}."
