"""A new adapter for a base model, and what trains it: optimiser, learning rate, average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bokeh_ops.adapter.files import count_double_blocks, read_adapter
from bokeh_ops.adapter.network import AdapterConfig, BokehAdapter, LayerSpec
from bokeh_ops.errors import BokehError
from trainer.fit.base import Base
from trainer.fit.config import Fit, Optimizer


def new_adapter(base: Base, settings: Fit) -> BokehAdapter:
    """An adapter for ``base`` that changes nothing yet, the same for the same seed; fp32, on the CPU.

    Args:
        base: whose layers it is for.
        settings: resolved.
    """
    from bokeh_ops.host.architectures import recognise

    wanted = settings.adapter
    architecture, widths = base.architecture, recognise(base.patcher).widths
    assert wanted.layers != "auto"  # resolved
    cross = architecture.bokeh_layers(widths, wanted.layers)
    query_key = architecture.query_key_layers(widths) if wanted.query_key_rank else []
    config = AdapterConfig(
        base=architecture.name,
        bokeh_hidden_dim=wanted.hidden,
        bokeh_context_dim=wanted.context,
        tokens=wanted.tokens,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return BokehAdapter(
            config,
            {path: LayerSpec(widths[path], wanted.rank or None) for path in cross},
            {path: LayerSpec(widths[path], wanted.query_key_rank) for path in query_key},
        )


def starting_adapter(base: Base, settings: Fit, beside: Path) -> BokehAdapter:
    """The adapter to train: a new one, or the one that ``adapter.init`` names, in fp32.

    Raises:
        BokehError: the named one cannot be read or is for another architecture.
    """
    from bokeh_ops.host.architectures import check_fits, recognise

    if settings.adapter.init is None:
        return new_adapter(base, settings)
    path = beside / Path(settings.adapter.init).expanduser()
    model = recognise(base.patcher)
    adapter = read_adapter(path, count_double_blocks(model.widths))
    check_fits(adapter, model, str(path))
    return adapter.float().train()


def choose_parameters(adapter: BokehAdapter, localisation: float) -> dict[str, nn.Parameter]:
    """What trains, by name; the rest takes no gradient.

    With one token ``W'_k`` is inert (eq. 10 over a single key), and only the localisation regulariser sees it.
    """
    inert = adapter.config.tokens == 1 and not localisation
    chosen = {}
    for name, parameter in adapter.named_parameters():
        parameter.requires_grad_(not (inert and ".to_k_bokeh." in name))
        if parameter.requires_grad:
            chosen[name] = parameter
    return chosen


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
    return torch.optim.AdamW(list(parameters), lr=wanted.lr, betas=betas, weight_decay=wanted.weight_decay)


def learning_rate(wanted: Optimizer, step: int, steps: int) -> float:
    """The learning rate of step number ``step`` (from 0) of ``steps``: a linear warm-up, then constant or a cosine."""
    assert wanted.lr is not None  # resolved
    if step < wanted.warmup:
        return wanted.lr * (step + 1) / wanted.warmup
    if wanted.schedule == "constant":
        return wanted.lr
    done = (step - wanted.warmup) / max(1, steps - wanted.warmup)
    return wanted.lr * (1 + math.cos(math.pi * min(done, 1.0))) / 2


def clip_gradients(gradients: list[torch.Tensor], most: float) -> float:
    """Scale gradients so that their norm together is at most ``most`` (0: leave them); the norm before."""
    norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients])))
    if most and norm > most:
        for gradient in gradients:
            gradient.mul_(most / norm)
    return norm


class Average:
    """Exponential average of the adapter's weights, fp32: ``e <- d e + (1 - d) w``.

    At the start ``d`` rises as ``(1 + step) / (10 + step)`` up to its setting, so that the first weights, which do
    nothing, are forgotten.
    """

    def __init__(self, adapter: BokehAdapter, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in adapter.state_dict().items()}

    @torch.no_grad()
    def update(self, adapter: BokehAdapter, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in adapter.state_dict().items():
            self.weights[name].lerp_(value, 1 - decay)

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        for name, value in self.weights.items():
            value.copy_(weights[name])


def check_same_layers(found: dict[str, Any], adapter: BokehAdapter, source: str) -> None:
    """Raise unless a state dict is of this very architecture.

    Raises:
        BokehError: other layers, or other shapes.
    """
    wanted = adapter.state_dict()
    odd = sorted(set(found) ^ set(wanted))
    if odd:
        raise BokehError(
            f"{source} is a checkpoint of another architecture: {odd[0]} is in only one of it and this run's adapter "
            f"({len(odd)} such tensors). Choose another folder for out, or the settings it was made with."
        )
    for name, value in found.items():
        if value.shape != wanted[name].shape:
            raise BokehError(
                f"{source} is a checkpoint of another architecture: {name} is {list(value.shape)}, expected "
                f"{list(wanted[name].shape)}. Choose another folder for out, or the settings it was made with."
            )
