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
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...adapter.network import BokehAdapter
from ...adapter.rows import GroundingSchedule
from ..adapter.apply import lay_adapter
from ..adapter.patch import patch_of, set_patch
from ..architectures.architecture import HostModel, Slot, describe
from ..architectures.unet_attention import host_attention, previous_in
from ..differences import training

KEY = "bokeh_training"
"""Key of the wrapper on a model."""

Watch = Callable[[str, Tensor, Tensor, int], None]
"""Called as ``watch(path, queries [R, L, C], text keys [R, M, C], heads)`` in each adapted cross-attention."""


def lay_for_training(
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
    laid = lay_adapter(patcher, adapter, query_key_strength=0.0, name=name)
    patch = patch_of(laid)
    assert patch is not None
    set_patch(laid, patch.with_grounding(GroundingSchedule((0.0,)), None))
    # After `set_patch`, so inside the patch's own wrapper: the adapter's projections stay out of autocast, and
    # what the patch installs is there to be looked at.
    inner = _inner(describe(patcher), adapter, autocast, watch)
    laid.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, inner)
    return laid


def _inner(
    model: HostModel, adapter: BokehAdapter, autocast: torch.dtype | None, watch: Watch | None
) -> Callable[..., Any]:
    paths: dict[Slot, str] = {}
    if model.kind == "unet":
        paths = {slot: f"{path}.attn2" for path, slot in model.slots().items()}
        paths = {slot: path for slot, path in paths.items() if path in adapter.cross_layers}

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
        if watch is not None and paths:
            if "transformer_options" in kwargs:
                kwargs["transformer_options"] = _watched(kwargs["transformer_options"], paths, watch)
            else:
                args = (*args[:5], _watched(args[5], paths, watch), *args[6:])
        device = args[0].device.type
        with torch.autocast(device, autocast) if autocast is not None else nullcontext():
            return executor(*args, **kwargs)

    return wrapper


def _watched(options: dict[str, Any], paths: dict[Slot, str], watch: Watch) -> dict[str, Any]:
    def looking(path: str, attention: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def attend(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
            watch(path, q, k, extra["n_heads"])
            return attention(q, k, v, extra)

        return attend

    replacements = dict(options.get("patches_replace", {}))
    table = replacements.get("attn2", {})
    looked_at = {
        slot: looking(path, previous_in(table, slot) or host_attention) for slot, path in paths.items()
    }
    replacements["attn2"] = {**table, **looked_at}
    return {**options, "patches_replace": replacements}


@contextmanager
def differentiable(
    patcher: Any, adapter: BokehAdapter | None = None, checkpointing: bool = False
) -> Iterator[None]:
    """While this is open, the host's network can be back-propagated through; afterwards it is as it was.

    Nothing may be sampled meanwhile: the query/key adapters are on the projections and would act twice.

    Args:
        patcher: the host's MODEL whose network it is.
        adapter: the one that trains; its query/key adapters are put on. None where the network itself trains.
        checkpointing: keep one tensor per block and compute the rest again on the way back: about a third more
            time, a fraction of the memory, the same gradients.
    """
    network = patcher.model.diffusion_model
    model = describe(patcher)
    with ExitStack() as stack:
        stack.enter_context(training())
        for handle in _hooks(network, adapter, model):
            stack.callback(handle.remove)
        if checkpointing:
            for slot, block in _blocks(network, model):
                stack.enter_context(_checkpointed(block, slot))
        yield


def _hooks(network: nn.Module, adapter: BokehAdapter | None, model: HostModel) -> Iterator[Any]:
    if model.kind == "flux":
        for module in network.modules():
            if isinstance(module, nn.LayerNorm):
                yield module.register_forward_pre_hook(_copy_input)
    for path in adapter.query_key_layers if adapter is not None else ():
        assert adapter is not None
        yield from _query_key_hooks(network, adapter, path, model)


def _copy_input(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if not (torch.is_grad_enabled() and isinstance(args[0], Tensor) and args[0].requires_grad):
        return None
    return (args[0].clone(), *args[1:])


def _query_key_hooks(network: nn.Module, adapter: BokehAdapter, path: str, model: HostModel) -> Iterator[Any]:
    """Forward hooks that add ``s U (D q)`` to projected queries and keys, as :mod:`.query_key` does to weights."""
    width = model.widths[path]
    parts = [(name, index * width) for index, name in enumerate(("to_q_adp", "to_k_adp"))]
    parts = [(name, start) for name, start in parts if name in adapter.query_key_names]
    if model.kind == "flux":
        fused = f"{path}.img_attn.qkv" if path.startswith("double_blocks.") else f"{path}.linear1"
        yield network.get_submodule(fused).register_forward_hook(_add_low_rank(adapter, path, parts, width))
        return
    for name, _ in parts:
        module = network.get_submodule(f"{path}.{name.removesuffix('_adp')}")
        yield module.register_forward_hook(_add_low_rank(adapter, path, [(name, 0)], width))


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


def _blocks(network: Any, model: HostModel) -> Iterator[tuple[Any, nn.Module]]:
    """The parts of the network to checkpoint, each with the host's slot for it (FLUX)."""
    if model.kind == "flux":
        for kind in ("double", "single"):
            for index, block in enumerate(getattr(network, f"{kind}_blocks")):
                yield (f"{kind}_block", index), block
        return
    for module in network.modules():
        # Residual and transformer blocks: what the host's sequential blocks are made of.
        if type(module).__name__ in ("ResBlock", "SpatialTransformer"):
            yield None, module


@contextmanager
def _checkpointed(block: nn.Module, slot: tuple[str, int] | None) -> Iterator[None]:
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

        def run(*args: Any, **kwargs: Any) -> Any:
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


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.ndim == 3 else value
