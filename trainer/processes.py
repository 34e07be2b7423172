"""One or several processes: who computes what, and adding up what they computed.

`accelerate` starts the processes and connects them. The adapter is small, so gradients are added up once a step, as
one tensor, rather than while they are computed; nothing else needs to know how many processes there are.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from bokeh_ops.errors import BokehError
from trainer.sharding import is_spread

ONE_STARTED = (
    "accelerate launch was asked for several processes and started only this one: with --cpu it never starts more. "
    "Training goes on, in one process. For several on a CPU: accelerate launch --multi_gpu --num_processes N -m "
    "trainer fit ... with device: cpu."
)


def asked_for_several(environment: Mapping[str, str]) -> bool:
    """Whether `accelerate launch` says where to meet other processes, and none of them was started.

    Its launcher for one process (``--cpu``) names the place where it was asked for several, but no number of this
    process, as the launcher for several does.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment
    return launched and "RANK" not in environment


class Alone:
    """One process, and no other.

    Attributes:
        rank, world: number of this process, and how many there are.
        device: where what all have in common is added up.
    """

    rank, world = 0, 1
    device = torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this process writes files that all share, and speaks."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Tell the user, once."""
        if self.first:
            print(text, file=sys.stderr)

    def wait(self) -> None:
        """Until every process is here."""

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        return tensor

    def add_up_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes; a missing one counts as zero.

        Those of weights that are spread (:mod:`trainer.sharding`) have been added up as they were computed.
        """
        gradients = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if not is_spread(parameter.grad):
                gradients.append(parameter.grad)
        if self.world == 1 or not gradients:
            return
        total = self.add_up(torch.cat([gradient.flatten() for gradient in gradients]))
        start = 0
        for gradient in gradients:
            gradient.copy_(total[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()

    def close(self) -> None:
        """At the end: let the other processes go."""


class Processes(Alone):
    """The processes that `accelerate` or `torchrun` started, or this one.

    Args:
        cpu: keep it off any accelerator.

    Raises:
        BokehError: several processes were started and did not find one another; each would train for itself, and
            all would write the same files.
    """

    def __init__(self, cpu: bool) -> None:
        from accelerate import PartialState

        from bokeh_ops.host.loading.start import accelerated

        # Without an accelerator `accelerate` connects processes only where it is told that they are for the CPU.
        cpu = cpu or not accelerated()
        self.state: Any = PartialState(cpu=cpu)
        self.rank = self.state.process_index
        self.world = self.state.num_processes
        self.device = self.state.device
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started != self.world:
            raise BokehError(
                f"{started} processes were started, and this one is connected to {self.world - 1} others. Is every "
                "process on a machine with an accelerator, or none of them?"
            )
        if self.world == 1 and asked_for_several(os.environ):
            print(ONE_STARTED, file=sys.stderr)

    def wait(self) -> None:
        self.state.wait_for_everyone()

    def add_up(self, tensor: Tensor) -> Tensor:
        if self.world == 1:
            return tensor
        from accelerate.utils import reduce

        return torch.as_tensor(reduce(tensor, "sum"))

    def close(self) -> None:
        if self.world > 1:
            self.state.destroy_process_group()
