"""Training a focus transformer: what it is told, that it learns and goes on; and what is measured on the world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bokeh_ops.depth.focus_transformer import (
    UNKNOWN,
    FocusTransformer,
    MainThing,
    Sizes,
    read_focus_transformer,
    write_focus_transformer,
)
from bokeh_ops.errors import BokehError
from tests.models import one_thread, randn  # noqa: F401
from trainer import cli
from trainer.cli import UsageError
from trainer.data import DatasetWriter, encode_sample, open_dataset
from trainer.log import LOSSES, VALIDATION, read_lines
from trainer.loop import Loop, Schedule
from trainer.processes import Alone
from trainer.recipes.focus.config import FocusFit
from trainer.recipes.focus.examples import drawn, example, told
from trainer.recipes.focus.recipe import RESULT, Focusing, losses
from trainer.recipes.one_step.scenes import worse
from trainer.settings import parse_settings

SIDE = 16


def write_data(folder: Path, count: int = 24, empty: bool = False) -> Path:
    """A red square before a grey wall, and a blue one that is farther away."""
    source = np.random.default_rng(0)
    writer = DatasetWriter(folder, (SIDE, SIDE), {})
    for number in range(count):
        image = np.full((SIDE, SIDE, 3), 120, dtype=np.uint8)
        disparity, mask = np.full((SIDE, SIDE), 0.5), np.zeros((SIDE, SIDE))
        left, top = source.integers(0, 3), source.integers(0, 9)
        spots = [(left, top), (left + 8, (top + 4) % 9)]
        for (x, y), colour, near in zip(
            spots[:: source.choice((-1, 1))], ((20, 20, 220), (220, 30, 20)), (1, 2), strict=True
        ):
            box = slice(y, y + 6), slice(x, x + 6)
            image[box], disparity[box] = colour, near
            mask[box] = near == 2 and not empty
        info = {"captions": [], "k": 0.0, "all_in_focus": True}
        writer.add(f"s{number}", encode_sample(image, disparity, mask, info, "png"))
    writer.finish()
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("focus") / "data")


def settings(data: Path, out: Path, *overrides: str) -> FocusFit:
    lines = [
        f"out: {out}",
        f"data: {{dataset: {data}, worse_depth: 0.1, no_depth: 0.2}}",
        "network: {side: 16, patch: 4, width: 16, heads: 2, layers: 1}",
        "steps: 4",
        "device: cpu",
        "tensorboard: false",
        "batch: {total: 6, micro: 4}",
        "optimizer: {lr: 0.004, warmup: 2}",
        "samples: {every: 0, scenes: 4}",
        "checkpoint: {every: 2}",
    ]
    return parse_settings("\n".join(lines), FocusFit, "test", overrides)


def train(data: Path, out: Path, *overrides: str, until: int | None = None) -> Focusing:
    wanted = settings(data, out, *overrides).resolved()
    recipe = Focusing(wanted, out, Alone())
    Loop(recipe, Schedule(wanted.steps, 2, until=until), recipe.out).run()
    return recipe


def kept(out: Path, step: int) -> dict[str, Any]:
    folder = out / "checkpoints" / f"step-{step:08d}"
    return {
        f"{name} {key}": value
        for name in ("focus", "average")
        for key, value in load_file(folder / f"{name}.safetensors").items()
    }


# ---- what it is told ----


def test_examples_are_drawn_by_step_and_place(data: Path) -> None:
    dataset = open_dataset(data)
    one, other = (drawn(dataset, 20, 0.1, 0.2, 0, 3, slot) for slot in (4, 5))
    again = drawn(dataset, 20, 0.1, 0.2, 0, 3, 4)
    assert torch.equal(one.picture, again.picture)
    assert torch.equal(one.told, again.told)
    assert not torch.equal(one.picture, other.picture)
    picture, _, mask = example(dataset, 0)
    alone = [drawn(dataset, 1, 0.0, 0.0, 0, 3, slot) for slot in range(20)]
    as_it_is = [torch.equal(each.picture, picture) for each in alone]
    assert 4 < sum(as_it_is) < 16
    for each, same in zip(alone, as_it_is, strict=True):
        assert torch.equal(each.picture, picture if same else picture.flip(2))
        assert torch.equal(each.mask, mask if same else mask.flip(1))
    many = [drawn(dataset, 20, 0.0, 0.5, 0, 7, slot) for slot in range(40)]
    blind = [each for each in many if each.told.unique().tolist() == [UNKNOWN]]
    assert 10 < len(blind) < 30
    assert all(float(each.near.max()) == 1.0 for each in many)
    assert all(float(each.focus) == pytest.approx(1.0) for each in many)  # the red square is the nearest


def test_the_focus_to_find_is_the_true_one_in_the_units_of_what_is_told() -> None:
    disparity = torch.full((1, 12, 12), 0.5)
    disparity[:, 8:], disparity[:, 2:6, 2:6] = 4.0, 2.0
    mask = torch.zeros(12, 12)
    mask[2:6, 2:6] = 1.0
    picture = torch.zeros(3, 12, 12)
    exact = told(picture, disparity, mask, disparity)
    assert float(exact.focus) == pytest.approx(1.5 / 3.5)
    gone = told(picture, disparity, mask, worse(disparity, "eroded", 3.0))
    assert float(gone.focus) == pytest.approx(1.5 / 3.5)  # the map has lost the thing, the truth has not
    lower = told(picture, disparity, mask, disparity.clamp_max(2.5))
    assert float(lower.focus) == pytest.approx(1.5 / 2.0)
    flat = told(picture, disparity, mask, torch.ones_like(disparity))
    assert float(flat.focus) == UNKNOWN
    unknown = told(picture, disparity, mask, disparity, known=False)
    assert unknown.told.unique().tolist() == [UNKNOWN]
    assert [float(exact.known), float(unknown.known)] == [1.0, 0.0]
    assert torch.equal(unknown.near, exact.near)


def test_losses_by_hand() -> None:
    """Of 4 places one is salient by 0.5 and the others are not at all; the Huber loss is half the square."""
    near = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    mask = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    logits = torch.tensor([[[0.0, -100.0], [-100.0, -100.0]]])
    found = losses(MainThing(logits, torch.ones(1)), near, mask, torch.tensor([0.4]))
    assert found["bce"].tolist() == pytest.approx([np.log(2) / 4])
    assert found["huber"].tolist() == pytest.approx([0.6**2 / 2])


# ---- training ----


def test_it_learns(data: Path, tmp_path: Path) -> None:
    words = [
        str(tmp_path / "focus.yaml"),
        "--set",
        "steps=80",
        "--set",
        "samples.every=80",
        "--set",
        "checkpoint.every=80",
    ]
    lines = f"out: {tmp_path / 'out'}\ndata: {{dataset: {data}}}\nnetwork: {{side: 16, patch: 4, width: 16, heads: 2}}"
    more = "batch: {total: 8}\noptimizer: {lr: 0.005}\nsamples: {scenes: 4}\ndevice: cpu\ntensorboard: false\nema: 0.9"
    Path(words[0]).write_text(f"{lines}\n{more}\n", encoding="utf-8")
    assert cli.main(["focus", *words]) == 0
    first, last = read_lines(tmp_path / "out" / VALIDATION)
    assert (first["step"], last["step"]) == (0, 80)
    assert last["error"] < 0.1 < 0.4 < first["error"]
    assert last["overlap"] > 0.6
    found = read_focus_transformer(tmp_path / "out" / RESULT)
    assert found.sizes == Sizes(side=16, patch=4, width=16, heads=2)
    assert not float(found.scale.weight.abs().max())  # a generator teaches it, nothing here does
    assert (tmp_path / "out" / "samples" / "step-00000080.png").is_file()


def test_a_run_that_goes_on_is_one_that_was_not_stopped(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "whole")
    torch.manual_seed(5)  # what others draw does not matter
    train(data, tmp_path / "parts", until=2)
    train(data, tmp_path / "parts", "batch.micro=4")
    whole, parts = kept(tmp_path / "whole", 4), kept(tmp_path / "parts", 4)
    assert set(whole) == set(parts)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    result = read_focus_transformer(
        tmp_path / "whole" / RESULT
    ).state_dict()  # the average, in half precision
    assert all(torch.equal(value, whole[f"average {name}"].half().float()) for name, value in result.items())
    lines = [[line["loss"] for line in read_lines(tmp_path / name / LOSSES)] for name in ("whole", "parts")]
    assert lines[0] == lines[1]
    with pytest.raises(BokehError, match=r"losses\.huber: 200\.0 -> 1\.0"):
        train(data, tmp_path / "parts", "losses.huber=1")


def test_a_frozen_network_may_be_what_is_learnt(data: Path, tmp_path: Path) -> None:
    """Nothing is left to learn for a copy of it that sees the same."""
    train(data, tmp_path / "first", "steps=8")
    file = tmp_path / "first" / RESULT
    same = f"losses.reference={file}", f"network.init={file}", "data.no_depth=0", "losses.bce=0", "steps=1"
    train(data, tmp_path / "same", *same)
    (line,) = read_lines(tmp_path / "same" / LOSSES)
    assert line["huber"] < 1e-12
    assert "bce" not in line
    train(data, tmp_path / "blind", *same[1:], "data.no_depth=1")
    assert read_lines(tmp_path / "blind" / LOSSES)[0]["huber"] == 0
    train(data, tmp_path / "masks", *same[1:])
    assert read_lines(tmp_path / "masks" / LOSSES)[0]["huber"] > 1e-6
    told_scale = read_focus_transformer(file)
    torch.nn.init.constant_(told_scale.scale.bias, 0.5)
    write_focus_transformer(file, told_scale)
    train(data, tmp_path / "scaled", f"network.init={file}", "optimizer.weight_decay=1")
    assert float(read_focus_transformer(tmp_path / "scaled" / RESULT).scale.bias) == 0.5
    with pytest.raises(BokehError, match=r"reference"):
        train(data, tmp_path / "same", *same[1:], "steps=2")


def test_what_training_lacks(data: Path, tmp_path: Path) -> None:
    write_data(tmp_path / "empty", 2, empty=True)
    with pytest.raises(BokehError, match=r"photograph 's0' has no value above 0\.5 in its mask"):
        train(tmp_path / "empty", tmp_path / "a")
    write_data(tmp_path / "single", 1)
    with pytest.raises(BokehError, match="has a single photograph; training needs two"):
        train(tmp_path / "single", tmp_path / "b")
    file = tmp_path / "other.safetensors"
    write_focus_transformer(file, FocusTransformer(Sizes(side=8, patch=4, width=8, heads=2)))
    with pytest.raises(
        BokehError, match=r"network of Sizes\(side=8.* settings say Sizes\(side=16.* make them alike"
    ):
        train(data, tmp_path / "c", f"network.init={file}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("network.patch=5", "network: The sizes of a focus transformer are .*'patch': 5"),
        ("losses={bce: 0, huber: 0}", "both 0; nothing would be learnt"),
        ("data.no_dept=1", "Did you mean data.no_depth"),
        ("data.worse_depth=0.5", "worse_depth"),
    ],
)
def test_settings_that_cannot_be(data: Path, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings(data, tmp_path, override)


def test_the_shipped_profile_is_valid_and_of_the_shipped_network(repo: Path) -> None:
    text = (repo / "trainer" / "configs" / "world-focus.yaml").read_text(encoding="utf-8")
    found = parse_settings(text, FocusFit, "world-focus").resolved()
    assert found.network.sizes == read_focus_transformer().sizes
    assert found.optimizer.name == "adamw"


# ---- what is measured ----


def test_right_and_wrong() -> None:
    from trainer.world.focus import figures
    from trainer.world.scene import draw_scene

    scene = next(draw_scene(seed) for seed in range(99) if len(draw_scene(seed).things) == 3)
    main, near, far = scene.things[0].disparity, *sorted(thing.disparity for thing in scene.things[1:])[::-1]
    assert figures(scene, main) == {"right": 1.0, "error": 0.0}
    assert figures(scene, main * 1.3) == {"right": 1.0, "error": pytest.approx(0.3)}
    assert figures(scene, (main + near) / 2 + 1e-3)["right"] == 1.0
    for wrong in ((main + near) / 2 - 1e-3, near, far, scene.backdrop_disparity, float("nan")):
        assert figures(scene, wrong)["right"] == 0.0


def test_the_ways_of_the_world_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("skimage")
    from PIL import Image

    assert cli.main(["world", "focus", str(tmp_path), "--scenes", "3"]) == 0
    said = capsys.readouterr().out
    assert said.strip() == (tmp_path / "focus.md").read_text(encoding="utf-8").strip()
    head = "| depth | transformer | transformer without depth | transformer, nearest region | mask network |"
    assert said.count(head) == 4
    (line,) = [
        line for line in said.split("right, %, pictures at a K")[1].splitlines() if line.startswith("| exact")
    ][:1]
    assert line.startswith("| exact | 100.0 (100.0 to 100.0) |")
    for name in ("all_in_focus", "at_a_K"):
        with Image.open(tmp_path / f"{name}.png") as sheet:
            assert sheet.width > sheet.height
