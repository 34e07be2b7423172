"""What goes wrong on a user's machine, and what `fit` says of it; and what it keeps."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bokeh_ops.errors import BokehError
from tests import models
from tests.fit import config, losses, run, workshop  # noqa: F401
from tests.host.setup import host_folder
from tests.models import one_thread  # noqa: F401
from trainer.cli import main

# ruff: noqa: F811 (the fixture `workshop` is imported)


@pytest.fixture(autouse=True)
def unloaded(pack: Any) -> Iterator[None]:
    yield
    models.unload()


def spoil(workshop: Path, step: int, value: float, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """From the given step on, one latent holds ``value``."""
    from trainer.recipes.bokeh.recipe import Bokeh

    original = Bokeh.latents_of

    def spoilt(run: Any, fed: Any) -> torch.Tensor:
        latents = original(run, fed)
        if fed.micro.step + 1 >= step and fed.micro.number == 1:
            latents[2, 0, 0, 0] = value
        return latents

    monkeypatch.setattr(Bokeh, "latents_of", spoilt)


def spoil_gradient(number: int, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of one parameter holds ``value``."""
    from trainer.loop import Loop

    original = Loop._update

    def spoilt(self: Any, learner: Any) -> float:
        learner.parameters[number].grad[0] = value
        return original(self, learner)

    monkeypatch.setattr(Loop, "_update", spoilt)


@pytest.mark.parametrize("value", [math.nan, 1e30])
def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    from trainer.loop import Diverged

    spoil(workshop, 4, value, monkeypatch, tmp_path)
    with pytest.raises(Diverged, match="The loss of step 4 is not a number") as caught:
        run("sd15", tmp_path, workshop, "steps=5", "checkpoint.every=2")
    assert len(losses(tmp_path)) == 3
    (report,) = tmp_path.glob("bad-batch-*.json")
    assert str(report) in str(caught.value)
    described = json.loads(report.read_text(encoding="utf-8"))
    bad = [row for row in described["rows"] if row["loss"] in ("nan", "inf")]
    assert len(described["rows"]) == 8
    assert [row["photograph"] in str(caught.value) for row in bad[:1]] == [True]
    assert {"photograph", "k", "told", "caption", "noise level", "pivot", "loss"} <= set(bad[0])
    # The checkpoint is sound, and the training goes on from it once the cause is gone.
    monkeypatch.undo()
    assert run("sd15", tmp_path, workshop, "steps=5", "checkpoint.every=2")
    whole = tmp_path.parent / "whole"  # the same for every value
    if not whole.exists():
        run("sd15", whole, workshop, "steps=5", "checkpoint.every=2")
    assert losses(tmp_path) == losses(whole)


