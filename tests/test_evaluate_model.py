"""``python -m trainer evaluate model``: prompts through the real sampling path, then measured."""
# ruff: noqa: F811 (the fixture `workshop` is imported)

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests import models
from tests.fit import KINDS, run, settings, workshop  # noqa: F401
from tests.host.setup import host_folder
from tests.models import one_thread  # noqa: F401
from trainer.cli import main
from trainer.measure.metrics import mean_lab

K = [0.0, 12.0, 30.0]


@pytest.fixture(autouse=True)
def unloaded(pack: Any) -> Iterator[None]:
    yield
    models.unload()


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take longer than all the rest, and LPIPS has tests of its own; one test has both."""
    if "test_pictures_figures_and_sheets[flux]" not in request.node.name:
        monkeypatch.setattr("trainer.measure.plots.plot_sweeps", lambda *_: [])
        monkeypatch.setattr("trainer.measure.metrics.weights.load_lpips", lambda *_: None)


@pytest.fixture(scope="module")
def adapters(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter of each kind that does something: random numbers, no training."""
    from bokeh_ops.adapter.files import read_adapter, write_adapter

    folder = tmp_path_factory.mktemp("adapters")
    made = {}
    for kind in KINDS:
        assert run(kind, folder / kind, workshop, "steps=1")
        adapter = read_adapter(folder / kind / "adapter.safetensors")
        source = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in adapter.parameters():
                weight.copy_(torch.randn(weight.shape, generator=source) / weight.shape[-1] ** 0.5)
        made[kind] = write_adapter(adapter, folder / f"{kind}.safetensors")
    return made


def words(kind: str, out: Path, workshop: Path, adapters: dict[str, Path], *more: object) -> list[str]:
    given = [
        "evaluate",
        "model",
        out,
        "--architecture",
        kind,
        "--checkpoint",
        workshop / f"{kind}.safetensors",
    ]
    given += ["--adapter", adapters[kind], "--comfyui", host_folder(), "--sample-on", "cpu"]
    given += ["--weights", "fp32", "--size", "32", "--steps", "4", "--k", "0, 12, 30"]
    return [str(word) for word in [*given, *more]]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_figures_and_sheets(
    workshop: Path, tmp_path: Path, adapters: dict[str, Path], kind: str
) -> None:
    from bokeh_ops.adapter.files import read_adapter
    from trainer.frozen.load import load_base
    from trainer.frozen.model import Fingerprints
    from trainer.recipes.bokeh.samples import sweep

    (tmp_path / "prompts.txt").write_text("a patch\n\na red patch\n", encoding="utf-8")
    out = tmp_path / "out"
    more = ["--prompts", tmp_path / "prompts.txt", "--seeds", "0, 3", "--depth", "python:tests.fit:toy_depth"]
    assert main(words(kind, out, workshop, adapters, *more, "--depth-kind", "metric")) == 0
    names = ["001-a-patch-seed0", "001-a-patch-seed3", "002-a-red-patch-seed0", "002-a-red-patch-seed3"]
    assert sorted(folder.name for folder in (out / "sweeps").iterdir()) == names
    listed = json.loads((out / "sweeps" / names[1] / "sweep.json").read_text())
    assert (listed["prompt"], listed["seed"], listed["pivot"]) == ("a patch", 3, 14)
    assert [image["k"] for image in listed["images"]] == [0, 12, 14, 30]  # the pivot is one of them

    # They are what the trainer samples, which is what the node samples.
    wanted = settings(kind, tmp_path, workshop, "base.weights=fp32").resolved()
    wanted = replace(wanted, samples=replace(wanted.samples, prompts=["a patch"], k=K, seed=3, steps=4))
    base = load_base(wanted, tmp_path, Fingerprints(tmp_path / "files.json"))
    adapter = read_adapter(adapters[kind])
    made = sweep(base, adapter, wanted, base.encode_text, (32, 32))[0]
    for place, k in enumerate([14, 0, 12, 30]):
        levels = (made[place] * 255).round().byte().numpy()
        assert np.array_equal(pixels(out / "sweeps" / names[1] / f"k{k}.png"), levels), k
    assert not np.array_equal(levels, pixels(out / "sweeps" / names[1] / "k0.png"))  # K does something

    figures = json.loads((out / "figures.json").read_text())
    assert figures["evaluation"] == "model"
    assert figures["settings"]["sampling"]["prompts"] == ["a patch", "a red patch"]
    assert figures["settings"]["sampling"]["samples"]["steps"] == 4
    (measured,) = figures["runs"]
    assert [scene["scene"] for scene in measured["scenes"]] == names
    for scene in measured["scenes"]:
        assert scene["values"] == [0, 12, 14, 30]
        assert -1 <= scene["lvcorr"] <= 1
        assert scene["focus_dE"] > 0
        assert 0 < scene["focus_dE_ref"] < 8  # only where blur reaches into it
    # The reference: the picture itself at K = 0, softer and softer after it.
    reference = out / "references" / names[0]
    assert np.array_equal(pixels(reference / "k0.png"), pixels(out / "sweeps" / names[0] / "k0.png"))
    sharpness = measured["scenes"][0]["laplacian_variance_ref"]
    assert sharpness[0] > sharpness[3]
    focus = pixels(out / "sweeps" / names[0] / "focus.png")[..., 0] > 127
    assert focus[16, 16]
    assert not focus[0, 0]
    width, height = Image.open(out / "sheet-01.png").size
    assert width > 4 * 128
    assert height > 4 * 128
    assert (out / "plots" / "trends.png").is_file() == (kind == "flux")  # see `quick`


