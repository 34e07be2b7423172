"""What one optimiser trains: its weights, its learning rate, their average."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from trainer.sharding import is_spread, write_whole

if TYPE_CHECKING:
    from trainer.config import Optimizer  # needs pydantic, which training the small world does without


class Average:
    """Exponential average of weights, fp32: ``e <- d e + (1 - d) w``.

    At the start ``d`` rises as ``(1 + step) / (10 + step)`` up to its setting, so that the first weights, which do
    nothing, are forgotten.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in weights.items()}

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(
            list(self.weights.values()), [weights[name] for name in self.weights], step
        )


@dataclass
class Learner:
    """What one optimiser trains. Its weights may be spread over the processes, all of them or none.

    Attributes:
        weights: what a checkpoint keeps, by name; loading copies into these tensors.
        parameters: those of them that train.
        optimizer: of the parameters.
        rate: learning rate of a step, counted from 0.
        clip: largest norm of the gradient; 0: any.
        average: of the weights, or None.
        write: writes the weights to a file; by default as they are.
    """

    weights: Mapping[str, Tensor]
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    rate: Callable[[int], float]
    clip: float = 0.0
    average: Average | None = None
    write: Callable[[Path], object] | None = None

    @property
    def spread(self) -> bool:
        """Whether its weights are spread over the processes."""
        return any(is_spread(value) for value in self.weights.values())

    def save(self, path: Path | None) -> None:
        """Write the weights whole; ``path`` None: another process does, and this one gives its shares."""
        if self.write is None:
            write_whole(self.weights, path)
        elif path is not None:
            self.write(path)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """While it is open, the weights are their average, where there is one."""
        if self.average is None:
            yield
            return
        own = {name: value.detach().clone() for name, value in self.weights.items()}
        try:
            _put(self.weights, self.average.weights)
            yield
        finally:
            _put(self.weights, own)

    def begin(self, step: int) -> float:
        """Before the gradients of a step; its learning rate."""
        rate = self.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        return rate


@torch.no_grad()
def _put(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
    for name, value in others.items():
        weights[name].copy_(value)


def make_optimizer(parameters: Iterable[nn.Parameter], wanted: Optimizer) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2018) or Prodigy (Mishchenko & Defazio 2024), as the settings say."""
    assert wanted.lr is not None  # resolved
    betas = (wanted.betas[0], wanted.betas[1])
    if wanted.name == "prodigy":
        from prodigyopt import Prodigy

        return Prodigy(
            list(parameters),
            lr=wanted.lr,
            betas=betas,
            weight_decay=wanted.weight_decay,  # type: ignore[arg-type] (annotated as int)
            decouple=True,
            use_bias_correction=True,
            safeguard_warmup=wanted.warmup > 0,
        )
    given = list(parameters)
    # Over all weights at once, which is torch's default for any but those that are spread.
    together = True if any(is_spread(each) for each in given) else None
    return torch.optim.AdamW(
        given, lr=wanted.lr, betas=betas, weight_decay=wanted.weight_decay, foreach=together
    )


def learning_rate(wanted: Optimizer, step: int, steps: int) -> float:
    """The learning rate of step number ``step`` (from 0) of ``steps``: a linear warm-up, then constant or a cosine.

    A function of the step alone, where torch's schedulers have a state of their own to keep.
    """
    assert wanted.lr is not None  # resolved
    if step < wanted.warmup:
        return wanted.lr * (step + 1) / wanted.warmup
    if wanted.schedule == "constant":
        return wanted.lr
    done = (step - wanted.warmup) / max(1, steps - wanted.warmup)
    return wanted.lr * (1 + math.cos(math.pi * min(done, 1.0))) / 2


def clip_gradients(
    gradients: list[Tensor], most: float, add_up: Callable[[Tensor], Tensor] | None = None
) -> float:
    """Scale gradients so that their norm together is at most ``most`` (0: leave them); the norm before.

    As ``torch.nn.utils.clip_grad_norm_``, which adds 1e-6 to the norm and so would train other weights than runs
    before it did.

    Args:
        gradients: whole, or this process's shares.
        most: of the norm.
        add_up: of shares, adds up a tensor over all processes.
    """
    total = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    norm = float(total if add_up is None else add_up(total.square()).sqrt())
    if most and norm > most:
        for gradient in gradients:
            gradient.mul_(most / norm)
    return norm
