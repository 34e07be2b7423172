"""What this extension has to know of a diffusion model's architecture: one object each, with everything in it.

An architecture is a module of this package with an object ``ARCHITECTURE``; nothing else names it. Settings are read,
and adapters described, before ComfyUI is there: modules here import it inside their methods alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ..attention.model_call import ModelCall

Watch = Callable[[str, Tensor, Tensor, int], None]
"""Called as ``watch(path, queries [R, L, C], text keys [R, M, C], heads)`` in each adapted cross-attention."""


@dataclass(frozen=True)
class SamplingDefaults:
    """How pictures are made where nothing else is said.

    Attributes:
        cfg: classifier-free guidance.
        sampler: the host's name of it.
        size: side in pixels that the base models are trained at.
    """

    cfg: float
    sampler: str
    size: int


@dataclass(frozen=True)
class TrainingDefaults:
    """How an adapter is trained where nothing else is said (supp. A.2 and B.1).

    Attributes:
        batch: pictures of a step.
        rank: of bokeh keys and values; 0: full matrices.
        query_key_rank: of the query/key adapters; 0: none.
        layers: which layers get bokeh attention.
        noise_offset: noise shared by all pixels of a channel.
        optimizer: its name.
    """

    batch: int
    rank: int
    query_key_rank: int
    layers: Literal["decoder", "all"]
    noise_offset: float
    optimizer: Literal["adamw", "prodigy"]


@dataclass(frozen=True)
class HostModel:
    """The attention layers of one diffusion model.

    Attributes:
        architecture: what it is.
        title: what to call it in a message.
        widths: features of each attention, by the path of the layer inside the diffusion model.
    """

    architecture: Architecture
    title: str
    widths: dict[str, int]


class Architecture(ABC):
    """One architecture.

    Attributes:
        name: in adapter files (``base``) and in settings (``architecture``).
        title: what people call it.
        flow: whether it is a flow (noise levels 0..1) or has a discrete schedule of noise levels.
        cross_attention: whether text is attended to apart from the picture, in an encoder and a decoder.
        size_multiple: pixels that the sides of a picture must be a multiple of.
        most_cfg: more classifier-free guidance than this burns its pictures, as its guidance is distilled; None: any.
        guided: whether the network is told a distilled guidance.
        pooled: whether the network is told the pooled text.
        lens: whether a diffusion lens can be made of it.
        branches: whether it can be shown pictures as further tokens, each with its own modulation (Genfocus).
        text_tokens: tokens of a prompt that training keeps, so that all prompts are equally long; None: all.
        text_encoders: what the host's tokenizer calls the text encoders; the last one's tokens are attended to, the
            first one's sum is the pooled text.
        text_files: the text encoders' files that come beside a diffusion model alone, for a message.
        sampling, training: defaults.
        toy: arguments of the host's network class for the smallest network of the kind.
    """

    name: str
    title: str
    flow: bool = False
    cross_attention: bool = True
    size_multiple: int = 8
    most_cfg: float | None = None
    guided: bool = False
    pooled: bool = False
    lens: bool = False
    branches: bool = False
    text_tokens: int | None = None
    text_encoders: tuple[str, ...] = ("l",)
    text_files: str
    sampling: SamplingDefaults
    training: TrainingDefaults
    toy: Mapping[str, Any]

    # -- what a model is --------------------------------------------------------------------------------------------

    @abstractmethod
    def matches(self, model: Any) -> bool:
        """Whether the host's model (``MODEL.model``) is of this architecture, by the network that is in it."""

    @abstractmethod
    def claims(self, model: Any) -> bool:
        """Whether the host takes a model for this architecture, whatever network is in it."""

    @abstractmethod
    def widths(self, network: Any) -> dict[str, int]:
        """Features of each attention by path. Modules' attributes are read, never weights: those may not be there."""

    @abstractmethod
    def summary(self, network: Any) -> str:
        """A few words on the size of a network."""

    # -- an adapter in it -------------------------------------------------------------------------------------------

    @abstractmethod
    def bokeh_layers(self, widths: Mapping[str, int], layers: Literal["decoder", "all"]) -> list[str]:
        """The layers of :meth:`widths` that get bokeh keys and values."""

    @abstractmethod
    def query_key_layers(self, widths: Mapping[str, int]) -> list[str]:
        """The layers of :meth:`widths` that query/key adapters go on."""

    @abstractmethod
    def projection(self, path: str, which: Literal["q", "k"], width: int) -> tuple[str, int | None]:
        """Where a layer's queries or keys are projected.

        Returns:
            Path of the module, and the first of its output's ``width`` features that are meant; None: all are.
        """

    def lens_layers(self, network: Any, widths: Mapping[str, int]) -> list[str]:
        """The layers of ``widths`` in which a diffusion lens spreads light."""
        return []

    def text_places(self, text: Tensor) -> int:
        """How many tokens of a layer come before those of the picture, for a prompt ``[R, L, C]``."""
        return 0

    @abstractmethod
    def attach(
        self, options: dict[str, Any], call: ModelCall, model: HostModel, network: nn.Module, x: Tensor
    ) -> AbstractContextManager[dict[str, Any]]:
        """While this is open, the network computes its attention as ``call`` wants it (eqs. 10, 11 and 15).

        Args:
            options: the host's ``transformer_options``, which are not changed.
            call: bokeh terms and grounding.
            model: the layers.
            network: the diffusion model that is about to run.
            x: what it is given ``[R, C, h, w]``.

        Returns:
            A copy of the options to give to the network; what other extensions put there is chained.
        """

    # -- the host's parts -------------------------------------------------------------------------------------------

    @abstractmethod
    def text_encoder_kind(self) -> Any:
        """The host's ``CLIPType`` of text encoders that come in files of their own."""

    @abstractmethod
    def small_model(self, config: dict[str, Any], v_prediction: bool) -> tuple[Any, Callable[[Any], Any]]:
        """The host's configuration for a network with dimensions of one's own, and what makes the model of it.

        Args:
            config: arguments of the host's network class.
            v_prediction: of those with a discrete schedule, the network predicts v instead of the noise.
        """

    def text_width(self, config: Mapping[str, Any]) -> int:
        """Features of a token that a network with this ``config`` attends to."""
        return config["context_dim"]

    def pooled_width(self, config: Mapping[str, Any]) -> int | None:
        """Features of the pooled text that such a network is told; None: it is told none."""
        return None

    def picture_conditions(self, width: int, height: int) -> dict[str, Any]:
        """What CONDITIONING says of a picture's size in pixels."""
        return {}

    def timestep_shift(self, height: int, width: int) -> float | None:
        """Exponent of a flow's timestep shift for latents of a size, as its samplers use; None: there is none."""
        return None

    # -- gradients --------------------------------------------------------------------------------------------------

    def training_hooks(self, network: nn.Module) -> Iterator[Any]:
        """Hooks that a network needs to be back-propagated through, as handles to remove."""
        return iter(())

    @abstractmethod
    def checkpoint_blocks(self, network: Any) -> Iterator[tuple[nn.Module, tuple[str, int] | None]]:
        """The parts of a network whose inside is computed again on the way back, each with the host's slot for it."""

    @abstractmethod
    def bottleneck(self, network: Any) -> tuple[nn.Module, int]:
        """The layer that gives a network's deepest features of a picture, and how many there are at each place."""

    @abstractmethod
    def features(self, given: Any) -> Tensor:
        """Those features, ``[R, L, C]``, in what that layer gives."""

    @abstractmethod
    def timestep_embedding(self, network: Any) -> tuple[nn.Module, int]:
        """What gives the timestep embedding ``[R, C]`` that all else of a network is modulated by, and C."""

    def watched(self, options: dict[str, Any], paths: list[str], watch: Watch) -> dict[str, Any]:
        """A copy of ``transformer_options`` with which ``watch`` sees the cross-attentions of ``paths``."""
        raise NotImplementedError(f"{self.title} has no cross-attention to look at.")


def copy_input(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """A forward pre-hook that copies its input, for hosts that add into it in place afterwards."""
    if not (torch.is_grad_enabled() and isinstance(args[0], Tensor) and args[0].requires_grad):
        return None
    return (args[0].clone(), *args[1:])
