"""Teacher, generator and fake model: one backbone with two LoRAs, or three small networks."""

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
from trainer.frozen.small import SmallBase

Role = Literal["teacher", "generator", "fake"]
LORA, MODEL = "generator_lora.safetensors", "generator.safetensors"
"""The result: a LoRA for the host's Load LoRA; or a small model."""


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
    def write(self, folder: Path) -> None:
        """Write the generator as it is now."""

    @abstractmethod
    def begin(self, path: Path) -> None:
        """Let the generator start as one that :meth:`write` wrote.

        Raises:
            BokehError: the file is of another network, or of another kind.
        """


class Adapted(Networks):
    """One frozen backbone: the teacher as it is, generator and fake model with a LoRA each, zero at first.

    Args:
        base: the backbone.
        rank: of the LoRAs.
        seed: of their weights.
    """

    result = LORA

    def __init__(self, base: Base, rank: int, seed: int) -> None:
        from bokeh_ops.host.loading import models as loading
        from bokeh_ops.host.training.lora import Lora, Loras, every_layer

        self.base = base
        self.load()
        network = base.patcher.model.diffusion_model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = {
                role: Lora(network, every_layer(network), rank).to(loading.device())
                for role in ("generator", "fake")
            }
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

    def write(self, folder: Path) -> None:
        tensors = self.loras.loras["generator"].released()
        replace_file(folder / LORA, lambda path: save_file(tensors, path, {"format": "pt"}))

    def begin(self, path: Path) -> None:
        self.loras.loras["generator"].take(path, read_tensors(path)[0])


class Whole(Networks):
    """Three small networks, all the teacher's at first.

    Args:
        base: the teacher.

    Raises:
        BokehError: it is no small model.
    """

    result = MODEL

    def __init__(self, base: Base) -> None:
        from bokeh_ops.host.small.model import SmallModel

        if not isinstance(base, SmallBase):
            raise BokehError(
                "lora.rank is 0, which trains three whole networks and is for small models of this project; the base "
                f"is {base.architecture.title} of a checkpoint. Set lora.rank to 64."
            )
        teacher = base.small
        self.models: dict[Role, SmallModel] = {"teacher": teacher}
        others: tuple[Role, ...] = ("generator", "fake")
        for role in others:
            sizes = getattr(teacher.codec, "sizes", None)
            dtype = next(teacher.network.parameters()).dtype
            model = SmallModel(dict(teacher.description), dtype, teacher.words.table, sizes)
            model.network.load_state_dict(teacher.network.state_dict())
            model.network.requires_grad_(False)
            self.models[role] = model
        self.load()  # before anything is made beside the weights
        self.trained = {role: dict(self.models[role].network.named_parameters()) for role in others}

    @contextmanager
    def acting(self, role: Role) -> Iterator[Any]:
        yield self.models[role].patcher

    @contextmanager
    def training(self, checkpointing: bool) -> Iterator[None]:
        from bokeh_ops.host.training.gradients import differentiable

        with ExitStack() as stack:
            for model in self.models.values():
                stack.enter_context(differentiable(model.patcher, None, checkpointing))
            yield

    def load(self) -> None:
        from bokeh_ops.host.loading import models as loading

        for model in self.models.values():
            loading.on_device(model.patcher)

    def begin(self, path: Path) -> None:
        from bokeh_ops.host.small.model import read_small

        self.models["generator"].network.load_state_dict(read_small(path).network.state_dict())

    def write(self, folder: Path) -> None:
        replace_file(folder / MODEL, lambda path: self.models["generator"].save(path, torch.float16))
