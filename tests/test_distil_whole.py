"""Distilling whole networks of the host's own checkpoints, and with weights spread over several processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bokeh_ops.errors import BokehError
from tests import models
from tests.fit import losses, workshop  # noqa: F401
from tests.fullsize import FLUX, SD15_UNET, SDXL_UNET
from tests.models import one_thread, relative  # noqa: F401
from tests.test_distil import recipe, settings, train
from trainer.cli import UsageError
from trainer.settings import to_yaml

# ruff: noqa: F811 (the fixture `workshop` is imported)

PREFIX = "model.diffusion_model."


@pytest.fixture(autouse=True)
def unloaded(pack: Any) -> Iterator[None]:
    yield
    models.unload()


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a toy as the host's checkpoints are published; the host is told its dimensions, which it cannot guess.

    The text encoder and the autoencoder, which would be in files of many times its size, are the toy's.
    """
    import comfy.model_detection

    from bokeh_ops.host.architectures import named
    from bokeh_ops.host.differences import published_weights
    from trainer.frozen.model import Embedding, HostBase
    from trainer.toy import make_toy

    def write(kind: str) -> tuple[str, ...]:
        toy, known = make_toy(kind, seed=3), named(kind)
        plain = published_weights(toy.patcher.model.model_config, toy.network.state_dict())
        path, prefix = tmp_path / f"{kind}-checkpoint.safetensors", "" if kind == "flux" else PREFIX
        save_file({f"{prefix}{name}": value.contiguous() for name, value in plain.items()}, path)
        monkeypatch.setattr(
            comfy.model_detection,
            "model_config_from_unet",
            lambda *_, **__: known.small_model(dict(known.toy), False)[0],
        )
        encode = lambda _, texts: [Embedding(*toy.words.encode(text)) for text in texts]  # noqa: E731
        monkeypatch.setattr(HostBase, "encode_text", encode)
        monkeypatch.setattr(HostBase, "encode_images", lambda _, x: toy.encode_images(x.float() / 255))
        monkeypatch.setattr(HostBase, "decode", lambda _, x: toy.decode(x))
        other = "diffusion_model" if prefix == "" else "checkpoint"
        return "base.checkpoint=null", f"base.{other}={path}", "lora.rank=0", "steps=2"

    return write


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "flux"])
def test_a_checkpoint_of_the_host_trains_as_a_whole(
    workshop: Path, tmp_path: Path, checkpoint: Any, kind: str
) -> None:
    """From the host's own loader to its own loader: what is trained is what samples, and the teacher is untouched."""
    from bokeh_ops.host.loading import models as loading
    from bokeh_ops.host.sampling.plain import sample_plain
    from trainer.frozen.model import HostBase

    wanted = checkpoint(kind)
    made = train(workshop, tmp_path, kind, *wanted, "samples.every=2", "samples.steps=2")
    assert isinstance(made.base, HostBase)
    given = load_file(tmp_path / f"{kind}-checkpoint.safetensors")
    given = {name.removeprefix(PREFIX): value for name, value in given.items()}
    written = load_file(tmp_path / "generator.safetensors")
    half = torch.bfloat16 if kind == "flux" else torch.float16  # as the host prefers them
    assert {name: (value.shape, value.dtype) for name, value in written.items()} == {
        name: (value.shape, half) for name, value in given.items()
    }
    for learner in made.learners.values():
        assert {value.dtype for value in learner.parameters} == {torch.float32}
    positive, blank = made.roles.conditioning(made.texts(["a patch"])), torch.zeros(1, *made.pictures.shape)
    found = {}
    with made.training():
        for role in ("teacher", "generator", "fake"):
            with made.networks.acting(role) as patcher:
                found[role] = sample_plain(patcher, positive, positive, blank, 5, 4, 1.0, "lcm")
    models.unload()
    for role, file, tolerance in (("generator", "generator", 5e-2), ("teacher", f"{kind}-checkpoint", 0.0)):
        loaded = loading.load_model(tmp_path / f"{file}.safetensors", torch.float32)
        plain = sample_plain(loaded, positive, positive, blank, 5, 4, 1.0, "lcm")
        assert relative(plain, found[role]) <= tolerance
    assert relative(found["generator"], found["teacher"]) > 0.2
    again = recipe(workshop, tmp_path / "2", kind, *wanted, f"init={tmp_path / 'generator.safetensors'}")
    assert all(
        relative(value.detach().to(half).float(), before.detach().to(half).float()) < 1e-6
        for value, before in zip(
            again.learners["generator"].parameters, made.learners["generator"].parameters, strict=True
        )
    )
    assert min(relative(found["fake"], found[role]) for role in ("generator", "teacher")) > 1e-2


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "flux"])
def test_the_host_knows_the_names_at_full_size(pack: Any, kind: str) -> None:
    """What it goes by: names and shapes, of networks of the real width that hold no data."""
    import comfy.ops
    import comfy.supported_models
    from comfy.ldm.flux.model import Flux
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.model_detection import model_config_from_unet

    from bokeh_ops.host.differences import flux_config, published_weights

    name, cls, config = {
        "sd15": ("SD15", UNetModel, SD15_UNET),
        "sdxl": ("SDXL", UNetModel, SDXL_UNET),
        "flux": ("Flux", Flux, flux_config(FLUX)),
    }[kind]
    own = getattr(comfy.supported_models, name)
    network = cls(**config, dtype=torch.float16, device="meta", operations=comfy.ops.disable_weight_init)
    found = model_config_from_unet(published_weights(own(dict(config)), network.state_dict()), "")
    assert type(found) is own


