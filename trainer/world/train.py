"""Training a base model of the small world, as diffusion models are trained: every K is seen, none is told.

Stopped and started again at will: everything drawn depends on the seed and the step, and the state is written whole.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from bokeh_ops.errors import BokehError
from bokeh_ops.picture.sheet import contact_sheet
from trainer.data import open_dataset
from trainer.files import replace_file
from trainer.fit.objective import LEAST_FLOW_SIGMA
from trainer.fit.samples import write_png
from trainer.seeded import generator as draws
from trainer.seeded import normal
from trainer.world.base import Rows, blur_words, describe, first_weights
from trainer.world.paint import SIDE
from trainer.world.scene import HELD_OUT, caption, draw_scene

STATE, WEIGHTS, LOG = "state.safetensors", "base.safetensors", "losses.jsonl"


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
        sample_every, save_every, log_every: steps.
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
    log_every: int = 50

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        falling = self.steps * self.fall
        left = min(1.0, (self.steps - step) / falling) if falling else 1.0
        return self.lr * min(1.0, (step + 1) / self.warmup) * left


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


class Training:
    """A base in training.

    Args:
        architecture: which.
        pictures: to learn from.
        plan: how.
        out: folder of its state, samples and result.
    """

    def __init__(self, architecture: str, pictures: Pictures, plan: Plan, out: Path) -> None:
        from bokeh_ops.host.loading import models as loading
        from bokeh_ops.host.small.model import SmallModel
        from bokeh_ops.host.small.parts import cosine_sizes
        from bokeh_ops.host.training import denoise

        self.architecture, self.pictures, self.plan, self.out = architecture, pictures, plan, out
        sizes = cosine_sizes(pictures.images[:1000].float() / 255)
        self.step, self.seconds = 0, 0.0
        kept = self._kept()
        self.model = SmallModel(
            describe(architecture), torch.float32, kept.get("table"), kept.get("sizes", sizes)
        )
        self.network = self.model.network
        first_weights(self.network, plan.seed)
        loading.on_device(self.model.patcher)  # before anything is made beside the weights
        self.device = loading.device()
        self.parameters = dict(self.network.named_parameters())
        self.average = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=plan.lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )
        if kept:
            self._restore(kept)
        self.rows = Rows(self.model.words)
        self.flow = denoise.prediction(self.model.patcher) == "flow"
        self.sigmas = None if self.flow else denoise.discrete_sigmas(self.model.patcher)

    def run(self, until: int | None = None) -> list[float]:
        """Train to the plan's end, or to step ``until``; the losses."""
        last = self.plan.steps if until is None else min(until, self.plan.steps)
        losses, began = [], time.monotonic()
        self.out.mkdir(parents=True, exist_ok=True)
        while self.step < last:
            losses.append(self._one_step())
            self.step += 1
            if self.step % self.plan.log_every == 0:
                recent = losses[-self.plan.log_every :]
                self.seconds, began = self.seconds + time.monotonic() - began, time.monotonic()
                line = {
                    "step": self.step,
                    "loss": round(sum(recent) / len(recent), 5),
                    "seconds": round(self.seconds, 1),
                }
                with (self.out / LOG).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                print(line, flush=True)
            if self.step % self.plan.save_every == 0 or self.step == last:
                self.save()
            if self.plan.sample_every and (self.step % self.plan.sample_every == 0 or self.step == last):
                self.sample()
        return losses

    def _one_step(self) -> float:
        from bokeh_ops.host.training import denoise
        from bokeh_ops.host.training.gradients import differentiable

        plan, step = self.plan, self.step
        images, texts = self.pictures.draw(plan, step)
        x0 = self.model.codec.encode(images)
        noise = normal(tuple(x0.shape), plan.seed, "noise", step)
        chance = draws(plan.seed, "levels", step)
        # Levels spread evenly over the batch: the loss varies less.
        places = torch.from_numpy((np.arange(plan.batch) + chance.random(plan.batch)) / plan.batch).float()
        if self.sigmas is None:
            sigma = torch.special.ndtri(places.clamp(1e-4, 1 - 1e-4)).sigmoid().clamp(min=LEAST_FLOW_SIGMA)
        else:
            sigma = self.sigmas[(places * len(self.sigmas)).long().clamp(max=len(self.sigmas) - 1)]
        x0, noise, sigma = (drawn.to(self.device) for drawn in (x0, noise, sigma))
        x = denoise.add_noise(self.model.patcher, x0, noise, sigma)
        context, pooled = self.rows(texts)
        condition = denoise.conditioning(context, pooled, 1.0 if self.flow else None, [0.0] * plan.batch)
        self.network.requires_grad_(True)
        with differentiable(self.model.patcher):
            estimate = denoise.denoise(self.model.patcher, condition, x, sigma)
            weight = 1 / sigma**2 if self.flow else 1 + 1 / sigma**2
            loss = (weight * (estimate - x0).square().flatten(1).mean(1)).mean()
            self.optimizer.zero_grad()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = plan.rate(step)
        self.optimizer.step()
        self.network.requires_grad_(False)
        decay = min(plan.ema, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(list(self.average.values()), list(self.parameters.values()), step)
        found = float(loss.detach())
        if not math.isfinite(found):
            raise BokehError(f"The loss at step {step} is {found}; lower the learning rate.")
        return found

    # -- what is kept -----------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the whole state, and the averaged weights as a base that can be used."""
        codec: Any = self.model.codec
        state = {"sizes": codec.sizes, "table": self.model.words.table}
        moments = self.optimizer.state
        for name, value in self.parameters.items():
            state[f"weight.{name}"] = value.detach()
            state[f"average.{name}"] = self.average[name]
            if moments[value]:
                state[f"first.{name}"] = moments[value]["exp_avg"]
                state[f"second.{name}"] = moments[value]["exp_avg_sq"]
        metadata = {"step": str(self.step), "seconds": str(self.seconds), "architecture": self.architecture}
        state = {name: value.cpu().contiguous() for name, value in state.items()}
        replace_file(self.out / STATE, lambda temporary: save_file(state, temporary, metadata=metadata))
        with self._averaged():
            replace_file(self.out / WEIGHTS, lambda temporary: self.model.save(temporary, torch.float16))

    def _kept(self) -> dict[str, Tensor]:
        path = self.out / STATE
        if not path.is_file():
            return {}
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            if metadata["architecture"] != self.architecture:
                raise BokehError(
                    f"{path} is of a training of {metadata['architecture']}, not {self.architecture}; choose another "
                    "folder."
                )
            self.step, self.seconds = int(metadata["step"]), float(metadata["seconds"])
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    def _restore(self, kept: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(kept[f"weight.{name}"])
                self.average[name].copy_(kept[f"average.{name}"])
                if f"first.{name}" in kept:
                    self.optimizer.state[value] = {
                        "step": torch.tensor(float(self.step), device=value.device),
                        "exp_avg": kept[f"first.{name}"].to(value.device),
                        "exp_avg_sq": kept[f"second.{name}"].to(value.device),
                    }

    def _averaged(self) -> Any:
        return _Swapped(self.parameters, self.average)

    def sample(self) -> None:
        """Write a sheet of held-out captions from the averaged weights, with and without guidance."""
        from bokeh_ops.host.loading import models as loading
        from bokeh_ops.host.small.model import sample_texts

        texts = [caption(draw_scene(HELD_OUT + number)) for number in range(8)]
        sampler = ("euler", "simple") if self.flow else ("dpmpp_2m", "simple")
        with self._averaged():
            rows = [sample_texts(self.model, texts, 1, (SIDE, SIDE), 20, cfg, *sampler) for cfg in (1.0, 3.0)]
        loading.on_device(self.model.patcher)
        pictures = torch.cat(rows).repeat_interleave(3, 1).repeat_interleave(3, 2)
        labels = [text.replace(" and ", ", ") for text in texts] * 2
        sheet = contact_sheet(pictures, labels, columns=8, cell_size=192)[0]
        write_png(self.out / "samples" / f"step-{self.step:06d}.png", sheet)


class _Swapped:
    """While it is open, the parameters hold other values."""

    def __init__(self, parameters: dict[str, torch.nn.Parameter], other: dict[str, Tensor]) -> None:
        self.parameters, self.other = parameters, other

    def __enter__(self) -> None:
        with torch.no_grad():
            self.own = {name: value.detach().clone() for name, value in self.parameters.items()}
            for name, value in self.parameters.items():
                value.copy_(self.other[name])

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(self.own[name])
