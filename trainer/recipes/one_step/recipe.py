"""The recipe of a diffusion lens: pictures in, pictures through the lens out, in one step of SDXL."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bokeh_ops.diffusion_lens.attention import HARDEST, Light, nearness, units
from bokeh_ops.diffusion_lens.told import hints, start
from bokeh_ops.errors import BokehError
from bokeh_ops.picture.sheet import contact_sheet
from bokeh_ops.render import Lens
from trainer.comfyui import start as start_host
from trainer.config import Optimizer, fixed_but_free
from trainer.data import open_dataset
from trainer.data.pairs.identity import identity
from trainer.files import replace_file, replace_text
from trainer.frozen.model import Base, Fingerprints
from trainer.frozen.small import SmallBase
from trainer.learner import Average, Learner, learning_rate, make_optimizer
from trainer.measure.metrics import psnr
from trainer.measure.metrics.weights import HOW_TO_GET, load_lpips
from trainer.processes import Alone
from trainer.recipes.bokeh.samples import large_enough, write_png
from trainer.recipes.bokeh.trainee import AUTOCAST
from trainer.recipes.command import carry_out
from trainer.recipes.one_step.config import LensFit
from trainer.recipes.one_step.judge import Judge, looks_made, looks_real
from trainer.recipes.one_step.objective import edges, hardness, mean_square
from trainer.recipes.one_step.scenes import Example, Scenes, estimated
from trainer.recipes.recipe import Recipe, Rows, Turn
from trainer.settings import to_plain

if TYPE_CHECKING:
    from bokeh_ops.host.training.lora import Lora

LORA, ENCODER, LENS = "pytorch_lora_weights.safetensors", "vae.safetensors", "lens.safetensors"
"""The result: a LoRA and the encoder's layers, in the layout of the released ones; or a small model."""

Job = tuple[int, int, int]
"""A micro-batch: step, number of its first picture in it, and how many."""


def train_lens(settings: LensFit, beside: Path, base: Base | None = None) -> bool:
    """Train a diffusion lens, from the last checkpoint in ``out`` where there is one.

    Args:
        settings: what to train, on what.
        beside: folder that relative paths in the settings start from.
        base: the frozen model, for one that is not read from the files of the settings.

    Returns:
        Whether all steps are done (else someone asked to stop, and a checkpoint was written).

    Raises:
        BokehError: as the parts say.
    """
    settings = settings.resolved()
    return carry_out(
        settings,
        lambda processes: OneStep(settings, beside, processes, base),
        lambda _: LORA if settings.lora.rank else LENS,
    )


