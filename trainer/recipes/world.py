"""The recipe of small base models: a whole network, as diffusion models are trained. Every K is seen, none is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bokeh_ops.errors import BokehError
from bokeh_ops.picture.sheet import contact_sheet
from trainer.data import open_dataset
from trainer.files import replace_file
from trainer.learner import Average, Learner
from trainer.loop import Loop, Schedule
from trainer.recipes.bokeh.objective import LEAST_FLOW_SIGMA, row_losses, weights
from trainer.recipes.bokeh.samples import write_png
from trainer.recipes.recipe import Recipe, Rows, Turn
from trainer.seeded import generator as draws
from trainer.seeded import normal
from trainer.world.base import Rows as Captions
from trainer.world.base import blur_words, describe, first_weights
from trainer.world.paint import SIDE
from trainer.world.scene import HELD_OUT, caption, draw_scene

WEIGHTS = "base.safetensors"
FREE = ("steps", "sample_every", "save_every")
"""Of a plan, what may change on the way."""


@dataclass(frozen=True)
class Plan:
    """How a base is trained.

    Attributes:
        steps: in all; the learning rate falls to 0 over the last ``fall`` of them.
        batch: pictures of a step.
        lr: largest learning rate of AdamW, after ``warmup`` steps.
        ema: decay of the average of the weights that is kept as the result.
        no_caption: share of pictures with an empty caption.
        mention: share of captions in which blur may be mentioned (:func:`trainer.world.base.blur_words`).
        sample_every, save_every: steps.
    """

    steps: int = 20000
    batch: int = 16
    lr: float = 1e-3
    warmup: int = 200
    fall: float = 0.3
    ema: float = 0.999
    no_caption: float = 0.1
    mention: float = 0.1
    seed: int = 0
    sample_every: int = 500
    save_every: int = 200

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        falling = self.steps * self.fall
        left = min(1.0, (self.steps - step) / falling) if falling else 1.0
        return self.lr * min(1.0, (step + 1) / self.warmup) * left


class Drawn(Protocol):
    """Pictures to learn from."""

    def draw(self, plan: Plan, step: int) -> tuple[Tensor, list[str]]:
        """Pictures ``[batch, S, S, 3]``, 0..1, and captions of a step."""
        ...


class Pictures:
    """Data sets of the world in memory.

    Args:
        folders: written by :func:`trainer.world.data.write_dataset`.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        samples = []
        for folder in folders:
            dataset = open_dataset(folder)
            samples += [dataset.sample(index) for index in range(len(dataset))]
        if any(sample.info["seed"] >= HELD_OUT for sample in samples):
            raise BokehError(f"A data set holds seeds from {HELD_OUT} on, which are kept for measuring.")
        self.images = torch.from_numpy(np.stack([sample.image for sample in samples]))
        self.captions = [sample.captions[0] for sample in samples]
        self.ks = [float(sample.k or 0.0) * 512 / SIDE for sample in samples]

    def __len__(self) -> int:
        return len(self.captions)

    def draw(self, plan: Plan, step: int) -> tuple[Tensor, list[str]]:
        """Pictures ``[batch, S, S, 3]``, 0..1, some of them mirrored, and captions of a step."""
        chance = draws(plan.seed, "batch", step)
        chosen = chance.integers(len(self), size=plan.batch)
        mirrored, bare, mention = chance.random((3, plan.batch))
        images = self.images[torch.from_numpy(chosen)].float() / 255
        images = torch.where(torch.from_numpy(mirrored < 0.5)[:, None, None, None], images.flip(2), images)
        texts = []
        for row, index in enumerate(chosen):
            text = self.captions[index]
            if mention[row] < plan.mention:
                text = f"{text} {blur_words(self.ks[index])}"
            texts.append("" if bare[row] < plan.no_caption else text)
        return images, texts


def new_model(architecture: str, pictures: Pictures, seed: int) -> Any:
    """A base model of the world that has learnt nothing yet."""
    from bokeh_ops.host.small.model import SmallModel
    from bokeh_ops.host.small.parts import cosine_sizes

    sizes = cosine_sizes(pictures.images[:1000].float() / 255)
    model = SmallModel(describe(architecture), torch.float32, None, sizes)
    first_weights(model.network, seed)
    return model


def train(
    model: Any, pictures: Drawn, plan: Plan, out: Path, until: int | None = None, uniform: bool = False
) -> bool:
    """Train a small model to the plan's end, or to step ``until``, from the last checkpoint in ``out``.

    ``uniform``: a flow's noise levels are all as likely, rather than logit-normal.

    Returns:
        Whether the end was reached. ``out/base.safetensors`` is the average of the weights.

    Raises:
        BokehError: ``out`` is of another training.
    """
    return base_loop(model, pictures, plan, out, until, uniform).run()


