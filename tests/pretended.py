"""A pretended accelerator: tensors that say they are on a device named ``card``, and are computed on the CPU.

Work that mixes devices fails on it as it does on a real one, and every value that the CPU waits for is counted. So code
is tried for accelerators where there is none. It gives the same numbers as the CPU and says nothing about speed.

It cannot be taken out of a process again, and needs a PyTorch that lets a device be written in Python (2.9 or later).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter, tree_map

from tests.launches import WAITS

NAME = "card"
_HOST, _CARD = torch.device("cpu"), f"{NAME}:0"
_MAY_MIX = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
"""Whose indices may lie on the CPU, as on a real device."""
_kept: list[Any] = []  # a torch Library takes its operators with it when it is collected

waits = 0
"""How often the CPU has waited for a value of the card so far."""


class Card(Tensor):
    """A tensor on the pretended device around one on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Card:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(_CARD),
            requires_grad=False,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"card({self.inner!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Card:
        made = Card(self.inner.detach().clone()).requires_grad_(self.requires_grad)
        memo[id(self)] = made
        return made

    def new_tensor(self, data: Any, *, dtype: Any = None, device: Any = None, **kwargs: Any) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or self.device, **kwargs)

    # PyTorch makes indices of lists where no Python device is asked.
    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_indices(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_indices(index), value)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()


def _indices(index: Any) -> Any:
    each = index if isinstance(index, tuple) else (index,)
    return tuple(torch.tensor(one) if isinstance(one, list) else one for one in each)


def _there(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _off(value: Any) -> Any:
    if isinstance(value, Card):
        return value.inner
    return _HOST if isinstance(value, torch.device) and value.type == NAME else value


def _on(value: Any) -> Any:
    return Card(value) if isinstance(value, Tensor) else value


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operator: checked for tensors of both devices, computed on the CPU, and wrapped again."""
    global waits
    name = func.overloadpacket.__name__
    tensors = [each for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)]
    cards = [each for each in tensors if isinstance(each, Card)]
    device = kwargs.get("device")
    waits += name in WAITS and bool(cards)
    if name == "copy_":
        waits += not isinstance(args[0], Card)
        _off(args[0]).copy_(_off(args[1]))
        return args[0]
    copies = name == "_to_copy"
    on_card = _there(device) if device is not None else bool(cards)
    waits += copies and bool(cards) and not on_card
    others = tensors if isinstance(tensors[0], Card) else tensors[:1] if name in _MAY_MIX else tensors
    mixed = [each for each in others if not isinstance(each, Card) and each.ndim] if cards else []
    if mixed and not copies and not (name in _MAY_MIX and isinstance(args[0], Card)):
        found = ", ".join(f"{each.device} {list(each.shape)}" for each in tensors)
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got {found}")
    out = func(*tree_map(_off, args), **tree_map(_off, kwargs))
    if not on_card:
        return out
    back = {id(each.inner): each for each in cards}
    return tree_map(lambda one: back[id(one)] if id(one) in back else _on(one), out)


def insert() -> str:
    """Put the pretended device into this process; its name. A second call changes nothing."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as set_up

    if _kept:
        return NAME
    set_up(NAME)
    # Modules keep their parameters when they are moved, as they do on a real device.
    torch.__future__.set_swap_module_params_on_conversion(True)
    every, some = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    _kept.extend((every, some))
    every.fallback(lambda func, *args, **kwargs: _run(func, args, kwargs), "PrivateUse1")
    for func in (torch.ops.aten.empty.memory_format, torch.ops.aten.empty_strided.default):
        some.impl(func, lambda *a, func=func, **k: _made(func, a, k), "PrivateUse1")
    torch.tensor, torch.as_tensor = _moved(torch.tensor), _moved(torch.as_tensor)
    torch.Generator = _Generator
    return NAME


def _moved(make: Any) -> Any:
    """A way of making tensors from data, which PyTorch does in a place that no Python device is asked in."""

    def tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if not _there(device if device is not None or not isinstance(data, Card) else data.device):
            return make(data, *args, device=device, **kwargs)
        if not isinstance(data, Tensor):
            data = make(
                tree_map(lambda one: one.item() if isinstance(one, Card) else one, data), *args, **kwargs
            )
        return data.to(device=device or _CARD, dtype=kwargs.get("dtype"))

    return tensor


class _Generator(torch.Generator):
    """Of random numbers: those of the CPU, on the card as well."""

    def __new__(cls, device: Any = None) -> _Generator:
        return super().__new__(cls, _HOST if _there(device) else device or _HOST)


def _made(func: Any, args: Any, kwargs: dict[str, Any]) -> Card:
    return Card(func(*args, **{**kwargs, "device": _HOST}))


def tell_host() -> None:
    """Have a host that was loaded for the CPU compute on the pretended device."""
    import comfy.model_management as management  # type: ignore[import-not-found]

    free = management.get_free_memory
    management.get_torch_device = lambda: torch.device(_CARD)
    management.get_free_memory = lambda _device=None, *args, **kwargs: free(_HOST, *args, **kwargs)
    management.cpu_state = management.CPUState.GPU
    management.vram_state = management.set_vram_to = management.VRAMState.NORMAL_VRAM
    management.soft_empty_cache = lambda *_: None
    # As a CPU answers: the host would ask a real card's properties.
    management.should_use_fp16 = management.should_use_bf16 = lambda *_, **__: False
