"""The recipe of DMD2: a generator of a few steps whose pictures are as likely as its teacher's.

Source: Yin et al., "Improved Distribution Matching Distillation for Fast Image Synthesis" (arXiv 2405.14867).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bokeh_ops.camera.optics import FULL_FRAME_WIDTH
from bokeh_ops.depth.estimate import load_estimator
from bokeh_ops.depth.focus_transformer import SHIPPED, read_focus_transformer, write_focus_transformer
from bokeh_ops.digest import content_key, file_key
from bokeh_ops.errors import BokehError
from bokeh_ops.picture.sheet import contact_sheet
from trainer.comfyui import start as start_host
from trainer.config import Optimizer
from trainer.data import open_dataset
from trainer.data.sample import Taken
from trainer.files import replace_file
from trainer.frozen.cache import Store, Texts
from trainer.frozen.model import Base, Embedding, Fingerprints
from trainer.learner import Average, Learner, learning_rate, make_optimizer
from trainer.processes import Alone
from trainer.recipes.bokeh.objective import LEAST_FLOW_SIGMA, row_losses, weights
from trainer.recipes.bokeh.samples import large_enough, write_png
from trainer.recipes.bokeh.trainee import AUTOCAST
from trainer.recipes.command import carry_out
from trainer.recipes.dmd.config import Distil, fixed_part
from trainer.recipes.dmd.lens import LensChain
from trainer.recipes.dmd.networks import Adapted, Networks, Role, Whole
from trainer.recipes.dmd.objective import Head, few_steps, matching_gradient, matching_loss
from trainer.recipes.dmd.pictures import Kind, Pictures, Real
from trainer.recipes.dmd.roles import Roles
from trainer.recipes.one_step.judge import looks_made, looks_real
from trainer.recipes.recipe import Recipe, Rows, Turn
from trainer.seeded import generator as draws
from trainer.seeded import normal
from trainer.settings import to_plain
from trainer.sharding import Spread, check_even

FOCUS = "focus.safetensors"
"""Beside the result: the focus transformer that has learnt with it."""
EXIF = "exif.safetensors"
"""Beside the result: what the generator is told f-number and focal length by."""
FAST = Taken(1.8, 0.05, FULL_FRAME_WIDTH)
"""The camera of the sheets of samples."""


class Job(NamedTuple):
    """A micro-batch.

    Attributes:
        purpose: what its randomness is drawn for: ``training`` or ``validation``.
        step, turn: of the training.
        first, rows: its first picture in the turn, and how many there are.
        shallow: whether it is of photographs with blur, and the generator's pictures go through the lens.
    """

    purpose: str
    step: int
    turn: int
    first: int
    rows: int
    shallow: bool = False

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

    Attributes:
        chain: what the pictures of shallow steps go through before fake model, teacher and head see them; None where
            there are no such steps, and no autoencoder is needed.

    Raises:
        BokehError: as for :func:`distil`.
    """

    def __init__(
        self,
        settings: Distil,
        beside: Path,
        processes: Alone,
        base: Base | None = None,
    ) -> None:
        start_host(settings.comfyui, beside, cpu=settings.device == "cpu")
        from bokeh_ops.host.loading import models as loading
        from bokeh_ops.host.sampling.sweep import check_sampler
        from bokeh_ops.host.training import denoise
        from bokeh_ops.host.training.exif import ExifEmbedding
        from trainer.frozen.load import check_size, load_base

        self.settings, self.processes = settings, processes
        self.out = beside / Path(settings.out).expanduser()
        assert settings.samples.sampler is not None  # resolved
        check_sampler(settings.samples.sampler, "simple")
        cache = settings.cache
        kept = beside / Path(cache.folder).expanduser() if cache.folder else self.out / "cache"
        self.base = base or load_base(settings, beside, Fingerprints(kept / "files.json"))
        computed = AUTOCAST[settings.precision] or torch.float32
        self.texts = Texts(self.base, Store(kept / "text" if cache.text else None), computed)
        latents = Store(kept / "latents" if cache.latents else None)

        def pictures(folder: str, kind: Kind) -> Pictures:
            dataset = open_dataset(beside / Path(folder).expanduser())
            check_size(dataset, settings.base)
            captions, apart = settings.data.captions, settings.samples.captions
            return Pictures(dataset, self.base, self.texts, latents, captions, kind, apart)

        wanted = settings.data
        kind: Kind = "taken" if settings.exif else "sharp" if wanted.sharp else "any"
        self.pictures = pictures(wanted.dataset, kind)
        self.size = self.pictures.dataset.resolution
        self.identities = {"model": self.base.fingerprint, "dataset": self.pictures.identity}
        self.chain: LensChain | None = None
        if wanted.shallow is not None:
            self.shallow = pictures(wanted.shallow, "shallow")
            sizes = [" x ".join(map(str, each.dataset.resolution)) for each in (self.pictures, self.shallow)]
            if sizes[0] != sizes[1]:
                raise BokehError(
                    f"data.dataset has pictures of {sizes[0]} and data.shallow of {sizes[1]}; a generator makes one "
                    "size. Prepare both with one resolution."
                )
            self.identities["shallow"] = self.shallow.identity
            self.chain = self._chain(beside)

        rank = settings.lora.rank
        self.together = settings.shard and processes.world > 1
        spread = Spread(processes.world, processes.device) if self.together else None
        if self.together:
            check_even(settings.batch.total, settings.batch.micro, processes.world)
        elif settings.shard:
            processes.say(
                "shard is set and there is one process, which holds all weights. To spread them, start several: "
                "accelerate launch."
            )
        start = None if settings.init is None else beside / Path(settings.init).expanduser()
        self.networks: Networks = (
            Adapted(self.base, rank, settings.seed, spread, start)
            if rank
            else Whole(self.base, spread, start)
        )
        if start is not None:
            self.identities["init"] = file_key(start)
        self.device = loading.device()
        patcher = self.base.patcher
        self.prediction = denoise.prediction(patcher)
        self.table = denoise.discrete_sigmas(patcher)
        self.levels = denoise.levels(patcher, settings.generator_steps)
        self.heads: dict[bool, Head] = {}  # one for pictures of each kind, by whether they are shallow
        if settings.losses.head:
            _, width = self.base.architecture.bottleneck(patcher.model.diffusion_model)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(settings.seed)
                self.heads = {kind: Head(width).to(self.device) for kind in (False, True)[: len(self.sets)]}
            for head in self.heads.values():
                self.networks.beside(head)
        exif: dict[Role, ExifEmbedding] = {}
        if settings.exif:
            _, width = self.base.architecture.timestep_embedding(patcher.model.diffusion_model)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(settings.seed)
                exif = {role: ExifEmbedding(width).to(self.device) for role in ("generator", "fake")}
        self.roles = Roles(settings, self.base, self.networks, self.texts, self.size, exif)
        trained = {role: dict(weights) for role, weights in self.networks.trained.items()}
        for role, embedding in exif.items():
            trained[role] |= {f"exif.{name}": value for name, value in embedding.named_parameters()}
        opponent = trained["fake"]
        for shallow, head in self.heads.items():
            own = "head_shallow" if shallow else "head"
            opponent |= {f"{own}.{name}": value for name, value in head.named_parameters()}
        wanted, fake = settings.optimizer, replace(settings.optimizer, lr=settings.fake.lr)
        self.learners = {
            "generator": self._learner(trained["generator"], wanted, settings.ema),
            "fake": self._learner(opponent, fake, 0.0),
        }
        if self.chain is not None:
            focus = dict(self.chain.focus.named_parameters())
            if not settings.lens.scale:
                focus = {name: value for name, value in focus.items() if not name.startswith("scale")}
            rate = replace(wanted, lr=settings.lens.lr)
            self.learners["focus"] = self._learner(focus, rate, settings.ema)
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

    def _chain(self, beside: Path) -> LensChain:
        """Depth, focus and lens, as the settings name them."""
        from trainer.frozen.depth import FrozenDepth

        wanted = self.settings.lens
        assert wanted.depth is not None  # checked with the settings
        folder = beside / Path(wanted.depth).expanduser()
        path = SHIPPED if wanted.focus is None else beside / Path(wanted.focus).expanduser()
        focus, reference = (read_focus_transformer(path).to(self.processes.device) for _ in range(2))
        depth = FrozenDepth(load_estimator(folder)).to(self.processes.device)
        files = sorted(each for each in folder.iterdir() if each.is_file())
        self.identities |= {"focus": file_key(path), "depth": content_key(*map(file_key, files))}
        return LensChain(depth, focus, reference)

    @property
    def sets(self) -> list[Pictures]:
        """The data sets, in the order of their turns."""
        return [self.pictures] if self.chain is None else [self.pictures, self.shallow]

    def prepare(self) -> None:
        for each in self.sets:
            each.encode(self.processes)
        self.texts([self.settings.matching.negative])
        self.base.release_text()
        self.networks.load()

    def describe(self) -> str:
        count = sum(parameter.numel() for parameter in self.learners["generator"].parameters)
        world = self.processes.world
        pictures = " and, through a lens, on ".join(f"{len(each)} pictures" for each in self.sets)
        return (
            f"A generator of {self.settings.generator_steps} steps: {count:,} parameters train on "
            f"{pictures}, {self.settings.batch.total} a step, in {world} "
            f"process{'es' if world > 1 else ''} on {self.device}."
        )

    def trainables(self) -> Mapping[str, Learner]:
        return self.learners

    def turns(self, step: int) -> list[Turn]:
        shallow = self.chain is not None and step % 2 == 1
        batch, losses, updates = self.settings.batch, self.settings.losses, self.settings.fake.updates
        rank, world = self.processes.rank, self.processes.world
        starts = range(rank * batch.micro, batch.total, world * batch.micro)

        def turn(name: str, number: int, each: Mapping[str, float]) -> Turn:
            jobs = [
                Job("training", step, number, first, min(batch.micro, batch.total - first), shallow)
                for first in starts
            ]
            learners, kind = ((name, "focus"), f"{name} through the lens") if shallow else ((name,), name)
            told = {key: value for key, value in each.items() if value}
            return Turn(learners, jobs, batch.total, told, kind)

        tie = {"focus": losses.focus if shallow else 0.0}
        fake = {"denoising": losses.denoising, "head": losses.head, **tie}
        found = [turn("fake", number, fake) for number in range(updates)]
        own = {"matching": losses.matching, "adversarial": losses.adversarial, **tie}
        return [*found, turn("generator", updates, own)]

    def losses(self, turn: Turn, fed: Job) -> Rows:
        for name, learner in self.learners.items():
            for parameter in learner.parameters:
                parameter.requires_grad_(name in turn.learners)
        before = self.base.encoded
        real = self._real(fed)
        if self.base.encoded != before:
            self.networks.load()  # an encoder may have needed the room
        texts = [each.text for each in real]
        found = (self._generator if "generator" in turn.learners else self._fake)(fed, real, texts)
        told = [{"photograph": each.key, "caption": each.caption} for each in real]
        return Rows(found, range(fed.first, fed.first + fed.rows), told)

    def _generator(self, job: Job, real: Sequence[Real], texts: Sequence[Embedding]) -> dict[str, Tensor]:
        from bokeh_ops.host.training import denoise

        taken = [each.taken for each in real]
        x, found = self.shown(job, self.generated(job, texts, taken), taken)
        wanted = self.settings.matching
        sigma = self.drawn_levels(job, wanted.least, wanted.most)
        noisy = denoise.add_noise(self.base.patcher, x, self.noise(job, "matching"), sigma)
        with torch.no_grad():
            wished = self.roles.teacher(noisy, sigma, texts)
        # The head's gradient goes through the fake model; the matching takes only its answer.
        with nullcontext() if self.heads else torch.no_grad():
            fake, features = self.roles.estimate("fake", noisy, sigma, texts, taken=taken)
        gradient = matching_gradient(x.detach(), wished, fake.detach())
        found["matching"] = matching_loss(x, gradient)
        if self.heads:
            found["adversarial"] = looks_real([self.heads[job.shallow](features)])
        return found

    def _fake(self, job: Job, real: Sequence[Real], texts: Sequence[Embedding]) -> dict[str, Tensor]:
        from bokeh_ops.host.training import denoise

        taken = [each.taken for each in real]
        with torch.no_grad():
            x, found = self.shown(job, self.generated(job, texts, taken), taken)
        sigma = self.drawn_levels(job, 0.0, 1.0)
        given, noise = x, self.noise(job, "denoising")
        if self.heads:  # in one call, as the head is to tell them apart by nothing else
            latents = torch.stack([each.latent for each in real]).to(self.device)
            given = torch.cat((x, self.base.patcher.model.process_latent_in(latents).float()))
            noise = torch.cat((noise, self.noise(job, "real")))
            sigma, texts, taken = sigma.repeat(2), [*texts, *texts], [*taken, *taken]
        noisy = denoise.add_noise(self.base.patcher, given, noise, sigma)
        estimate, features = self.roles.estimate("fake", noisy, sigma, texts, taken=taken)
        weight = weights(self.prediction, sigma[: len(x)], 0.0)
        found["denoising"] = row_losses(estimate[: len(x)], x, weight)
        if self.heads:
            made, true = self.heads[job.shallow](features).chunk(2)
            found["head"] = looks_made([made]) + looks_real([true])
        return found

    def _real(self, job: Job) -> list[Real]:
        slots, pictures = range(job.first, job.first + job.rows), self.sets[job.shallow]
        if job.purpose == "validation":
            return [pictures.read(len(pictures) + slot) for slot in slots]
        return [pictures.drawn(self.settings.seed, *job.of(slot)) for slot in slots]

    def generated(self, job: Job, texts: Sequence[Embedding], taken: Sequence[Taken | None] = ()) -> Tensor:
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
            lambda x, sigma: self.roles.estimate("generator", x, sigma, texts, taken=taken)[0],
            lambda noise, sigma: denoise.pure_noise(patcher, noise, sigma),
            lambda x, noise, sigma: denoise.add_noise(patcher, x, noise, sigma),
            [self.noise(job, f"step {number}") for number in range(count)],
            self.levels[:count],
        )

    def shown(
        self, job: Job, x: Tensor, taken: Sequence[Taken | None] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What teacher, fake model and head are shown of the generator's pictures ``[R, C, h, w]``.

        Args:
            job: shallow or not.
            x: the pictures, in the model's own scale.
            taken: the camera of each; used where the job is shallow.

        Returns:
            The pictures, where the job is shallow as the lens forms them; and then the loss of the focus.
        """
        if not job.shallow:
            return x, {}
        assert self.chain is not None
        pictures = self.again(self.base.opened, x).movedim(-1, 1)
        seen = self.chain.see(pictures)
        found = {"focus": self.chain.tie(pictures, seen)} if self.settings.losses.focus else {}
        formed = self.chain.through(pictures, seen, [each for each in taken if each is not None])
        return self.again(self.base.closed, formed.movedim(1, -1)), found

    def again(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """What a part of the autoencoder makes of ``x``; with ``checkpointing`` computed again on the way back."""
        if not self.settings.checkpointing:
            return function(x)
        return torch.as_tensor(checkpoint(function, x, use_reentrant=False, preserve_rng_state=False))

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

    def training(self) -> AbstractContextManager[Any]:
        return self.networks.training(self.settings.checkpointing)

    def record(self) -> dict[str, Any]:
        return {"settings": to_plain(self.settings), "identities": self.identities}

    def fixed(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        return fixed_part(settings)

    def result(self, step: int) -> None:
        with self.averaged():
            self.networks.write(self.out, self.processes.first)
            if not self.processes.first:
                return
            if self.roles.exif:
                replace_file(self.out / EXIF, self.roles.exif["generator"].save)
            if self.chain is not None:
                focus = self.chain.focus
                replace_file(self.out / FOCUS, lambda path: write_focus_transformer(path, focus))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """While it is open, what trains is its average, where there is one."""
        with ExitStack() as stack:
            for learner in self.learners.values():
                stack.enter_context(learner.averaged())
            yield

    @torch.no_grad()
    def validation(self) -> Mapping[str, float]:
        """Losses on captions, noise and levels that stay the same; in ``matching`` 0 is a perfect match."""
        told: dict[str, float] = {}
        for shallow, pictures in enumerate(self.sets):
            for number, turn in enumerate(self.turns(shallow)[-2:]):
                job = Job("validation", 0, number, 0, pictures.kept, bool(shallow))
                losses = self.losses(turn, job).losses
                after = "_shallow" if shallow else ""
                told |= {
                    f"{name}{after}": float(losses[name].detach().double().mean()) for name in turn.weights
                }
        return told

    @torch.no_grad()
    def samples(self, step: int) -> Tensor:
        """Captions that are not trained on: the generator by the host's ``lcm`` beside the teacher, same seed."""
        wanted, steps = self.settings.samples, self.settings.generator_steps
        assert wanted.cfg is not None  # resolved
        assert wanted.sampler is not None
        real = [self.pictures.read(len(self.pictures) + number) for number in range(self.pictures.kept)]
        with self.averaged():
            made = self.roles.sampled("generator", real, steps, 1.0, "lcm", self.settings.base.guidance)
            shown = {f"generator, {steps} steps": made}
            if self.chain is not None:
                pictures = made.movedim(-1, 1).to(self.device)
                seen = self.chain.see(pictures)
                formed = self.chain.through(pictures, seen, [FAST] * len(made))
                shown["through the lens"] = formed.clamp(0, 1).movedim(1, -1).cpu()
                shown["saliency"] = seen.saliency[..., None].expand_as(formed.movedim(1, -1)).cpu()
        own = wanted.steps, wanted.cfg, wanted.sampler, wanted.guidance
        teacher = self.roles.sampled("teacher", real, *own)
        shown[f"teacher, {wanted.steps} steps"] = teacher
        pictures = large_enough(torch.cat(list(shown.values())))
        found = contact_sheet(pictures, list(shown), columns=len(shown), cell_size=384)[0]
        if self.processes.first:
            write_png(self.out / "samples" / f"step-{step:08d}.png", found)
        return found
