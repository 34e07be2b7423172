"""Distribution matching: what is minimised, that it samples as the host does, goes on, and leaves the teacher alone."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from bokeh_ops.errors import BokehError
from tests import models
from tests.fit import losses, workshop  # noqa: F401
from tests.host.setup import host_folder
from tests.models import one_thread, relative  # noqa: F401
from trainer.cli import UsageError
from trainer.recipes.dmd.config import Distil
from trainer.recipes.dmd.objective import few_steps, matching_gradient, matching_loss
from trainer.settings import parse_settings, to_yaml

# ruff: noqa: F811 (the fixture `workshop` is imported)

KINDS = ("sd15", "sdxl", "flux")
NO_HEAD = ("losses.adversarial=0", "losses.head=0")


@pytest.fixture(autouse=True)
def unloaded(pack: Any) -> Iterator[None]:
    yield
    models.unload()


def settings(workshop: Path, out: Path, kind: str, *overrides: str) -> Distil:
    from trainer.toy import make_toy, write_toy

    base = workshop / f"{kind}.safetensors"
    if not base.exists():
        write_toy(base, make_toy(kind, seed=3))
    lines = [
        f"out: {out}",
        f"base: {{architecture: {kind}, checkpoint: {base}}}",
        f"data: {{dataset: {workshop / 'data'}, sharp: true}}",
        f"comfyui: {host_folder()}",
        f"cache: {{folder: {workshop / 'distil'}}}",
        "steps: 4",
        "precision: fp32",
        "device: cpu",
        "checkpointing: false",
        "tensorboard: false",
        "lora: {rank: 2}",
        "fake: {updates: 2}",
        "batch: {total: 3, micro: 2}",
        "optimizer: {lr: 0.01}",
        "samples: {every: 0, captions: 2}",
        "checkpoint: {every: 2}",
    ]
    return parse_settings("\n".join(lines), Distil, "test", overrides)


def recipe(workshop: Path, out: Path, kind: str = "sd15", *overrides: str, **others: Any) -> Any:
    from trainer.processes import Alone
    from trainer.recipes.dmd.recipe import Dmd

    return Dmd(settings(workshop, out, kind, *overrides).resolved(), out, Alone(), **others)


def train(workshop: Path, out: Path, kind: str = "sd15", *overrides: str, until: int | None = None) -> Any:
    """Train, and the recipe."""
    from trainer.loop import Loop, Schedule

    made = recipe(workshop, out, kind, *overrides)
    Loop(made, Schedule(made.settings.steps, 2, until=until), made.out).run()
    return made


def only(made: Any, name: str, step: int = 0) -> dict[str, Tensor]:
    """The losses of the first micro-batch of a turn of that name."""
    turn = next(turn for turn in made.turns(step) if turn.kind == name)
    return made.losses(turn, turn.jobs[0]).losses


# ---- what is minimised ----


def test_the_loss_has_the_gradient_it_is_made_of() -> None:
    x = models.randn(2, 3, 4, 5, seed=1).requires_grad_(True)
    real, fake = models.randn(2, 3, 4, 5, seed=2), models.randn(2, 3, 4, 5, seed=3)
    with torch.no_grad():
        gradient = matching_gradient(x, real, fake)
        for row in range(2):
            hand = ((x - real) - (x - fake))[row] / (x - real)[row].abs().mean()
            assert torch.allclose(gradient[row], hand, atol=1e-6)
    loss = matching_loss(x, gradient)
    assert torch.allclose(loss, 0.5 * gradient.square().flatten(1).mean(1), atol=1e-5)
    (found,) = torch.autograd.grad(loss.sum(), x)
    assert torch.allclose(found, gradient / 60, atol=1e-7)
    assert bool(matching_gradient(real, real, fake).isfinite().all())


def gaussian(mean: Tensor, deviation: float, x: Tensor, sigma: Tensor) -> Tensor:
    """``E[x0 | x0 + sigma noise = x]`` where ``x0`` is normal: known in closed form."""
    noise, own = sigma.view(-1, 1, 1, 1) ** 2, deviation**2
    return (mean * noise + own * x) / (own + noise)


def test_the_generator_of_a_gaussian_moves_to_the_teachers(workshop: Path, tmp_path: Path) -> None:
    """Exact denoisers in the networks' place: the first gradient by hand, and where it leads."""
    made = recipe(
        workshop, tmp_path, "sd15", "generator_steps=1", "matching.guidance=1", "batch.micro=3", *NO_HEAD
    )
    wanted, theta, spread = 0.8, torch.tensor(-0.5, requires_grad=True), 0.4

    def estimate(role: str, x: Tensor, sigma: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if role == "generator":
            return theta + spread * x / (1 + sigma.view(-1, 1, 1, 1) ** 2).sqrt(), x
        mean = torch.tensor(wanted) if role == "teacher" else theta.detach()
        return gaussian(mean, spread, x, sigma), x

    made.roles.estimate = estimate
    turn = made.turns(0)[-1]
    (job,) = turn.jobs
    loss = made.losses(turn, job).losses["matching"].sum()
    (found,) = torch.autograd.grad(loss, theta)
    x = -0.5 + spread * made.noise(job, "step 0")
    sigma, noise = made.drawn_levels(job, 0.02, 0.98), made.noise(job, "matching")
    hand = 0.0
    for row in range(3):
        s = float(sigma[row])
        real = (wanted * s**2 + spread**2 * (x[row] + s * noise[row])) / (spread**2 + s**2)
        hand += (-0.5 - wanted) * s**2 / (spread**2 + s**2) / float((x[row] - real).abs().mean())
    assert float(found) == pytest.approx(hand, rel=1e-4)
    for step in range(60):
        turn = made.turns(step)[-1]
        (gradient,) = torch.autograd.grad(made.losses(turn, turn.jobs[0]).losses["matching"].mean(), theta)
        with torch.no_grad():
            theta -= 0.1 * gradient
    assert float(theta.detach()) == pytest.approx(wanted, abs=0.05)


def test_only_the_last_step_has_a_gradient() -> None:
    factor = torch.tensor(2.0, requires_grad=True)
    noise = [models.randn(2, 1, 2, 2, seed=seed) for seed in range(3)]
    given: list[Tensor] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        given.append(x)
        return factor * x

    sigmas = torch.tensor([3.0, 2.0, 1.0])
    add = lambda x, noise, sigma: x + sigma.view(-1, 1, 1, 1) * noise  # noqa: E731
    out = few_steps(denoise, lambda n, s: n * s.view(-1, 1, 1, 1), add, noise, sigmas)
    hand = 2 * (2 * (2 * 3 * noise[0] + 2 * noise[1]) + noise[2])
    assert torch.allclose(out, hand)
    assert not any(x.requires_grad for x in given)
    (found,) = torch.autograd.grad(out.sum(), factor)
    assert float(found) == pytest.approx(float(given[-1].sum()))


def test_which_step_is_trained_is_drawn_and_stays(workshop: Path, tmp_path: Path) -> None:
    made = recipe(workshop, tmp_path)
    calls: list[int] = []

    def lengths(again: Any) -> list[int]:
        found = []
        for step in range(12):
            calls.clear()
            job = again.turns(step)[-1].jobs[0]
            texts = again.texts(["a"] * job.rows)
            again.roles.estimate = lambda role, x, *_, **__: (calls.append(1), (x, x))[1]
            again.generated(job, texts)
            found.append(len(calls))
        return found

    first = lengths(made)
    assert set(first) == {1, 2, 3, 4}
    assert lengths(recipe(workshop, tmp_path)) == first


def test_the_head_is_told_by_softplus(workshop: Path, tmp_path: Path) -> None:
    made = recipe(workshop, tmp_path)

    class Constant(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            rows = len(features)
            value = torch.full((rows, 4), 2.0) if rows == 2 else torch.tensor([-1.0, -1, 3, 3])[:, None]
            return value + 0 * features.sum()

    made.heads[False] = Constant()
    with made.training():
        found = only(made, "generator")["adversarial"]
        assert found.tolist() == pytest.approx([math.log1p(math.exp(-2))] * 2)
        # Made ones first, then real ones: log(1 + e^-1) + log(1 + e^-3).
        of_both = only(made, "fake")["head"]
        assert of_both.tolist() == pytest.approx([math.log1p(math.exp(-1)) + math.log1p(math.exp(-3))] * 2)


@pytest.mark.parametrize("kind", KINDS)
def test_who_gets_a_gradient(workshop: Path, tmp_path: Path, kind: str) -> None:
    """The generator in its turn, through matching and through the head; fake model and head in theirs."""
    made = recipe(workshop, tmp_path, kind)
    with torch.no_grad():
        for learner in made.learners.values():
            for value in learner.parameters:
                value += 0.05 * models.randn(*value.shape, seed=len(value))
    touched = lambda learner: sum(p.grad is not None for p in learner.parameters)  # noqa: E731
    with made.training():
        for name, weight in (("generator", "matching"), ("generator", "adversarial"), ("fake", "denoising")):
            for learner in made.learners.values():
                learner.optimizer.zero_grad(set_to_none=True)
            only(made, name)[weight].sum().backward()
            mine, other = (
                made.trainables()[name],
                made.trainables()["fake" if name == "generator" else "generator"],
            )
            assert touched(mine) > 0
            assert touched(other) == 0
            assert all(p.grad is None for p in made.base.patcher.model.parameters())
        made.learners["fake"].optimizer.zero_grad(set_to_none=True)
        only(made, "fake")["head"].sum().backward()
    names = {name for name, value in made.learners["fake"].weights.items() if value.grad is not None}
    assert any(name.startswith("head.") for name in names)
    assert any(not name.startswith("head.") for name in names)  # as in DMD2, the features learn too


@pytest.mark.parametrize(("kind", "width"), [("sd15", 64), ("sdxl", 64), ("flux", 96)])
def test_what_the_head_looks_at(workshop: Path, tmp_path: Path, kind: str, width: int) -> None:
    """The deepest features of a UNet, or the picture's tokens in FLUX, of which there are not as many as of text."""
    made = recipe(workshop, tmp_path, kind)
    x = models.randn(2, *made.pictures.shape)
    texts = made.texts(["a patch", "a"])
    estimate, features = made.roles.estimate("fake", x, torch.tensor([0.5, 0.7]), texts)
    assert estimate.shape == x.shape
    assert features.shape == (2, 16, width)
    assert len(texts[0].context) != 16
    assert made.heads[False](features).shape == (2, 16)


def test_the_teachers_guidance(workshop: Path, tmp_path: Path) -> None:
    texts: Any = ["x", "y"]
    for kind, expected in (("sd15", [None, None]), ("flux", [3.5])):
        made, told = recipe(workshop, tmp_path, kind), []

        def estimate(_role: str, x: Tensor, _sigma: Tensor, texts: Any, guidance: float | None = None) -> Any:
            told.append(guidance)  # noqa: B023
            return torch.full_like(x, 1.0 if texts == ["x", "y"] else 0.25), x

        made.roles.estimate = estimate
        out = made.roles.teacher(torch.zeros(2, 1, 1, 1), torch.ones(2), texts)
        assert told == expected
        assert float(out[0]) == (0.25 + 8 * 0.75 if kind == "sd15" else 1.0)
    seen: list[Any] = []
    model = recipe(workshop, tmp_path, "flux").roles.conditioning(made.texts(["a", "b"]), 3.5)
    seen.append(model[0][1]["guidance"])
    seen.append(made.roles.conditioning(made.texts(["a"]))[0][1]["guidance"])
    assert seen == [3.5, 1.0]


# ---- as the host samples ----


@pytest.mark.parametrize("kind", KINDS)
def test_its_steps_are_those_of_lcm(workshop: Path, tmp_path: Path, kind: str) -> None:
    from comfy.k_diffusion.sampling import default_noise_sampler
    from comfy.sample import prepare_noise

    from bokeh_ops.host.sampling.plain import sample_plain

    made = recipe(workshop, tmp_path, kind)
    with torch.no_grad():
        for value in made.learners["generator"].parameters:
            value += 0.05 * models.randn(*value.shape, seed=len(value))
    sampling = made.base.patcher.get_model_object("model_sampling")
    if kind == "flux":
        quarters = [float(sampling.sigma(torch.tensor(share))) for share in (1.0, 0.75, 0.5, 0.25)]
        assert made.levels.tolist() == pytest.approx(quarters)
    else:
        assert sampling.timestep(made.levels).tolist() == [999, 749, 499, 249]
    texts = made.texts(["a patch"])
    blank = torch.zeros(1, *made.pictures.shape)
    noise = prepare_noise(blank, 5)
    later = default_noise_sampler(noise, seed=5)
    drawn = [noise, *(later(1.0, 0.5) for _ in range(3))]
    made.noise = lambda _job, what: drawn[int(what.split()[1])]
    with made.training(), torch.no_grad():
        job: Any = SimpleNamespace(purpose="validation")
        own = made.base.patcher.model.process_latent_out(made.generated(job, texts))
    with made.training(), made.networks.acting("generator") as patcher:
        positive = made.roles.conditioning(texts)
        found = sample_plain(patcher, positive, positive, blank, 5, 4, 1.0, "lcm")
    assert relative(own, found) < 1e-5


@pytest.mark.parametrize(("kind", "rank"), [("sd15", 2), ("sdxl", 2), ("flux", 2), ("sd15", 0), ("flux", 0)])
def test_what_is_trained_is_what_samples(workshop: Path, tmp_path: Path, kind: str, rank: int) -> None:
    """The result, loaded by the host's own loaders, makes what the run shows; the teacher is untouched."""
    import comfy.sd
    from comfy.utils import load_torch_file

    from bokeh_ops.host.sampling.plain import sample_plain
    from bokeh_ops.host.small.model import read_small

    wanted = f"lora.rank={rank}", "steps=2", "optimizer.lr=0.02"
    base = settings(workshop, tmp_path, kind).base.checkpoint
    assert base is not None
    before = models.snapshot(read_small(Path(base)).patcher)
    made = train(workshop, tmp_path, kind, *wanted)
    assert models.same_bits(models.snapshot(made.base.patcher), before)
    for learner in made.learners.values():
        changed = [
            float(value.detach().abs().max())
            for name, value in learner.weights.items()
            if name.startswith("up.")
        ]
        assert (
            all(changed)
            if rank
            else not models.same_bits(
                {
                    name: value.detach()
                    for name, value in learner.weights.items()
                    if not name.startswith("head.")
                },
                dict(made.base.patcher.model.diffusion_model.named_parameters()),
            )
        )
    texts, blank = made.texts(["a patch"]), torch.zeros(1, *made.pictures.shape)
    positive = made.roles.conditioning(texts)
    with made.training(), made.networks.acting("generator") as patcher:
        own = sample_plain(patcher, positive, positive, blank, 5, 4, 1.0, "lcm")
    models.unload()
    plain = read_small(Path(base)).patcher
    if rank:
        lora = load_torch_file(str(tmp_path / "generator_lora.safetensors"))
        loaded, _ = comfy.sd.load_lora_for_models(plain, None, lora, 1.0, 0.0)
        assert len(loaded.patches) == len(lora) // 2  # the host takes every layer
    else:
        loaded = read_small(tmp_path / "generator.safetensors").patcher
    found = sample_plain(loaded, positive, positive, blank, 5, 4, 1.0, "lcm")
    assert relative(found, own) < (1e-3 if rank else 3e-2)  # a small model is kept in half precision
    with made.training():
        roles = []
        for role in ("teacher", "fake"):
            with made.networks.acting(role) as patcher:
                roles.append(sample_plain(patcher, positive, positive, blank, 5, 4, 1.0, "lcm"))
    models.unload()
    untouched = sample_plain(read_small(Path(base)).patcher, positive, positive, blank, 5, 4, 1.0, "lcm")
    assert relative(untouched, own) > 0.05
    assert torch.equal(roles[0], untouched)
    assert min(relative(roles[1], other) for other in (own, untouched)) > 1e-3


# ---- the training ----


@pytest.mark.parametrize(("kind", "rank"), [("sd15", 2), ("flux", 2), ("sd15", 0)])
def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(
    workshop: Path, tmp_path: Path, kind: str, rank: int
) -> None:
    asked = f"lora.rank={rank}", "ema=0.9"
    train(workshop, tmp_path / "whole", kind, *asked)
    train(workshop, tmp_path / "parts", kind, *asked, until=2)
    assert len(losses(tmp_path / "parts")) == 2
    train(workshop, tmp_path / "parts", kind, *asked)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    one, other = (
        {
            file.name: load_file(file)
            for file in (tmp_path / each / "checkpoints/step-00000004").glob("*.safetensors")
        }
        for each in ("whole", "parts")
    )
    assert set(one) == {"generator.safetensors", "generator-average.safetensors", "fake.safetensors"}
    assert all(models.same_bits(one[name], other[name]) for name in one)
    result = "generator_lora.safetensors" if rank else "generator.safetensors"
    if rank:  # the average is what is used
        used, average = load_file(tmp_path / "whole" / result), one["generator-average.safetensors"]
        ups = {name.split("diffusion_model.")[1]: value for name, value in used.items() if "lora_B" in name}
        for name, value in ups.items():
            place = name.removesuffix(".lora_B.weight").replace(".", "/")
            assert torch.equal(value, average[f"up.{place}"])
            assert not torch.equal(value, one["generator.safetensors"][f"up.{place}"])
    assert (tmp_path / "whole" / result).read_bytes() == (tmp_path / "parts" / result).read_bytes()


@pytest.mark.parametrize("kind", ["sd15", "flux"])
def test_micro_batches_and_checkpointing_change_nothing(workshop: Path, tmp_path: Path, kind: str) -> None:
    """What is computed again on the way back is so with the LoRA that was at work, though another one is by then."""
    told = []
    for name, asked in (
        ("a", ("batch.micro=3",)),
        ("b", ("batch.micro=1",)),
        ("c", ("batch.micro=3", "checkpointing=true")),
    ):
        train(workshop, tmp_path / name, kind, "steps=2", "losses.adversarial=1", *asked)
        told.append(
            [{k: v for k, v in line.items() if not isinstance(v, str)} for line in losses(tmp_path / name)]
        )
    assert told[1] == [pytest.approx(line, rel=2e-3) for line in told[0]]
    assert told[2] == [pytest.approx(line, rel=1e-4) for line in told[0]]


def test_two_processes_make_the_losses_of_one(workshop: Path, tmp_path: Path) -> None:
    asked = "steps=2", "batch.micro=1", "fake.updates=1", "lora.rank=2"
    train(workshop, tmp_path / "one", "sd15", *asked)
    (tmp_path / "two").mkdir()
    text = to_yaml(settings(workshop, tmp_path / "two", "sd15", *asked, "device=auto"))
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    words = ["--multi_gpu", "--main_process_port", "0", "--num_processes", "2", "--num_machines", "1"]
    words += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            *words,
            "-m",
            "trainer",
            "distil",
            str(tmp_path / "c.yaml"),
        ],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert "in 2 processes on cpu" in done.stderr
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    for name in ("loss", "generator/gradient", "fake/gradient"):
        assert [line[name] for line in two] == pytest.approx([line[name] for line in one], rel=1e-4)
    assert two[0]["fake/loss"] == one[0]["fake/loss"]  # of the very same rows
    # Together, as AdamW gives a weight whose gradient is nothing but rounding a whole step of either sign.
    mine, theirs = (load_file(tmp_path / each / "generator_lora.safetensors") for each in ("one", "two"))
    changed = [name for name in mine if name.endswith("lora_B.weight")]  # 0 at first
    whole, apart = (
        torch.cat([(mine[name] - other * theirs[name]).flatten() for name in changed]).norm()
        for other in (0, 1)
    )
    assert float(apart) < 0.02 * float(whole)


def test_samples_and_validation(workshop: Path, tmp_path: Path) -> None:
    made = train(workshop, tmp_path, "sd15", "steps=1", "ema=0.9")
    own = load_file(tmp_path / "checkpoints/step-00000001/generator.safetensors")
    with made.training():
        found = made.validation()
        assert made.validation() == found
        sheet = made.samples(1)
    assert set(found) == {"denoising", "head", "matching", "adversarial"}
    assert sheet.shape[-1] == 3
    assert (tmp_path / "samples" / "step-00000001.png").is_file()
    assert models.same_bits(
        {name: value.detach() for name, value in made.learners["generator"].weights.items()}, own
    )
    kept = {made.pictures.read(len(made.pictures) + number).key for number in range(2)}
    trained = {made.pictures.drawn(0, step).key for step in range(60)}
    assert len(trained) == 4
    assert not kept & trained  # six of the toy's pictures are sharp, two of them kept apart


def test_a_checkpoint_of_the_host(workshop: Path, tmp_path: Path) -> None:
    """Not a small model: text encoder and autoencoder are asked once for each caption and picture, and let go."""
    import comfy.sd

    from bokeh_ops.host.architectures import named
    from trainer.frozen.model import Base, Embedding, HostBase
    from trainer.loop import Loop, Schedule

    asked: list[str] = []

    class Host(HostBase):
        text_fingerprint = image_fingerprint = "b"

        def __init__(self) -> None:
            Base.__init__(self, named("sdxl"), models.host_model("sdxl"), "a")
            self._vae = SimpleNamespace(
                encode=lambda p: F.avg_pool2d(p[..., [0, 1, 2, 0]].movedim(-1, 1), 2),
                decode=lambda x: F.interpolate(x[:, :3], scale_factor=2.0).movedim(1, -1),
            )

        def encode_text(self, texts: Any) -> list[Embedding]:
            asked.extend(texts)
            context, told = models.conditioning("sdxl")[0]
            return [Embedding(context[0], told["pooled_output"][0]) for _ in texts]

    def run(out: Path) -> Any:
        cache = f"cache.folder={tmp_path / 'cache'}"
        made = recipe(workshop, out, "sdxl", cache, "samples.steps=1", "optimizer.lr=0.02", base=Host())
        made.prepare()
        Loop(made, Schedule(1, 1, samples=1), out).run()
        return made

    made = run(tmp_path / "a")
    assert sorted(asked) == ["", "a patch", "patch"]
    assert made.base.encoded == len(made.pictures.indices)
    assert run(tmp_path / "b").base.encoded == 0
    assert len(asked) == 3
    lora = load_file(tmp_path / "a/generator_lora.safetensors")
    loaded, _ = comfy.sd.load_lora_for_models(models.host_model("sdxl"), None, lora, 1.0, 0.0)
    assert len(loaded.patches) == len(lora) // 2
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


# ---- what cannot be ----


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("matching.least=0.99", r"matching.least is 0.99 and most 0.98"),
        ("losses.head=0", r"losses.adversarial is 0.005 and losses.head 0; set both above 0, or both to 0"),
        ("generator_steps=0", r"generator_steps is 0; it must be at least 1"),
        ("lora.ranks=3", r"lora.ranks is no setting. Did you mean lora.rank"),
        ("fake.updates=0", r"fake.updates is 0; it must be at least 1"),
    ],
)
def test_settings_that_cannot_be(workshop: Path, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings(workshop, tmp_path, "sd15", override)


def test_what_training_lacks(workshop: Path, tmp_path: Path) -> None:
    from trainer.data import DatasetWriter

    DatasetWriter(tmp_path / "empty", (16, 16), {}).finish()
    with pytest.raises(BokehError, match=r"has 0 photographs that are all in focus; training needs two"):
        recipe(workshop, tmp_path, "sd15", f"data.dataset={tmp_path / 'empty'}")
    train(workshop, tmp_path / "out", "sd15", "steps=2")
    with pytest.raises(BokehError, match=r"fake.updates: 2 -> 3"):
        train(workshop, tmp_path / "out", "sd15", "steps=4", "fake.updates=3")


@pytest.mark.parametrize("kind", ["sd15", "flux"])
def test_the_shipped_profiles_are_valid(repo: Path, kind: str) -> None:
    text = (repo / "trainer" / "configs" / f"world-distil-{kind}.yaml").read_text(encoding="utf-8")
    found = parse_settings(text, Distil, kind).resolved()
    assert (found.generator_steps, found.lora.rank, found.base.weights) == (4, 0, "fp32")
    assert (found.losses.adversarial, found.losses.head) == (5e-3, 1e-2)  # the paper's


def test_defaults_follow_the_architecture(workshop: Path, tmp_path: Path) -> None:
    found = settings(workshop, tmp_path, "sdxl").resolved()
    bare = "out: a\nbase: {architecture: %s, checkpoint: b}\ndata: {dataset: c}\nlora: {rank: %d}"
    resolved: Callable[..., Distil] = lambda *words: parse_settings(bare % words, Distil, "bare").resolved()  # noqa: E731
    assert found.matching.guidance == 8.0
    assert resolved("flux", 4).matching.guidance == 3.5
    assert (resolved("sdxl", 4).optimizer.lr, resolved("sdxl", 4).base.weights) == (5e-5, "bf16")
    assert (resolved("sdxl", 0).optimizer.lr, resolved("sdxl", 0).base.weights) == (5e-7, "fp32")
    assert resolved("sdxl", 0).fake.lr == 5e-7


def test_networks_without_a_middle_block() -> None:
    from bokeh_ops.host.architectures import named

    last = SimpleNamespace(out_channels=7)
    network = SimpleNamespace(middle_block=None, input_blocks=[[0], [1, last]])
    assert named("sdxl").bottleneck(network) == (last, 7)
