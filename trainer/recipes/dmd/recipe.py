"""The recipe of DMD2: a generator of a few steps whose pictures are as likely as its teacher's.

Source: Yin et al., "Improved Distribution Matching Distillation for Fast Image Synthesis" (arXiv 2405.14867).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bokeh_ops.picture.sheet import contact_sheet
from trainer.comfyui import start as start_host
from trainer.config import Optimizer
from trainer.data import open_dataset
from trainer.frozen.cache import Store, Texts, stack
from trainer.frozen.model import Base, Embedding, Fingerprints
from trainer.learner import Average, Learner, learning_rate, make_optimizer
from trainer.processes import Alone
from trainer.recipes.bokeh.objective import LEAST_FLOW_SIGMA, row_losses, weights
from trainer.recipes.bokeh.samples import large_enough, write_png
from trainer.recipes.bokeh.trainee import AUTOCAST
from trainer.recipes.command import carry_out
from trainer.recipes.dmd.config import Distil, fixed_part
from trainer.recipes.dmd.networks import Adapted, Networks, Role, Whole
from trainer.recipes.dmd.objective import Head, few_steps, matching_gradient, matching_loss
from trainer.recipes.dmd.pictures import Pictures, Real
from trainer.recipes.one_step.judge import looks_made, looks_real
from trainer.recipes.recipe import Recipe, Rows, Turn
from trainer.seeded import generator as draws
from trainer.seeded import normal
from trainer.settings import to_plain
from trainer.sharding import Spread, check_even


class Job(NamedTuple):
    """A micro-batch.

    Attributes:
        purpose: what its randomness is drawn for: ``training`` or ``validation``.
        step, turn: of the training.
        first, rows: its first picture in the turn, and how many there are.
    """

    purpose: str
    step: int
    turn: int
    first: int
    rows: int

    def of(self, slot: int) -> tuple[str | int, ...]:
        """What tells the randomness of one of its pictures from that of all others."""
        return self.purpose, self.step, self.turn, slot


def distil(settings: Distil, beside: Path, base: Base | None = None) -> bool:
    """Distil a generator, from the last checkpoint in ``out`` where there is one.

    Args:
        settings: what to train, on what.
        beside: folder that relative paths in the settings start from.
        base: the teacher, for one that is not read from the files of the settings.

    Returns:
        Whether all steps are done (else someone asked to stop, and a checkpoint was written).

    Raises:
        BokehError: as the parts say.
    """
    settings = settings.resolved()
    return carry_out(
        settings,
        lambda processes: Dmd(settings, beside, processes, base),
        lambda recipe: recipe.networks.result,
    )


class Dmd(Recipe):
    """A generator, its fake model and the head in training.

    Args:
        settings: resolved.
        beside, base: as for :func:`distil`.
        processes: of this run.
        through: what pictures ``[R, H, W, 3]``, about 0..1, of the generator go through before fake model, teacher
            and head see them, with a gradient to them, such as a lens; None: nothing, and no autoencoder is needed.

    Raises:
        BokehError: as for :func:`distil`.
    """

    def __init__(
        self,
        settings: Distil,
        beside: Path,
        processes: Alone,
        base: Base | None = None,
        through: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        start_host(settings.comfyui, beside, cpu=settings.device == "cpu")
        from bokeh_ops.host.loading import models as loading
        from bokeh_ops.host.sampling.sweep import check_sampler
        from bokeh_ops.host.training import denoise
        from trainer.frozen.load import check_size, load_base

        self.settings, self.processes, self.through = settings, processes, through
        self.out = beside / Path(settings.out).expanduser()
        assert settings.samples.sampler is not None  # resolved
        check_sampler(settings.samples.sampler, "simple")
        dataset = open_dataset(beside / Path(settings.data.dataset).expanduser())
        check_size(dataset, settings.base)
        self.size = dataset.resolution
        cache = settings.cache
        kept = beside / Path(cache.folder).expanduser() if cache.folder else self.out / "cache"
        self.base = base or load_base(settings, beside, Fingerprints(kept / "files.json"))
        computed = AUTOCAST[settings.precision] or torch.float32
        self.texts = Texts(self.base, Store(kept / "text" if cache.text else None), computed)
        latents = Store(kept / "latents" if cache.latents else None)
        wanted = settings.data
        self.pictures = Pictures(
            dataset, self.base, self.texts, latents, wanted.captions, wanted.sharp, settings.samples.captions
        )
        self.identities = {"model": self.base.fingerprint, "dataset": self.pictures.identity}

        rank = settings.lora.rank
        self.together = settings.shard and processes.world > 1
        spread = Spread(processes.world, processes.device) if self.together else None
        if self.together:
            check_even(settings.batch.total, settings.batch.micro, processes.world)
        self.networks: Networks = (
            Adapted(self.base, rank, settings.seed, spread) if rank else Whole(self.base, spread)
        )
        self.device = loading.device()
        patcher = self.base.patcher
        self.prediction = denoise.prediction(patcher)
        self.table = denoise.discrete_sigmas(patcher)
        self.levels = denoise.levels(patcher, settings.generator_steps)
        self.head: Head | None = None
        if settings.losses.head:
            _, width = self.base.architecture.bottleneck(patcher.model.diffusion_model)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(settings.seed)
                self.head = Head(width).to(self.device)
            self.networks.beside(self.head)
        trained = self.networks.trained
        opponent = dict(trained["fake"])
        if self.head is not None:
            opponent |= {f"head.{name}": value for name, value in self.head.named_parameters()}
        self.generator = self._learner(trained["generator"], settings.optimizer, settings.ema)
        self.fake = self._learner(opponent, replace(settings.optimizer, lr=settings.fake.lr), 0.0)
        if settings.precision == "fp16":
            self.scaler = torch.amp.GradScaler(self.device.type)  # type: ignore[attr-defined]

    def _learner(self, trained: Mapping[str, nn.Parameter], wanted: Optimizer, ema: float) -> Learner:
        return Learner(
            trained,
            list(trained.values()),
            make_optimizer(trained.values(), wanted),
            lambda step: learning_rate(wanted, step, self.settings.steps),
            wanted.clip,
            Average(trained, ema) if ema else None,
        )

    def prepare(self) -> None:
        self.pictures.encode(self.processes)
        self.texts([self.settings.matching.negative])
        self.base.release_text()
        self.networks.load()

    def describe(self) -> str:
        count = sum(parameter.numel() for parameter in self.generator.parameters)
        world = self.processes.world
        return (
            f"A generator of {self.settings.generator_steps} steps: {count:,} parameters train on "
            f"{len(self.pictures)} pictures, {self.settings.batch.total} a step, in {world} "
            f"process{'es' if world > 1 else ''} on {self.device}."
        )

    def trainables(self) -> Mapping[str, Learner]:
        return {"generator": self.generator, "fake": self.fake}

    def turns(self, step: int) -> list[Turn]:
        batch, losses, updates = self.settings.batch, self.settings.losses, self.settings.fake.updates
        rank, world = self.processes.rank, self.processes.world
        starts = range(rank * batch.micro, batch.total, world * batch.micro)

        def turn(name: str, number: int, each: Mapping[str, float]) -> Turn:
            jobs = [
                Job("training", step, number, first, min(batch.micro, batch.total - first))
                for first in starts
            ]
            return Turn(
                (name,), jobs, batch.total, {key: value for key, value in each.items() if value}, name
            )

        fake = {"denoising": losses.denoising, "head": losses.head}
        found = [turn("fake", number, fake) for number in range(updates)]
        own = {"matching": losses.matching, "adversarial": losses.adversarial}
        return [*found, turn("generator", updates, own)]

    def losses(self, turn: Turn, fed: Job) -> Rows:
        (name,) = turn.learners
        for learner in (self.generator, self.fake):
            for parameter in learner.parameters:
                parameter.requires_grad_(name == "generator" if learner is self.generator else name == "fake")
        before = self.base.encoded
        real = self._real(fed)
        if self.base.encoded != before:
            self.networks.load()  # an encoder may have needed the room
        texts = [each.text for each in real]
        found = self._generator(fed, texts) if name == "generator" else self._fake(fed, real, texts)
        told = [{"photograph": each.key, "caption": each.caption} for each in real]
        return Rows(found, range(fed.first, fed.first + fed.rows), told)

    def _generator(self, job: Job, texts: Sequence[Embedding]) -> dict[str, Tensor]:
        from bokeh_ops.host.training import denoise

        x = self.shown(self.generated(job, texts))
        wanted = self.settings.matching
        sigma = self.drawn_levels(job, wanted.least, wanted.most)
        noisy = denoise.add_noise(self.base.patcher, x, self.noise(job, "matching"), sigma)
        with torch.no_grad():
            real = self.teacher(noisy, sigma, texts)
        # The head's gradient goes through the fake model; the matching takes only its answer.
        with nullcontext() if self.head is not None else torch.no_grad():
            fake, features = self.estimate("fake", noisy, sigma, texts)
        gradient = matching_gradient(x.detach(), real, fake.detach())
        found = {"matching": matching_loss(x, gradient)}
        if self.head is not None:
            found["adversarial"] = looks_real([self.head(features)])
        return found

    def _fake(self, job: Job, real: Sequence[Real], texts: Sequence[Embedding]) -> dict[str, Tensor]:
        from bokeh_ops.host.training import denoise

        with torch.no_grad():
            x = self.shown(self.generated(job, texts))
        sigma = self.drawn_levels(job, 0.0, 1.0)
        given, noise = x, self.noise(job, "denoising")
        if self.head is not None:  # in one call, as the head is to tell them apart by nothing else
            latents = torch.stack([each.latent for each in real]).to(self.device)
            given = torch.cat((x, self.base.patcher.model.process_latent_in(latents).float()))
            noise = torch.cat((noise, self.noise(job, "real")))
            sigma, texts = sigma.repeat(2), [*texts, *texts]
        noisy = denoise.add_noise(self.base.patcher, given, noise, sigma)
        estimate, features = self.estimate("fake", noisy, sigma, texts)
        weight = weights(self.prediction, sigma[: len(x)], 0.0)
        found = {"denoising": row_losses(estimate[: len(x)], x, weight)}
        if self.head is not None:
            made, true = self.head(features).chunk(2)
            found["head"] = looks_made([made]) + looks_real([true])
        return found

    def _real(self, job: Job) -> list[Real]:
        slots = range(job.first, job.first + job.rows)
        if job.purpose == "validation":
            return [self.pictures.read(len(self.pictures) + slot) for slot in slots]
        return [self.pictures.drawn(self.settings.seed, *job.of(slot)) for slot in slots]

    def generated(self, job: Job, texts: Sequence[Embedding]) -> Tensor:
        """The generator's pictures ``[R, C, h, w]``, in the model's own scale, by some of its steps.

        Which step is the last is drawn by step and turn, the same for all pictures; it alone has a gradient.
        """
        from bokeh_ops.host.training import denoise

        count = len(self.levels)
        if job.purpose == "training":
            chance = draws(self.settings.seed, "trained step", job.step, job.turn)
            count = 1 + int(chance.integers(count))
        patcher = self.base.patcher
        return few_steps(
            lambda x, sigma: self.estimate("generator", x, sigma, texts)[0],
            lambda noise, sigma: denoise.pure_noise(patcher, noise, sigma),
            lambda x, noise, sigma: denoise.add_noise(patcher, x, noise, sigma),
            [self.noise(job, f"step {number}") for number in range(count)],
            self.levels[:count],
        )

    def shown(self, x: Tensor) -> Tensor:
        """What teacher, fake model and head are shown of the generator's pictures ``[R, C, h, w]``."""
        return x if self.through is None else self.base.closed(self.through(self.base.opened(x)))

    def noise(self, job: Job, what: str) -> Tensor:
        """Noise of the pictures of a micro-batch, ``[R, C, h, w]``."""
        slots = range(job.first, job.first + job.rows)
        made = [
            normal(self.pictures.shape, self.settings.seed, f"noise {what}", *job.of(slot)) for slot in slots
        ]
        return torch.stack(made).to(self.device)

    def drawn_levels(self, job: Job, least: float, most: float) -> Tensor:
        """Noise levels ``[R]`` at timesteps between two shares of all, each as likely."""
        slots = range(job.first, job.first + job.rows)
        shares = [
            least + (most - least) * float(draws(self.settings.seed, "level", *job.of(slot)).random())
            for slot in slots
        ]
        places = (torch.tensor(shares) * len(self.table)).long().clamp(max=len(self.table) - 1)
        sigma = self.table[places]
        if self.prediction == "flow":
            sigma = sigma.clamp(min=LEAST_FLOW_SIGMA)
        return sigma.to(self.device)

    def estimate(
        self,
        role: Role,
        x: Tensor,
        sigma: Tensor,
        texts: Sequence[Embedding],
        guidance: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What one of the networks estimates of ``x0``.

        Args:
            role: which.
            x: ``[R, C, h, w]``, in the model's own scale.
            sigma: noise levels ``[R]``.
            texts: of each row.
            guidance: distilled guidance; None: ``base.guidance``.

        Returns:
            ``[R, C, h, w]``, and the network's deepest features ``[R, L, C]``.
        """
        from bokeh_ops.host.training import denoise
        from bokeh_ops.host.training.gradients import bottleneck

        positive = self.conditioning(texts, guidance)
        autocast = AUTOCAST[self.settings.precision]
        with (
            self.networks.acting(role) as patcher,
            bottleneck(patcher) as features,
            # Of weights that are spread no copies are kept from block to block.
            torch.autocast(self.device.type, autocast, cache_enabled=not self.together)
            if autocast is not None
            else nullcontext(),
        ):
            made = denoise.denoise(patcher, positive, x, sigma)
        return made.float(), features[0]

    def conditioning(self, texts: Sequence[Embedding], guidance: float | None = None) -> list[Any]:
        """CONDITIONING of several rows, as the host's nodes would have it."""
        from bokeh_ops.host.training import denoise

        context, pooled = stack(texts)
        architecture = self.base.architecture
        if architecture.guided:
            guidance = self.settings.base.guidance if guidance is None else guidance
        told = guidance if architecture.guided else None
        size = architecture.picture_conditions(*self.size)
        return denoise.conditioning(context, pooled, told, [0.0] * len(texts), picture=size)

    def teacher(self, x: Tensor, sigma: Tensor, texts: Sequence[Embedding]) -> Tensor:
        """The teacher's guided estimate ``[R, C, h, w]``: classifier-free, or as FLUX is told."""
        wanted = self.settings.matching
        assert wanted.guidance is not None  # resolved
        if self.base.architecture.guided:
            return self.estimate("teacher", x, sigma, texts, wanted.guidance)[0]
        with_text, _ = self.estimate("teacher", x, sigma, texts)
        if wanted.guidance == 1:
            return with_text
        without, _ = self.estimate("teacher", x, sigma, self.texts([wanted.negative]) * len(texts))
        return without + wanted.guidance * (with_text - without)

    def training(self) -> AbstractContextManager[Any]:
        return self.networks.training(self.settings.checkpointing)

    def record(self) -> dict[str, Any]:
        return {"settings": to_plain(self.settings), "identities": self.identities}

    def fixed(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        return fixed_part(settings)

    def result(self, step: int) -> None:
        with self.generator.averaged():
            self.networks.write(self.out, self.processes.first)

    @torch.no_grad()
    def validation(self) -> Mapping[str, float]:
        """Losses on captions, noise and levels that stay the same; in ``matching`` 0 is a perfect match."""
        told: dict[str, float] = {}
        for number, turn in enumerate(self.turns(0)[-2:]):
            job = Job("validation", 0, number, 0, self.pictures.kept)
            losses = self.losses(turn, job).losses
            told |= {name: float(losses[name].double().mean()) for name in turn.weights}
        return told

    def samples(self, step: int) -> Tensor:
        """Captions that are not trained on: the generator by the host's ``lcm`` beside the teacher, same seed."""
        wanted, steps = self.settings.samples, self.settings.generator_steps
        assert wanted.cfg is not None  # resolved
        assert wanted.sampler is not None
        with self.generator.averaged():
            made = self.sampled("generator", steps, 1.0, "lcm", self.settings.base.guidance)
        teacher = self.sampled("teacher", wanted.steps, wanted.cfg, wanted.sampler, wanted.guidance)
        pictures = large_enough(torch.cat((made, teacher)))
        labels = [f"generator, {steps} steps", f"teacher, {wanted.steps} steps"]
        found = contact_sheet(pictures, labels, columns=2, cell_size=384)[0]
        if self.processes.first:
            write_png(self.out / "samples" / f"step-{step:08d}.png", found)
        return found

    def sampled(self, role: Role, steps: int, cfg: float, sampler: str, guidance: float) -> Tensor:
        """Pictures ``[N, H, W, 3]``, 0..1, of the captions that are not trained on, by the host's own sampler."""
        from bokeh_ops.host.sampling.plain import sample_plain

        real = [self.pictures.read(len(self.pictures) + number) for number in range(self.pictures.kept)]
        empty = self.texts([self.settings.matching.negative])[0]
        made = []
        with self.networks.acting(role) as patcher:
            for number, each in enumerate(real):
                positive, negative = (self.conditioning([text], guidance) for text in (each.text, empty))
                blank = torch.zeros_like(each.latent)[None]
                seed = self.settings.samples.seed + number
                made.append(sample_plain(patcher, positive, negative, blank, seed, steps, cfg, sampler))
        pictures = torch.cat([self.base.decode(each) for each in made])
        self.networks.load()  # sampling and the autoencoder may have needed the room
        return pictures
