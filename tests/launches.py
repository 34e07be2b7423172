"""How many operators a piece of work calls: on a GPU each is at least one kernel launch.

Counted as PyTorch dispatches them, so that a machine without a GPU can bound what one would be asked to do.
Views, which launch nothing, are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

_FREE = {
    "alias",
    "as_strided",
    "detach",
    "expand",
    "permute",
    "select",
    "slice",
    "split",
    "squeeze",
    "t",
    "transpose",
    "unbind",
    "unfold",
    "unsqueeze",
    "view",
    "_unsafe_view",
    "empty",
    "new_empty",
    "empty_strided",
    "empty_like",
}

WAITS = frozenset(
    {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2", "unique_dim"}
)
"""Operators whose result the CPU waits for."""


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in _FREE:
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


def operators(work: Callable[[], object]) -> Counter[str]:
    """Run ``work`` and count the operators it calls, by name; views and empty tensors are not counted."""
    with _Counter() as counter:
        work()
    return counter.calls


def waits(calls: Counter[str]) -> int:
    """How many of the operators have the CPU wait for a GPU; copies from one to the other are not among them."""
    return sum(calls[name] for name in WAITS)
