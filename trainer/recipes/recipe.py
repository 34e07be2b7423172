"""What a recipe tells the loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from trainer.learner import Learner


@dataclass(frozen=True)
class Turn:
    """One update of some learners. Most recipes have one turn a step; others train an opponent several times first.

    Attributes:
        learners: names of those whose gradients are taken and whose weights change.
        jobs: the micro-batches of this process, as :meth:`Recipe.feed` takes them.
        rows: pictures, over all processes.
        weights: how much each loss counts, by name; the losses that the turn has.
        kind: for the log.
    """

    learners: Sequence[str]
    jobs: Sequence[Any]
    rows: int
    weights: Mapping[str, float] = field(default_factory=lambda: {"error": 1.0})
    kind: str | None = None


@dataclass(frozen=True)
class Rows:
    """Losses of a micro-batch.

    Attributes:
        losses: by name, ``[R]``.
        slots: number of each row in its turn.
        told: what a person needs to look into a row that went wrong, as JSON has it.
    """

    losses: Mapping[str, Tensor]
    slots: Sequence[int]
    told: Sequence[Mapping[str, Any]] = ()


class Recipe(ABC):
    """What is trained, on what, with which losses.

    Attributes:
        scaler: of fp16 gradients, or None.
        together: whether weights are spread over the processes (:mod:`trainer.sharding`): :meth:`result`,
            :meth:`samples` and :meth:`validation` are then called in all of them, and the first alone writes.
    """

    scaler: Any = None
    together: bool = False

    def prepare(self) -> None:  # noqa: B027 (nothing to do is a good answer)
        """What is done once, before the first step of this run."""

    def describe(self) -> str:
        """One line on what is about to be trained."""
        return ""

    @abstractmethod
    def trainables(self) -> Mapping[str, Learner]:
        """What trains, by name. Checkpoints keep all of it."""

    @abstractmethod
    def turns(self, step: int) -> Sequence[Turn]:
        """The updates of a step (from 0), by its number alone: a run that is resumed asks for them again."""

    def feed(self, jobs: Iterator[Any]) -> Iterator[Any]:
        """What :meth:`losses` needs for each job, in their order; may be made ahead of time."""
        return jobs

    @abstractmethod
    def losses(self, turn: Turn, fed: Any) -> Rows:
        """Losses of one micro-batch of ``turn``, with gradients to its learners."""

    def training(self) -> AbstractContextManager[Any]:
        """While this is open, :meth:`losses` is called."""
        return nullcontext()

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """``settings`` and ``identities`` of data and models, as checkpoints keep them."""

    def fixed(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """What of the settings has to stay as it is when a run goes on."""
        return settings

    def result(self, step: int) -> None:  # noqa: B027 (a checkpoint may be all there is)
        """Write what is to be used, as of ``step``; called with every checkpoint."""

    def samples(self, step: int) -> Tensor | None:
        """A sheet ``[H, W, 3]``, 0..1, of what has been learnt, inside :meth:`training`; or None."""
        return None

    def validation(self) -> Mapping[str, float]:
        """Losses on pictures, noise and noise levels that stay the same, inside :meth:`training`."""
        return {}