def test_a_gradient_that_is_no_number_stops_too(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_gradient(3, math.nan, monkeypatch)
    with pytest.raises(BokehError, match="The gradient of step 1 is not a number"):
        run("sd15", tmp_path, workshop)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("file", ["state.pt", "adapter.safetensors"])
def test_a_full_disk_keeps_the_last_checkpoint(workshop: Path, tmp_path: Path, file: str) -> None:
    """The kernel refuses to write on, in the midst of one of the files; with room again the run goes on."""
    resource = pytest.importorskip("resource")
    overrides = ("checkpoint.every=3", "ema=0.9")
    run("sd15", tmp_path, workshop, "steps=3", *overrides)
    folder = tmp_path / "checkpoints" / "step-00000003"
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    # `safetensors` and `torch.save` each have a word of their own for it.
    limit = len(before[file]) - 100
    assert len(before["state.pt"]) > len(before["adapter.safetensors"])  # the larger one does not fit either
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
        with pytest.raises(BokehError, match=r"could not be written: the disk is full.*checkpoint is kept"):
            run("sd15", tmp_path, workshop, "steps=6", *overrides)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert run("sd15", tmp_path, workshop, "steps=6", *overrides)


def test_no_comfyui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.comfyui import find_comfyui

    real = host_folder()
    monkeypatch.delenv("BOKEH_COMFYUI", raising=False)
    with pytest.raises(BokehError, match="Set BOKEH_COMFYUI, or comfyui in the configuration"):
        find_comfyui(None, tmp_path)
    with pytest.raises(BokehError, match=r"comfyui in the configuration names .*no main.py and no comfy"):
        find_comfyui(".", tmp_path)
    monkeypatch.setenv("BOKEH_COMFYUI", str(tmp_path))
    with pytest.raises(BokehError, match="BOKEH_COMFYUI names"):
        find_comfyui(None, tmp_path)
    assert find_comfyui(str(real), tmp_path) == real.resolve()
    # Installed as custom nodes are, ComfyUI is two folders up.
    for name in ("main.py", "comfy", "custom_nodes/pack/trainer"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.delenv("BOKEH_COMFYUI")
    from trainer import comfyui

    monkeypatch.setattr(comfyui, "__file__", str(tmp_path / "custom_nodes/pack/trainer/comfyui.py"))
    assert find_comfyui(None, Path("/nowhere")) == tmp_path


def test_the_command_returns_1_and_says_why(
    workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(config("sd15", tmp_path, workshop, "data.dataset=nowhere"), encoding="utf-8")
    assert main(["fit", str(path)]) == 1
    assert "is not a data set" in capsys.readouterr().err


def test_files_that_are_not_there_or_something_else(workshop: Path, tmp_path: Path) -> None:
    with pytest.raises(BokehError, match=r"no model file 'gone.safetensors'; searched"):
        run("sd15", tmp_path, workshop, "base.checkpoint=gone.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "odd.safetensors")
    with pytest.raises(BokehError, match=r"ComfyUI (cannot load|does not recognise)"):
        run("sd15", tmp_path, workshop, f"base.checkpoint={tmp_path / 'odd.safetensors'}")
    with pytest.raises(BokehError, match=r"is a small model of sd15, but base.architecture is flux"):
        run("flux", tmp_path, workshop, f"base.checkpoint={workshop / 'sd15.safetensors'}")


def test_samples_that_cannot_be_made_are_found_before_the_training(workshop: Path, tmp_path: Path) -> None:
    for override, said in {
        "samples.sampler=eulr": "no sampler 'eulr'. Did you mean euler",
        "samples.scheduler=simpel": "no scheduler 'simpel'. Did you mean simple",
        "samples.grounding_steps=40": "grounding_steps is 40 but only 30 steps",
    }.items():
        with pytest.raises(BokehError, match=said):
            run("sd15", tmp_path, workshop, "samples.every=3", override)
    assert not (tmp_path / "losses.jsonl").exists()


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    import comfy.supported_models

    from bokeh_ops.host.architectures import named
    from bokeh_ops.host.loading.models import check_architecture

    sd15, flux = models.host_model("sd15"), models.host_model("flux")
    check_architecture(sd15, named("sd15"), "it")
    check_architecture(flux, named("flux"), "it")
    with pytest.raises(BokehError, match=r"it is FLUX, but base.architecture is sd15.*Set it to flux"):
        check_architecture(flux, named("sd15"), "it")
    sd15.model.model_config = comfy.supported_models.SD20({"num_head_channels": 64})
    with pytest.raises(BokehError, match=r"it is SD20, but base.architecture is sd15 .*Choose another model"):
        check_architecture(sd15, named("sd15"), "it")


def test_an_adapter_to_start_from(workshop: Path, tmp_path: Path) -> None:
    run("sd15", tmp_path / "first", workshop, "steps=3")
    first = tmp_path / "first" / "adapter.safetensors"
    run("sd15", tmp_path / "second", workshop, "steps=3", f"adapter.init={first}", "optimizer.lr=1e-12")
    one, other = load_file(first), load_file(tmp_path / "second" / "adapter.safetensors")
    assert all(torch.allclose(value, other[name], atol=1e-9) for name, value in one.items())
    with pytest.raises(BokehError, match=r"is a bokeh adapter for SD1.5, but the model is Flux"):
        run("flux", tmp_path / "third", workshop, f"adapter.init={first}")


def test_photographs_of_a_size_that_does_not_fit(workshop: Path, tmp_path: Path) -> None:
    import numpy as np

    from trainer.data import DatasetWriter, encode_sample

    writer = DatasetWriter(tmp_path / "data", (24, 20), {})
    image = np.zeros((20, 24, 3), np.uint8)
    info = {"captions": [], "k": 1.0, "all_in_focus": True}
    writer.add("a", encode_sample(image, np.ones((20, 24), np.float32), np.ones((20, 24), np.float32), info))
    writer.finish()
    with pytest.raises(BokehError, match="are 24 x 20; sd15 needs sides that are multiples of 8"):
        run("sd15", tmp_path, workshop, f"data.dataset={tmp_path / 'data'}")


def test_a_damaged_photograph_stops_the_training(workshop: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(workshop / "data", tmp_path / "data")
    (shard,) = (tmp_path / "data" / "shards").glob("*.tar")
    content = bytearray(shard.read_bytes())
    for place in range(2000, len(content), 4096):
        content[place : place + 600] = bytes(600)
    shard.write_bytes(content)
    with pytest.raises(BokehError, match="shard"):
        run(
            "sd15",
            tmp_path,
            workshop,
            f"data.dataset={tmp_path / 'data'}",
            f"cache.folder={tmp_path / 'cache'}",
        )


def test_fp32_on_narrower_weights(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bokeh_ops.host.loading import models as loading

    monkeypatch.setattr(loading, "compute_dtype", lambda patcher: torch.bfloat16)
    with pytest.raises(BokehError, match=r"precision is fp32, but with base.weights bf16"):
        run("sd15", tmp_path, workshop, "base.weights=bf16")


def test_fp16_that_always_overflows(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer import loop

    spoil_gradient(0, math.inf, monkeypatch)
    monkeypatch.setattr(loop, "MOST_SKIPPED", 2)
    with pytest.raises(BokehError, match="overflowed fp16 in 3 steps in a row"):
        run("flux", tmp_path, workshop, "precision=fp16", "base.weights=fp32", "steps=9")
    assert [line["gradient"] for line in losses(tmp_path)] == [None, None]
