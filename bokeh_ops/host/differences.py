"""Where ComfyUI's versions differ: the one table of it, from 0.3.64 to 0.33.

What stands here asks the host for what it has, never for its number, so that forks and later versions are met too.
Everything else in this package is written for all of them alike.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import comfy.model_management as management
import torch
from comfy.ldm.flux.model import FluxParams
from torch import Tensor

from .training.rope import give_rope_a_gradient

# FLUX's norms: as its weights are published, and as 0.14 and later hold them.
_PUBLISHED, _LATER = ".scale", ".weight"


def weights_for_host(settings: Any, weights: dict[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """Weights of a network under the names that this host's network has.

    0.14 and later rename FLUX's norms as they load a checkpoint, by a method that others have as well and that does
    nothing there; those are given what a later one has written.

    Args:
        settings: the host's configuration of the model (``model_config``).
        weights: by published name, or as any host names them.
        own: names of the network's weights.
    """
    own = set(own)
    found = settings.process_unet_state_dict(dict(weights))
    for name in set(found) - own:
        older = name.removesuffix(_LATER) + _PUBLISHED
        if older in own:
            found[older] = found.pop(name)
    return found


def published_weights(settings: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a host's network under their published names, which every host loads.

    Args:
        settings: as for :func:`weights_for_host`.
        weights: by this host's names.
    """
    published = {name.removesuffix(_LATER) + _PUBLISHED: name for name in weights if name.endswith(_LATER)}
    # Which of them the host knows: those that it makes its own names of.
    known = settings.process_unet_state_dict(dict(published))
    renamed = {name: older for older, name in published.items() if known.get(name) == name}
    return {renamed.get(name, name): value for name, value in weights.items()}


def flux_config(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the host's network class for FLUX.1.

    0.8 and later want to be told which axes of the positions count the text's tokens: none.
    """
    named = {"txt_ids_dims": []} if "txt_ids_dims" in {field.name for field in fields(FluxParams)} else {}
    return {**named, **config}


_CUDA_CODE = 2  # cudaErrorMemoryAllocation, which a torch.AcceleratorError carries
_SAID = ("out of memory", "can't allocate memory", "not enough gpu video memory", "alloc_failed")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, by whichever name the host's PyTorch has for that.

    A device has a type of its own for it (on builds that know none the host puts ``Exception`` in its place, which
    says nothing), later hosts tell by ``is_oom``, and libraries and other devices raise a RuntimeError that says so.
    ``is_oom`` also takes back what a failed call has left on the device, so whoever catches such an error asks here.
    """
    is_oom: Callable[[BaseException], Any] | None = getattr(management, "is_oom", None)
    if management.OOM_EXCEPTION is not Exception and (
        isinstance(error, management.OOM_EXCEPTION) or (is_oom is not None and is_oom(error))
    ):
        return True
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or (
        isinstance(error, RuntimeError)
        and (
            getattr(error, "error_code", None) == _CUDA_CODE
            or any(words in str(error).lower() for words in _SAID)
        )
    )


@contextmanager
def training() -> Iterator[None]:
    """While this is open, the host chooses operators that have a gradient.

    Those that know of training are told; 0.8 and those after it that do not are given the gradient they lack.
    """
    if not hasattr(management, "in_training"):
        give_rope_a_gradient()
        yield
        return
    before = management.in_training
    management.in_training = True
    try:
        yield
    finally:
        management.in_training = before


def tell_how_to_load_again(patcher: Any, load: Callable[[], Any]) -> None:
    """Have a MODEL that no loader of the host made be loaded once more, as several devices want it.

    Later hosts do that by what their own loaders leave on a MODEL; earlier ones take no notice.

    Args:
        patcher: the MODEL.
        load: makes the same MODEL anew.
    """
    # Told not to make it one whose weights come and go by themselves, which those we make never are.
    patcher.cached_patcher_init = (lambda disable_dynamic=False: load(), ())


def tell_of_saving(patcher: Any, tell: Callable[[Any], None]) -> None:
    """Call ``tell(patcher)`` whenever the host asks a MODEL for the weights to write to a file.

    Later hosts do that with no callback, so it is done on this MODEL's own method, and to be done again on its clones.
    Earlier ones tell their callbacks after loading.
    """
    method = getattr(type(patcher), "state_dict_for_saving", None)
    if method is None:
        return
    me = weakref.ref(patcher)  # the host waits for a MODEL to go; a circle would keep it

    def asked(*args: Any, **kwargs: Any) -> Any:
        tell(me())
        return method(me(), *args, **kwargs)

    patcher.state_dict_for_saving = asked