def test_what_a_model_predicts_is_told_in_its_file(workshop: Path, tmp_path: Path, checkpoint: Any) -> None:
    import comfy.model_detection
    import comfy.sd

    from bokeh_ops.host.training import denoise

    wanted = checkpoint("sdxl")
    made = recipe(workshop, tmp_path, "sdxl", *wanted, "base.prediction=v", "base.zero_terminal_snr=true")
    assert torch.equal(
        made.networks.acting("fake").__enter__().get_model_object("model_sampling").sigmas, made.table
    )
    made.networks.write(tmp_path)
    loaded = comfy.sd.load_diffusion_model(str(tmp_path / "generator.safetensors"))
    assert denoise.prediction(loaded) == "v"
    assert torch.allclose(denoise.discrete_sigmas(loaded), made.table)


def test_weights_too_coarse_to_train(workshop: Path, tmp_path: Path) -> None:
    with pytest.raises(BokehError, match=r"their weights are torch.float8_e4m3fn.*Set base.weights to fp32"):
        recipe(workshop, tmp_path, "sd15", "lora.rank=0", "base.weights=fp8_e4m3fn", "precision=bf16")


# ---- weights spread over processes ----


def test_the_host_leaves_weights_alone_that_are_kept_from_it(pack: Any) -> None:
    import comfy.model_patcher

    from bokeh_ops.host.loading import models as loading

    nowhere = torch.device("meta")  # where the host would move them, and lose them
    model = models.host_model("sdxl").model
    plain = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), nowhere)
    patcher = loading.kept(loading.use_v_prediction(plain, False))
    usual, layer = model.model_sampling, model.diffusion_model.out[-1]
    before, weight = models.snapshot(patcher), layer.weight
    little = lambda: patcher.partially_load(torch.device("cpu"), 1)  # noqa: E731 (as where there is no room)
    for load, unload in ((lambda: loading.on_device(patcher), loading.unload), (little, patcher.detach)):
        load()
        assert model.model_sampling is patcher.object_patches["model_sampling"]
        assert not layer.comfy_cast_weights
        patcher.partially_unload(nowhere, 10**9)
        unload()
        assert model.model_sampling is usual
        assert layer.weight is weight
    assert models.same_bits(models.snapshot(patcher), before)
    assert patcher.clone().model_size() == 0