def test_what_is_there_is_not_sampled_again(
    workshop: Path,
    tmp_path: Path,
    adapters: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from trainer.measure import generate

    small = ["--size", "16", "--steps", "2"]
    begin = words(
        "sd15", tmp_path, workshop, adapters, *small, "--prompt", "a patch", "--prompt", "two patches"
    )
    sampled: list[str] = []
    original = generate._Sampler.pictures

    def interrupted(self: Any, prompt: str, seed: int) -> Any:
        if sampled:
            raise KeyboardInterrupt
        sampled.append(prompt)
        return original(self, prompt, seed)

    monkeypatch.setattr(generate._Sampler, "pictures", interrupted)
    assert main(begin) == 130
    assert [path.parent.name for path in tmp_path.rglob("sweep.json")] == ["001-a-patch-seed0"]
    before = (tmp_path / "sweeps" / "001-a-patch-seed0" / "k30.png").stat().st_mtime_ns

    def counted(self: Any, prompt: str, seed: int) -> Any:
        sampled.append(prompt)
        return original(self, prompt, seed)

    monkeypatch.setattr(generate._Sampler, "pictures", counted)
    assert main(begin) == 0
    assert sampled == ["a patch", "two patches"]
    assert (tmp_path / "sweeps" / "001-a-patch-seed0" / "k30.png").stat().st_mtime_ns == before
    assert main(begin) == 0  # only measured again
    assert main([*begin, "--prompt", "three patches"]) == 0  # more may be added
    assert sampled == ["a patch", "two patches", "three patches"]
    capsys.readouterr()
    assert main([*begin, "--prompt", "three patches", "--cfg", "3"]) == 1
    assert "samples.cfg: 7.0 -> 3.0" in capsys.readouterr().err
    assert main(begin) == 1  # a scene too many
    assert "003-three-patches-seed0" in capsys.readouterr().err
    other = {"sd15": tmp_path / "other.safetensors"}
    other["sd15"].write_bytes(adapters["sd15"].read_bytes() + b" ")
    assert main(words("sd15", tmp_path, workshop, other, *small, "--prompt", "a patch")) == 1
    assert "adapter_hash" in capsys.readouterr().err


def test_strength_and_colour_match(workshop: Path, tmp_path: Path, adapters: dict[str, Path]) -> None:
    def sampled(name: str, *more: str) -> dict[str, np.ndarray]:
        given = words("flux", tmp_path / name, workshop, adapters, "--prompt", "a patch", *more)
        assert main(given) == 0
        (folder,) = (tmp_path / name / "sweeps").iterdir()
        return {path.stem: pixels(path) for path in folder.glob("k*.png")}

    def colour(picture: np.ndarray) -> np.ndarray:
        return np.array(mean_lab(torch.tensor(picture).movedim(-1, 0) / 255))

    off = sampled("off", "--strength", "0")
    assert all(np.array_equal(picture, off["k0"]) for picture in off.values())  # nothing obeys K
    plain, matched = sampled("plain"), sampled("matched", "--colour-match", "mean")
    assert np.array_equal(plain["k14"], matched["k14"])  # the pivot stays
    apart = [max(abs(colour(p[k]) - colour(p["k14"])).max() for k in ("k0", "k30")) for p in (plain, matched)]
    assert apart[1] < apart[0] / 3
    assert apart[0] > 0.1


def test_the_configuration_of_a_run_is_enough(workshop: Path, tmp_path: Path) -> None:
    from tests.fit import config

    overrides = [
        "steps=1",
        "samples.steps=3",
        "samples.prompts=[a patch]",
        "samples.k=[0, 20]",
        "base.weights=fp32",
    ]
    (tmp_path / "c.yaml").write_text(config("sd15", tmp_path / "run", workshop, *overrides), encoding="utf-8")
    assert main(["fit", str(tmp_path / "c.yaml")]) == 0
    given = ["evaluate", "model", str(tmp_path / "out"), "--config", str(tmp_path / "c.yaml")]
    assert main([*given, "--steps", "2"]) == 0
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert figures["settings"]["sampling"]["samples"]["steps"] == 2
    assert figures["settings"]["sampling"]["size"] == [16, 16]  # that of the data set
    assert figures["settings"]["sampling"]["adapter"] == str(tmp_path / "run" / "adapter.safetensors")
    # A new adapter does nothing, and that is what is measured.
    (scene,) = figures["runs"][0]["scenes"]
    assert scene["values"] == [0, 14, 20]
    assert max(scene["laplacian_variance"]) == pytest.approx(min(scene["laplacian_variance"]), rel=0.05)


def test_the_size_is_that_of_the_training(workshop: Path, tmp_path: Path, adapters: dict[str, Path]) -> None:
    from bokeh_ops.adapter.files import read_adapter, write_adapter
    from trainer.measure.model import _trained_size

    adapter = read_adapter(adapters["sd15"])
    assert _trained_size(workshop / "data", adapters["sd15"]) == "16x16"
    for number, (training, size) in enumerate(
        [({"size": [48, 24]}, "48x24"), ({}, "512"), (None, "512"), ({"size": 5}, "512")]
    ):
        adapter.config = replace(adapter.config, extra={"training": training})
        path = write_adapter(adapter, tmp_path / f"{number}.safetensors")
        assert _trained_size(None, path) == size
        assert _trained_size(tmp_path / "gone", path) == size
    assert _trained_size(None, tmp_path / "gone.safetensors") == "512"


def test_what_was_trained_can_be_exported(adapters: dict[str, Path], tmp_path: Path) -> None:
    assert main(["export", str(adapters["flux"]), str(tmp_path / "out"), "--layout", "released"]) == 0


@pytest.mark.parametrize(
    ("more", "status", "said"),
    [
        (["--size", "30"], 2, "--size is '30'; write 512 or 768x512, multiples of 8 for sd15"),
        (["--k", "a"], 2, "'a' is not a number"),
        (["--sampler", "eulr"], 1, "no sampler 'eulr'. Did you mean euler?"),
        (["--scheduler", "simpel"], 1, "no scheduler 'simpel'. Did you mean simple?"),
        (["--depth", "files"], 2, "--depth needs --depth-kind"),
        (["--depth", "files", "--depth-kind", "metric", "--k", "4, 8"], 2, "0 is not among --k"),
        (["--depth", "files", "--depth-kind", "metric"], 1, "No reference can be rendered"),
        (["--seeds", "0, 0"], 1, "A seed was given twice"),
        (["--adapter", "none.safetensors"], 1, "The adapter none.safetensors cannot be read"),
        (["--architecture", "flux"], 1, "is a small model of sd15, but base.architecture is flux"),
        (["--prompts", "none.txt"], 2, "none.txt cannot be read"),
        (["--grounding-steps", "9"], 1, "grounding_steps is 9 but only 4 steps"),
    ],
)
def test_what_is_wrong_is_said(
    workshop: Path,
    tmp_path: Path,
    adapters: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    status: int,
    said: str,
) -> None:
    given = words("sd15", tmp_path / "out", workshop, adapters, "--prompt", "a patch", *more)
    assert main(given) == status
    assert said in capsys.readouterr().err


def test_the_adapter_of_another_model(
    workshop: Path, tmp_path: Path, adapters: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {"sd15": adapters["flux"]}
    assert main(words("sd15", tmp_path / "out", workshop, wrong)) == 1
    assert "is a bokeh adapter for FLUX" in capsys.readouterr().err
