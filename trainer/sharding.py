"""Weights spread over the processes (fully sharded data parallelism, Zhao et al. 2023), by torch's ``fully_shard``.

Each process holds its share of every weight. What a block needs is gathered when it is computed and let go of after
it; gradients are added up and spread on the way back. What trains is spread with its gradients, optimiser states and
average. All processes have to call a spread network equally often, and to take part where a weight is wanted whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bokeh_ops.errors import BokehError


def check_even(total: int, micro: int, world: int) -> None:
    """Refuse steps in which some process would compute more micro-batches than another, which would wait for ever.

    Raises:
        BokehError: it says what the number of pictures has to be a multiple of.
    """
    if total % (micro * world):
        raise BokehError(
            f"shard needs as many pictures in every process: batch.total is {total}; with batch.micro {micro} and "
            f"{world} processes it must be a multiple of {micro * world}."
        )


class Spread:
    """Spreads networks over the processes.

    Args:
        world: how many there are, more than one.
        device: where each computes.
    """

    def __init__(self, world: int, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        self.mesh = init_device_mesh(device.type, (world,))

    def __call__(self, network: nn.Module, blocks: Iterable[nn.Module] = ()) -> None:
        """Spread a network's weights; its modules stay the same objects.

        Args:
            network: on any device; its weights come to the processes' own.
            blocks: parts of it that are gathered as a whole, none inside another. Every layer outside of them is
                gathered by itself: so all that has weights is let go of after each call, and gathered on the way
                back by a hook on its own output, whichever part of the network the way back begins in.
        """
        from torch.distributed.fsdp import FSDPModule, fully_shard

        units = list(blocks)
        inside = {id(module) for block in units for module in block.modules()}
        outside = [
            module
            for module in network.modules()
            if id(module) not in inside
            and module is not network
            and next(module.parameters(False), None) is not None
        ]
        for module in (*units, *outside, network):
            fully_shard(module, mesh=self.mesh, reshard_after_forward=True)
        for block in units:
            block.register_forward_pre_hook(_own, with_kwargs=True)  # after torch's own hook
        for module in network.modules():
            if isinstance(module, FSDPModule):
                # Added up, not averaged, as the loop divides by the rows of all processes; and by nothing but sums,
                # which is all that gloo knows.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)


def _own(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Copies what a block is given, where it has a gradient: FLUX adds into it, which torch's hook does not allow."""

    def own(value: Any) -> Any:
        return value.clone() if isinstance(value, Tensor) and value.requires_grad else value

    if not torch.is_grad_enabled():
        return args, kwargs
    return tuple(own(value) for value in args), {key: own(value) for key, value in kwargs.items()}


def is_spread(tensor: Any) -> bool:
    """Whether a tensor is spread over the processes: torch's ``DTensor``, which some builds of it do not have."""
    return isinstance(tensor, Tensor) and hasattr(tensor, "device_mesh")


def local(tensor: Any) -> Tensor:
    """This process's share of a tensor that is spread, in the same memory; any other as it is."""
    return tensor.to_local() if is_spread(tensor) else tensor


def whole(tensor: Any) -> Tensor:
    """A tensor of all its shares, for which every process has to ask; any other as it is."""
    return tensor.full_tensor() if is_spread(tensor) else tensor


def share_of(tensor: Tensor, like: Any) -> Tensor:
    """``tensor``, which every process has whole, spread as ``like`` is; as it is where that is not."""
    if not is_spread(like) or is_spread(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def gathered(weights: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Tensors whole on the CPU, one after another; without ``keep`` only this process's shares of them are given."""
    found = {}
    for name, value in weights.items():
        full = whole(value.detach())
        if keep:
            found[name] = full.cpu().contiguous()
    return found


def write_whole(weights: Mapping[str, Tensor], path: Path | None) -> None:
    """Write tensors whole to a safetensors file; None: another process does, and this one gives its shares."""
    found = gathered(weights, path is not None)
    if path is not None:
        save_file(found, path)
