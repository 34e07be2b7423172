"""Teacher, generator and fake model: one backbone with two LoRAs, or three whole networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import nn

from bokeh_ops.adapter.files import read_tensors
from bokeh_ops.errors import BokehError
from trainer.files import replace_file
from trainer.frozen.model import Base
from trainer.sharding import Spread, gathered

Role = Literal["teacher", "generator", "fake"]
LORA, MODEL = "generator_lora.safetensors", "generator.safetensors"
"""The result: a LoRA for the host's Load LoRA; or a model, for Load Diffusion Model or as the small ones are."""


class Networks(ABC):
    """The three of them.

    Attributes:
        trained: parameters of generator and fake model, by name. Teacher and backbone take no gradient.
        result: name of the file that :meth:`write` writes.
    """

    trained: Mapping[Role, Mapping[str, nn.Parameter]]
    result: str

    @abstractmethod
    def acting(self, role: Role) -> Any:
        """A context in which a MODEL, which it gives, is one of the three."""

    @abstractmethod
    def training(self, checkpointing: bool) -> Any:
        """A context in which all three can be back-propagated through."""

    @abstractmethod
    def load(self) -> None:
        """Bring the weights to where the host computes."""

    @abstractmethod
    def write(self, folder: Path, first: bool = True) -> None:
        """Write the generator as it is now; without ``first`` another process does, and this one gives its shares."""

    def beside(self, module: nn.Module) -> nn.Module:
        """A module that trains with one of the networks: spread as their trained weights are."""
        return module


def _spread(patcher: Any, spread: Spread) -> Any:
    """A MODEL with the weights of ``patcher``, which is not loaded, spread over the processes."""
    from bokeh_ops.host.architectures import recognise
    from bokeh_ops.host.loading import models as loading

    network = patcher.model.diffusion_model
    spread(network, [block for block, _ in recognise(patcher).architecture.checkpoint_blocks(network)])
    return loading.kept(patcher)


class Adapted(Networks):
    """One frozen backbone: the teacher as it is, generator and fake model with a LoRA each, zero at first.

    Args:
        base: the backbone.
        rank: of the LoRAs.
        seed: of their weights.
        spread: spreads the backbone over the processes; the LoRAs stay whole. None: it stays whole, too.
        start: file that :meth:`write` wrote, which the generator starts as.

    Raises:
        BokehError: that file is of another network.
    """

    result = LORA

    def __init__(
        self, base: Base, rank: int, seed: int, spread: Spread | None = None, start: Path | None = None
    ) -> None:
        from bokeh_ops.host.loading import models as loading
        from bokeh_ops.host.training.lora import Lora, Loras, every_layer

        self.base = base
        if spread is not None:
            base.patcher = _spread(base.patcher, spread)
        self.load()
        network = base.patcher.model.diffusion_model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = {
                role: Lora(network, every_layer(network), rank).to(loading.device())
                for role in ("generator", "fake")
            }
        if start is not None:
            made["generator"].take(start, read_tensors(start)[0])
        self.loras = Loras(made)
        self.trained = {role: dict(lora.named_parameters()) for role, lora in made.items()}  # type: ignore[misc]

    @contextmanager
    def acting(self, role: Role) -> Iterator[Any]:
        with self.loras.acting(None if role == "teacher" else role):
            yield self.base.patcher

    @contextmanager
    def training(self, checkpointing: bool) -> Iterator[None]:
        from bokeh_ops.host.training.gradients import differentiable

        with ExitStack() as stack:
            stack.enter_context(differentiable(self.base.patcher, None, checkpointing, self.loras.now))
            for handle in self.loras.hooks(self.base.patcher.model.diffusion_model):
                stack.callback(handle.remove)
            yield

    def load(self) -> None:
        from bokeh_ops.host.loading import models as loading

        loading.on_device(self.base.patcher)

    def write(self, folder: Path, first: bool = True) -> None:
        if first:
            tensors = self.loras.loras["generator"].released()
            replace_file(folder / LORA, lambda path: save_file(tensors, path, {"format": "pt"}))


class Whole(Networks):
    """Three whole networks, all the teacher's at first.

    Args:
        base: the teacher, not loaded.
        spread: spreads them over the processes; None: each has all of them.
        start: file that :meth:`write` wrote, which the generator starts as.

    Raises:
        BokehError: its weights are in a type that nothing can train in, or that file is of another network.
    """

    result = MODEL

    def __init__(self, base: Base, spread: Spread | None = None, start: Path | None = None) -> None:
        from bokeh_ops.host.loading import models as loading

        dtype = next(base.patcher.model.diffusion_model.parameters()).dtype
        if not dtype.is_floating_point or dtype.itemsize < 2:
            raise BokehError(
                f"lora.rank is 0, which trains whole networks, and their weights are {dtype}: too coarse to change by "
                "little. Set base.weights to fp32."
            )
        self.base, self.spread = base, spread
        others: tuple[Role, ...] = ("generator", "fake")
        self.patchers: dict[Role, Any] = {}
        for role in others:
            copied = loading.twin(base.patcher)
            if role == "generator" and start is not None:
                copied.model.diffusion_model.load_state_dict(base.read(start))
            self.patchers[role] = copied if spread is None else _spread(copied, spread)
        if spread is not None:
            base.patcher = _spread(base.patcher, spread)
        self.patchers["teacher"] = base.patcher
        self.load()  # before anything is made beside the weights
        self.trained = {role: dict(self._network(role).named_parameters()) for role in others}

    def _network(self, role: Role) -> nn.Module:
        return self.patchers[role].model.diffusion_model

    @contextmanager
    def acting(self, role: Role) -> Iterator[Any]:
        yield self.patchers[role]

    @contextmanager
    def training(self, checkpointing: bool) -> Iterator[None]:
        from bokeh_ops.host.training.gradients import differentiable

        with ExitStack() as stack:
            for patcher in self.patchers.values():
                stack.enter_context(differentiable(patcher, None, checkpointing))
            yield

    def load(self) -> None:
        from bokeh_ops.host.loading import models as loading

        for patcher in self.patchers.values():
            loading.on_device(patcher)

    def write(self, folder: Path, first: bool = True) -> None:
        weights = gathered(self._network("generator").state_dict(), first)
        if first:
            replace_file(folder / MODEL, lambda path: self.base.write(weights, path))

    def beside(self, module: nn.Module) -> nn.Module:
        if self.spread is not None:
            self.spread(module)
        return module