class OneStep(Recipe):
    """A diffusion lens in training.

    Args:
        settings: resolved.
        beside, base: as for :func:`train_lens`.
        processes: of this run.

    Raises:
        BokehError: as for :func:`train_lens`.
    """

    def __init__(self, settings: LensFit, beside: Path, processes: Alone, base: Base | None = None) -> None:
        start_host(settings.comfyui, beside, cpu=settings.device == "cpu")
        from bokeh_ops.host.diffusion_lens.attach import lens_layers
        from bokeh_ops.host.diffusion_lens.lora import lens_lora
        from bokeh_ops.host.loading import models as loading
        from bokeh_ops.host.small.lens import check_told
        from trainer.frozen.load import check_size, load_base

        self.settings, self.processes = settings, processes
        self.out = beside / Path(settings.out).expanduser()
        dataset = open_dataset(beside / Path(settings.data.dataset).expanduser())
        check_size(dataset, settings.base)
        self.scenes = Scenes(dataset)
        self.kept = min(settings.samples.scenes, len(self.scenes) - 1)
        if self.kept < 1:
            raise BokehError(f"{dataset.folder} has a single scene; training needs two and more.")
        self.base = base or load_base(settings, beside, Fingerprints(self.out / "files.json"))
        self.identities = {"model": self.base.fingerprint, "dataset": identity(dataset)}
        (text,) = self.base.encode_text([settings.prompt])
        self.text = text
        self.layers = lens_layers(self.base.patcher, settings.lens.layers or None)
        loading.on_device(self.base.patcher)
        self.device = loading.device()
        self.lora: Lora | None = None
        if settings.lora.rank:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(settings.seed)
                self.lora = lens_lora(self.base.patcher, settings.lora.rank, settings.lora.layers).to(
                    self.device
                )
            trained = dict(self.lora.named_parameters())
        elif isinstance(self.base, SmallBase):
            check_told(self.base.small, settings.lens.told)
            trained = dict(self.base.small.network.named_parameters())
        else:
            raise BokehError("lora.rank is 0, which trains the whole network of a small model; set it to 8.")
        self.encoder = self.base.encoder_layers() if settings.lora.encoder else {}
        trained |= {f"encoder.{name}": value for name, value in self.encoder.items()}
        self.learner = self._learner(trained, trained, settings.optimizer, settings.ema)
        weights = settings.losses
        named = weights.lpips_weights
        self.lpips = load_lpips(None if named is None else beside / Path(named).expanduser(), self.device)
        if weights.lpips and self.lpips is None:
            raise BokehError(f"losses.lpips is {weights.lpips:g}. {HOW_TO_GET} Or set it to 0.")
        self.judge: Judge | None = None
        if weights.adversarial:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(settings.seed)
                backbone = None if weights.backbone is None else beside / Path(weights.backbone).expanduser()
                self.judge = Judge(backbone).to(self.device)
            wanted = Optimizer(name="adamw", lr=weights.adversary_lr, betas=[0.5, 0.99], weight_decay=0.0)
            self.opponent = self._learner(*self.judge.trainable(), wanted, 0.0)
        if settings.precision == "fp16":
            self.scaler = torch.amp.GradScaler(self.device.type)  # type: ignore[attr-defined]
        self.hard = HARDEST

    def _learner(
        self,
        weights: Mapping[str, Tensor],
        trained: Mapping[str, nn.Parameter],
        wanted: Optimizer,
        ema: float,
    ) -> Learner:
        average = Average(trained, ema) if ema else None
        return Learner(
            weights,
            list(trained.values()),
            make_optimizer(trained.values(), wanted),
            lambda step: learning_rate(wanted, step, self.settings.steps),
            wanted.clip,
            average,
        )

    def describe(self) -> str:
        count = sum(parameter.numel() for parameter in self.learner.parameters)
        return (
            f"{count:,} parameters train on {len(self.scenes) - self.kept} scenes, {self.settings.batch.total} "
            f"pictures a step, on {self.device}."
        )

    def trainables(self) -> Mapping[str, Learner]:
        return (
            {"lens": self.learner} if self.judge is None else {"lens": self.learner, "judge": self.opponent}
        )

    def turns(self, step: int) -> list[Turn]:
        batch, losses = self.settings.batch, self.settings.losses
        rank, world = self.processes.rank, self.processes.world
        starts = range(rank * batch.micro, batch.total, world * batch.micro)
        jobs: list[Job] = [(step, first, min(batch.micro, batch.total - first)) for first in starts]
        weights = {
            "mse": losses.mse,
            "lpips": losses.lpips,
            "edge": losses.edge,
            "adversarial": losses.adversarial,
        }
        weights = {name: weight for name, weight in weights.items() if weight}
        turn = Turn(("lens",), jobs, batch.total, weights, None if self.judge is None else "lens")
        return (
            [turn]
            if self.judge is None
            else [Turn(("judge",), jobs, batch.total, {"judge": 1.0}, "judge"), turn]
        )

    def losses(self, turn: Turn, fed: Job) -> Rows:
        step, first, count = fed
        wanted = self.settings
        self.hard = hardness(step, wanted.lens.hardness, round(wanted.lens.sharpening * wanted.steps))
        examples = self.scenes.drawn(wanted.seed, step, count, first, len(self.scenes) - self.kept)
        disparity = [
            estimated(each.disparity, wanted.data.worse_depth, wanted.seed, step, first + row)
            for row, each in enumerate(examples)
        ]
        told = [{"photograph": each.key, "k": each.k} for each in examples]
        truth = torch.stack([each.truth for each in examples]).to(self.device)
        slots = range(first, first + count)
        if turn.learners == ("judge",):
            assert self.judge is not None
            with torch.no_grad():
                made = self.rendered(examples, disparity)
            of_both = looks_real(self.judge(truth)) + looks_made(self.judge(made))
            return Rows({"judge": of_both}, slots, told)
        made = self.rendered(examples, disparity)
        sharp = torch.stack([each.sharp for each in examples]).to(self.device)
        found = {"mse": mean_square(made, truth), "edge": edges(made, truth, sharp)}
        if "lpips" in turn.weights and self.lpips is not None:
            found["lpips"] = self.lpips(made, truth)
        if "adversarial" in turn.weights and self.judge is not None:
            found["adversarial"] = looks_real(self.judge(made))
        return Rows(found, slots, told)

    def rendered(self, examples: list[Example], disparity: list[Tensor]) -> Tensor:
        """What the lens makes of pictures, ``[R, 3, H, W]``, about 0..1."""
        from bokeh_ops.host.diffusion_lens.attach import with_hints, with_light
        from bokeh_ops.host.loading import models as loading
        from bokeh_ops.host.training import denoise

        base, wanted = self.base, self.settings.lens
        sharp = torch.stack([each.sharp for each in examples])
        height, width = sharp.shape[-2:]
        maps = torch.stack(disparity).to(self.device)
        k, focus = (
            torch.tensor([getattr(each, name) for each in examples], device=self.device).view(-1, 1, 1, 1)
            for name in ("k", "focus")
        )
        patcher = base.patcher
        near, blur = nearness(maps), units(k * (maps - focus), max(height, width))
        if wanted.pisa:
            patcher = with_light(patcher, Light(near, blur.abs(), wanted.occlusion, self.hard), self.layers)
        sharp = sharp.to(self.device)
        lens = Lens(k.flatten(), focus.flatten(), gamma="srgb", highlight_recovery=0.0)
        own = base.closed(start(wanted.told, sharp, maps, lens).movedim(1, -1)).to(self.device)
        loading.on_device(base.patcher)  # the autoencoder may have needed the room
        sampling = patcher.get_model_object("model_sampling")
        sigma = sampling.sigma(torch.tensor(float(wanted.timestep))).to(self.device)
        context, pooled = self.text
        rows = len(examples)
        positive = denoise.conditioning(
            context.expand(rows, -1, -1),
            None if pooled is None else pooled.expand(rows, -1),
            None,
            [0.0] * rows,
            picture=base.architecture.picture_conditions(width, height),
        )
        if wanted.told:
            positive = with_hints(positive, hints(wanted.told, near, blur, sharp, width // own.shape[-1]))
        autocast = AUTOCAST[self.settings.precision]
        with torch.autocast(self.device.type, autocast) if autocast is not None else nullcontext():
            made = denoise.denoise(patcher, positive, own * (1 + sigma * sigma).sqrt(), sigma.expand(rows))
        return base.opened(made).movedim(-1, 1)

    @contextmanager
    def training(self) -> Iterator[None]:
        from bokeh_ops.host.training.gradients import differentiable

        network = self.base.patcher.model.diffusion_model
        with ExitStack() as stack:
            stack.enter_context(differentiable(self.base.patcher, None, self.settings.checkpointing))
            for value in self.encoder.values():
                stack.callback(value.requires_grad_(True).requires_grad_, False)
            if self.lora is not None:
                for handle in self.lora.hooks(network):
                    stack.callback(handle.remove)
            else:
                network.requires_grad_(True)
                stack.callback(network.requires_grad_, False)
            yield

    def record(self) -> dict[str, Any]:
        return {"settings": to_plain(self.settings), "identities": self.identities}

    def fixed(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        return fixed_but_free(settings, "scenes")

    def result(self, step: int) -> None:
        from bokeh_ops.host.diffusion_lens.weights import released_encoder

        with self.learner.averaged():
            if self.lora is not None:
                tensors = self.lora.released()
                replace_file(self.out / LORA, lambda path: save_file(tensors, path, {"format": "pt"}))
                rank = self.settings.lora.rank
                replace_text(self.out / "config.json", json.dumps({"lora_rank": rank, "lora_alpha": rank}))
                if self.encoder:
                    layers = released_encoder(self.encoder)
                    replace_file(self.out / ENCODER, lambda path: save_file(layers, path, {"format": "pt"}))
                return
            from bokeh_ops.host.small.lens import LENS as LENS_ENTRY

            assert isinstance(self.base, SmallBase)
            small, wanted = self.base.small, self.settings.lens
            small.description[LENS_ENTRY] = {
                "timestep": wanted.timestep,
                "layers": list(self.layers) if wanted.pisa else [],
                "occlusion": wanted.occlusion,
                "told": wanted.told,
                "prompt": self.settings.prompt,
                "side": max(self.scenes.dataset.resolution),
            }
            replace_file(self.out / LENS, lambda path: small.save(path, torch.float16))

    @torch.no_grad()
    def _kept_apart(self) -> tuple[list[Example], Tensor]:
        """Scenes that are not trained on, and what the lens makes of them with a hard edge."""
        self.hard = HARDEST
        first = len(self.scenes) - self.kept
        examples = [self.scenes.example(first + number, number) for number in range(self.kept)]
        with self.learner.averaged():
            made = [self.rendered([each], [each.disparity]) for each in examples]
        return examples, torch.cat(made).clamp(0, 1).cpu()

    def validation(self) -> Mapping[str, float]:
        examples, made = self._kept_apart()
        pairs = list(zip(examples, made, strict=True))
        return {
            "psnr": sum(psnr(picture, each.truth) for each, picture in pairs) / len(pairs),
            "unchanged_psnr": sum(psnr(each.sharp, each.truth) for each, _ in pairs) / len(pairs),
        }

    def samples(self, step: int) -> Tensor:
        examples, made = self._kept_apart()
        sharp, truth = (
            torch.stack([getattr(each, name) for each in examples]) for name in ("sharp", "truth")
        )
        pictures = large_enough(torch.cat([sharp, made, truth]).movedim(1, -1))
        found = contact_sheet(pictures, ["all in focus", "the lens", "truth"], columns=3, cell_size=384)[0]
        write_png(self.out / "samples" / f"step-{step:08d}.png", found)
        return found