def test_what_cannot_be_spread(workshop: Path, tmp_path: Path) -> None:
    from trainer.sharding import check_even

    check_even(8, 2, 2)
    with pytest.raises(BokehError, match=r"batch.total is 6; .* 2 processes it must be a multiple of 4"):
        check_even(6, 2, 2)
    for odd in ("precision=fp16", "optimizer.name=prodigy"):
        settings(workshop, tmp_path, "sd15", "shard=true", "optimizer.lr=null", odd)
        with pytest.raises(UsageError, match="use bf16 and adamw"):
            settings(workshop, tmp_path, "sd15", "shard=true", "lora.rank=0", "optimizer.lr=null", odd)


def test_spread_weights_train_as_whole_ones(workshop: Path, tmp_path: Path) -> None:
    """Two processes with half of the weights each, stopped and gone on, beside one with all, and exchanged with it."""
    from trainer.loop import Loop, Schedule

    usual = (
        "batch.total=2",
        "batch.micro=1",
        "fake.updates=1",
        "ema=0.5",
        "generator_steps=2",
        "optimizer.lr=1e-3",
    )
    usual += (
        "samples.captions=1",
        "samples.steps=1",
        "optimizer.clip=0.1",
        "losses.adversarial=1",
        "matching.guidance=1",
    )
    ways = {"whole": ("sd15", "lora.rank=0", "checkpointing=true"), "lora": ("flux", "lora.rank=2")}

    def alone(folder: Path, kind: str, *asked: str, steps: int = 2) -> None:
        made = recipe(workshop, folder, kind, *usual, *asked)
        Loop(made, Schedule(steps, 1), folder).run()

    for name, (kind, *asked) in ways.items():
        (tmp_path / name).mkdir()
        text = to_yaml(settings(workshop, tmp_path / name, kind, *usual, *asked, "shard=true"))
        (tmp_path / name / "c.yaml").write_text(text, encoding="utf-8")
        alone(tmp_path / f"{name}-alone", kind, *asked)
    words = ["--multi_gpu", "--main_process_port", "0", "--num_processes", "2", "--num_machines", "1"]
    words += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *words, "-m", "tests.spread"]
    done = subprocess.run(
        [*launch, *(str(tmp_path / name) for name in ways)], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    for name in ways:
        one, spread = tmp_path / f"{name}-alone", tmp_path / name
        for line, other in zip(losses(spread), losses(one), strict=True):
            numbers = {key: value for key, value in line.items() if isinstance(value, float)}
            assert numbers == pytest.approx({key: other[key] for key in numbers}, rel=1e-4)
        assert (spread / "samples" / "step-00000002.png").is_file() == (name == "whole")
        assert close(one, spread, 2) < 0.01
        for rank in range(2):
            share = json.loads((spread / f"share-{rank}.json").read_text(encoding="utf-8"))
            held = {part: own / every for part, (own, every) in share.items()}
            assert held["backbone"] == pytest.approx(0.5, abs=0.01)
            trains = 1.0 if name == "lora" else 0.5
            assert held["trained"] == held["averages"] == pytest.approx(trains, abs=0.01)
    one, spread = tmp_path / "whole-alone", tmp_path / "whole"
    for folder in (one, spread):  # one process goes on from what two have written
        alone(folder, *ways["whole"], steps=3)
    assert losses(spread)[2]["loss"] == pytest.approx(losses(one)[2]["loss"], rel=1e-4)
    assert close(one, spread, 3) < 0.01


def close(one: Path, other: Path, step: int) -> float:
    """How far what was trained is apart, over the size of what was learnt in the last step of ``one``.

    In all together, as AdamW gives a weight whose gradient is nothing but rounding a whole step of either sign.
    """

    def read(folder: Path, number: int = step) -> Tensor:
        files = sorted((folder / "checkpoints" / f"step-{number:08d}").glob("[fg]*.safetensors"))
        assert len(files) == 3
        return torch.cat([value.flatten() for file in files for _, value in sorted(load_file(file).items())])

    mine = read(one)
    return float((mine - read(other)).norm() / (mine - read(one, step - 1)).norm())
