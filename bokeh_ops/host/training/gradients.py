"""Training an adapter on the host's own model: what back-propagation needs and sampling does not.

The attention is the sampler's, by the same :class:`~bokeh_ops.host.adapter.patch.BokehPatch`. What is added here:

* a second APPLY_MODEL wrapper inside that of the patch, for autocast and for looking at attention;
* the query/key adapters on the outputs of the projections. Samplers get them as weight patches,
  ``W' = (I + s U D) W``, which carry no gradient; ``q + s U (D q)`` is the same product in the other order;
* FLUX: a copy of what every layer norm is given, since the host adds into it in place afterwards;
* gradient checkpointing, block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...adapter.network import PROJECTED, BokehAdapter
from ..adapter.apply import apply_adapter
from ..adapter.patch import patch_of, set_patch
from ..architectures import HostModel, recognise
from ..architectures.architecture import Watch
from ..differences import training

KEY = "bokeh_training"
"""Key of the wrapper on a model."""


def apply_for_training(
    patcher: Any,
    adapter: BokehAdapter,
    autocast: torch.dtype | None = None,
    watch: Watch | None = None,
    name: str = "The adapter",
) -> Any:
    """A clone of ``patcher`` with ``adapter`` on it, through which gradients reach the adapter.

    Rows whose condition names a pivot are grounded at every noise level. To be called inside :func:`differentiable`.

    Args:
        patcher: the host's MODEL.
        adapter: for the same architecture, with cross-attention layers.
        autocast: compute the network in this type (the adapter's embedding and projections stay in theirs).
        watch: looks at the queries and text keys of the adapted cross-attentions (UNet only).
        name: what to call the adapter in a message.

    Raises:
        BokehError: the adapter does not fit the model.
    """
    laid = apply_adapter(patcher, adapter, query_key_strength=0.0, name=name)
    patch = patch_of(laid)
    assert patch is not None
    set_patch(laid, patch.with_grounding(0.0, None))
    # After `set_patch`, so inside the patch's own wrapper: the adapter's projections stay out of autocast, and
    # what the patch installs is there to be looked at.
    inner = _inner(recognise(patcher), adapter, autocast, watch)
    laid.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, inner)
    return laid


def _inner(
    model: HostModel, adapter: BokehAdapter, autocast: torch.dtype | None, watch: Watch | None
) -> Callable[..., Any]:
    paths = list(adapter.cross_layers)

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
        if watch is not None:
            watched = model.architecture.watched
            if "transformer_options" in kwargs:
                kwargs["transformer_options"] = watched(kwargs["transformer_options"], paths, watch)
            else:
                args = (*args[:5], watched(args[5], paths, watch), *args[6:])
        device = args[0].device.type
        with torch.autocast(device, autocast) if autocast is not None else nullcontext():
            return executor(*args, **kwargs)

    return wrapper


@contextmanager
def differentiable(
    patcher: Any,
    adapter: BokehAdapter | None = None,
    checkpointing: bool = False,
    now: Callable[[], Callable[[], AbstractContextManager[Any]]] = lambda: nullcontext,
) -> Iterator[None]:
    """While this is open, the host's network can be back-propagated through; afterwards it is as it was.

    Nothing may be sampled meanwhile: the query/key adapters are on the projections and would act twice.

    Args:
        patcher: the host's MODEL whose network it is.
        adapter: the one that trains; its query/key adapters are put on. None where the network itself trains.
        checkpointing: keep one tensor per block and compute the rest again on the way back: about a third more
            time, a fraction of the memory, the same gradients.
        now: asked when a block is computed; what it gives is opened while that is done again on the way back, when
            the network may be in another state (:meth:`.Loras.now`).
    """
    network = patcher.model.diffusion_model
    model = recognise(patcher)
    with ExitStack() as stack:
        stack.enter_context(training())
        for handle in _hooks(network, adapter, model):
            stack.callback(handle.remove)
        if checkpointing:
            for block, slot in model.architecture.checkpoint_blocks(network):
                stack.enter_context(_checkpointed(block, slot, now))
        yield


def _hooks(network: nn.Module, adapter: BokehAdapter | None, model: HostModel) -> Iterator[Any]:
    yield from model.architecture.training_hooks(network)
    for path in adapter.query_key_layers if adapter is not None else ():
        assert adapter is not None
        yield from _query_key_hooks(network, adapter, path, model)


def _query_key_hooks(network: nn.Module, adapter: BokehAdapter, path: str, model: HostModel) -> Iterator[Any]:
    """Forward hooks that add ``s U (D q)`` to projected queries and keys, as :mod:`.query_key` does to weights."""
    width = model.widths[path]
    parts: dict[str, list[tuple[str, int]]] = {}
    for name in adapter.query_key_names:
        module, first = model.architecture.projection(path, PROJECTED[name], width)
        parts.setdefault(module, []).append((name, first or 0))
    for module, named in parts.items():
        hook = _add_low_rank(adapter, path, named, width)
        yield network.get_submodule(module).register_forward_hook(hook)


def _add_low_rank(
    adapter: BokehAdapter, path: str, parts: list[tuple[str, int]], width: int
) -> Callable[..., Tensor]:
    def hook(_module: nn.Module, _args: Any, out: Tensor) -> Tensor:
        for name, start in parts:
            # Copied, as its value is needed on the way back and its place is about to be written to.
            before = out[..., start : start + width].clone()
            change = adapter.projection(path, name)(before)
            scale = adapter.config.lora_scale
            out[..., start : start + width] += change if scale == 1.0 else change * scale
        return out

    return hook


@contextmanager
def _checkpointed(
    block: nn.Module,
    slot: tuple[str, int] | None,
    now: Callable[[], Callable[[], AbstractContextManager[Any]]],
) -> Iterator[None]:
    """Checkpoint one block by an attribute of its own that hides its class's ``forward``."""
    original = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return original(*args, **kwargs)
        # The host goes on changing its dictionaries (which block this is); the way back needs them as they are now.
        args = tuple(dict(value) if isinstance(value, dict) else value for value in args)
        kwargs = {key: dict(value) if isinstance(value, dict) else value for key, value in kwargs.items()}
        stamp = None
        if slot is not None:
            options = kwargs.get("transformer_options", {})
            stamp = options.get("patches_replace", {}).get("dit", {}).get(slot)

        as_now = now()

        def run(*args: Any, **kwargs: Any) -> Any:
            with as_now():
                return computed(*args, **kwargs)

        def computed(*args: Any, **kwargs: Any) -> Any:
            if slot is None:
                return original(*args, **kwargs)
            # FLUX adds into what it is given, in place; and the override of its attention is told of the block by
            # the wrapper in the host's slot, on the way back too.
            args = tuple(_own(value) for value in args)
            kwargs = {key: _own(value) for key, value in kwargs.items()}
            if stamp is None:
                return original(*args, **kwargs)
            return stamp({}, {"original_block": lambda _: original(*args, **kwargs)})

        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    block.forward = forward
    try:
        yield
    finally:
        del block.forward


@contextmanager
def bottleneck(patcher: Any) -> Iterator[list[Tensor]]:
    """While this is open, every call of a MODEL's network leaves its deepest features ``[R, L, C]``, with gradients."""
    architecture, network = recognise(patcher).architecture, patcher.model.diffusion_model
    found: list[Tensor] = []
    layer, _ = architecture.bottleneck(network)
    handle = layer.register_forward_hook(lambda *call: found.append(architecture.features(call[-1])))
    try:
        yield found
    finally:
        handle.remove()


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.ndim == 3 else value