def base_loop(
    model: Any, pictures: Drawn, plan: Plan, out: Path, until: int | None = None, uniform: bool = False
) -> Loop:
    """The same, ready to run."""
    if (out / "state.safetensors").is_file() and not (out / "checkpoints").is_dir():
        raise BokehError(
            f"{out} is a training of an older version, which cannot go on; choose another folder."
        )
    schedule = Schedule(plan.steps, plan.save_every, 1, plan.sample_every, until=until)
    return Loop(World(model, pictures, plan, out, uniform), schedule, out)


class World(Recipe):
    """A small base model in training.

    Args:
        model: a :class:`~bokeh_ops.host.small.model.SmallModel`.
        pictures: to learn from.
        plan: how.
        out: folder of samples and result.
        uniform: as for :func:`train`.
    """

    def __init__(self, model: Any, pictures: Drawn, plan: Plan, out: Path, uniform: bool = False) -> None:
        from bokeh_ops.host.loading import models as loading
        from bokeh_ops.host.training import denoise

        self.model, self.pictures, self.plan, self.out = model, pictures, plan, out
        self.uniform = uniform
        self.network = model.network
        loading.on_device(model.patcher)  # before anything is made beside the weights
        self.device = loading.device()
        self.parameters = dict(self.network.named_parameters())
        self.average = Average(self.parameters, plan.ema)
        optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=plan.lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )
        trained = list(self.parameters.values())
        self.learner = Learner(self.parameters, trained, optimizer, plan.rate, 1.0, self.average)
        self.captions = Captions(model.words)
        self.prediction = denoise.prediction(model.patcher)
        self.sigmas = None if self.prediction == "flow" else denoise.discrete_sigmas(model.patcher)

    def trainables(self) -> Mapping[str, Learner]:
        return {"network": self.learner}

    def turns(self, step: int) -> list[Turn]:
        return [Turn(("network",), [step], self.plan.batch)]

    def losses(self, turn: Turn, fed: int) -> Rows:
        from bokeh_ops.host.training import denoise
        from bokeh_ops.host.training.gradients import differentiable

        plan, step, patcher = self.plan, fed, self.model.patcher
        images, texts = self.pictures.draw(plan, step)
        x0 = self.model.codec.encode(images)
        noise = normal(tuple(x0.shape), plan.seed, "noise", step)
        chance = draws(plan.seed, "levels", step)
        # Levels spread evenly over the batch: the loss varies less.
        places = torch.from_numpy((np.arange(plan.batch) + chance.random(plan.batch)) / plan.batch).float()
        if self.sigmas is None:
            if not self.uniform:
                places = torch.special.ndtri(places.clamp(1e-4, 1 - 1e-4)).sigmoid()
            sigma = places.clamp(min=LEAST_FLOW_SIGMA)
        else:
            sigma = self.sigmas[(places * len(self.sigmas)).long().clamp(max=len(self.sigmas) - 1)]
        x0, noise, sigma = (drawn.to(self.device) for drawn in (x0, noise, sigma))
        x = denoise.add_noise(patcher, x0, noise, sigma)
        context, pooled = self.captions(texts)
        guidance = 1.0 if self.model.architecture.guided else None
        condition = denoise.conditioning(context, pooled, guidance, [0.0] * plan.batch)
        with differentiable(patcher):
            estimate = denoise.denoise(patcher, condition, x, sigma)
        error = row_losses(estimate, x0, weights(self.prediction, sigma, 0.0))
        return Rows({"error": error}, range(plan.batch))

    @contextmanager
    def training(self) -> Iterator[None]:
        self.network.requires_grad_(True)
        try:
            yield
        finally:
            self.network.requires_grad_(False)

    def record(self) -> dict[str, Any]:
        return {
            "settings": asdict(self.plan),
            "identities": {"architecture": self.model.architecture.name},
        }

    def fixed(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        return {name: value for name, value in settings.items() if name not in FREE}

    def result(self, step: int) -> None:
        with self.learner.averaged():
            replace_file(self.out / WEIGHTS, lambda path: self.model.save(path, torch.float16))

    def samples(self, step: int) -> Tensor:
        """Held-out captions, from the averaged weights, with and without guidance."""
        from bokeh_ops.host.loading import models as loading
        from bokeh_ops.host.small.model import sample_texts

        texts = [caption(draw_scene(HELD_OUT + number)) for number in range(8)]
        sampler = (self.model.architecture.sampling.sampler, "simple")
        with self.learner.averaged():
            rows = [sample_texts(self.model, texts, 1, (SIDE, SIDE), 20, cfg, *sampler) for cfg in (1.0, 3.0)]
        loading.on_device(self.model.patcher)
        pictures = torch.cat(rows).repeat_interleave(3, 1).repeat_interleave(3, 2)
        labels = [text.replace(" and ", ", ") for text in texts] * 2
        sheet = contact_sheet(pictures, labels, columns=8, cell_size=192)[0]
        write_png(self.out / "samples" / f"step-{step:06d}.png", sheet)
        return sheet
