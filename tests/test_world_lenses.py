"""Lens models on synthesised scenes as depth gets worse: what is measured, and that it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bokeh_ops.errors import BokehError
from bokeh_ops.render import Lens, Rendered
from tests.models import one_thread  # noqa: F401
from trainer import cli
from trainer.data import open_dataset
from trainer.measure.metrics import psnr
from trainer.recipes.one_step.scenes import Scenes, worse
from trainer.world import lenses

FAULTS = {name: lenses.FAULTS[name] for name in ("exact", "dilated 3 %")}

DRAWN = len(FAULTS)
"""Pictures of each model on the sheet of a scene of which something is measured."""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lenses") / "scenes"
    words = ["--scenes", "3", "--size", "64", "48", "--levels", "3", "--rays", "16"]
    assert cli.main(["synthesize", str(folder), *words]) == 0
    return folder


class Watched:
    """A lens model that gives the picture back and remembers the depth."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(
        self, image: Tensor, disparity: Tensor, lens: Lens, progress: Any = None, tile: int | None = None
    ) -> Rendered:
        self.seen.append(disparity[0])
        return Rendered(image, lens.defocus(disparity))


def test_what_is_measured(scenes: Path, tmp_path: Path) -> None:
    watched = Watched()
    models: dict[str, Any] = {"unchanged": "unchanged", "layered": "layered", "watched": watched}
    table = lenses.measure(tmp_path, scenes, models, 2, None, FAULTS)
    assert list(table) == list(models)
    assert all(list(of_model) == list(FAULTS) for of_model in table.values())
    known = Scenes(open_dataset(scenes))
    examples = [known.example(scene, level) for scene in range(2) for level in range(2)]
    expected = sum(psnr(each.sharp, each.truth) for each in examples) / 4
    assert table["unchanged"]["exact"]["psnr"].mean == pytest.approx(expected, abs=1e-4)
    assert table["unchanged"]["dilated 3 %"] == table["unchanged"]["exact"]
    assert table["layered"]["exact"]["psnr"].mean > expected + 1
    assert table["layered"]["exact"]["psnr"].mean > table["layered"]["dilated 3 %"]["psnr"].mean
    of_scene = [*examples[:2], *examples[:2]]  # exact, then worse
    for each, seen, reach in zip(of_scene, watched.seen[:4], (0, 0, 2, 2), strict=True):
        assert torch.equal(seen, worse(each.disparity, "dilated", reach))
    text = (tmp_path / "lenses.md").read_text(encoding="utf-8")
    assert text.count("| depth | unchanged | layered | watched |") == 3
    assert len(list((tmp_path / "sheets").glob("*.png"))) == 2
    with Image.open(tmp_path / "lenses.png") as curves:
        assert curves.width > 3 * curves.height > 900


def test_it_goes_on(scenes: Path, tmp_path: Path) -> None:
    first = lenses.measure(tmp_path, scenes, {"a": Watched()}, 2, None, FAULTS)
    again = Watched()
    assert lenses.measure(tmp_path, scenes, {"a": again}, 2, None, FAULTS) == first
    assert not again.seen
    lenses.measure(tmp_path, scenes, {"a": again, "b": Watched()}, 3, None, FAULTS)
    assert len(again.seen) == 4 + 3 * DRAWN
    alone = lenses.measure(tmp_path / "b", scenes, {"b": Watched()}, 2, None, FAULTS)
    both = lenses.measure(tmp_path / "b", scenes, {"a": Watched(), "b": Watched()}, 1, None, FAULTS)
    assert both["a"] == both["b"]  # over the one scene that both were given
    assert both["b"] != alone["b"]
    assert len(json.loads((tmp_path / "values.json").read_text())["values"]["b"]["exact"]) == 6


def test_another_lens_of_the_same_name_is_measured_anew(scenes: Path, tmp_path: Path) -> None:
    old, new, other = Watched(), Watched(), Watched()
    lenses.measure(tmp_path, scenes, {"a": old, "b": other}, 1, None, FAULTS, {"a": "one file"})
    other.seen.clear()
    lenses.measure(tmp_path, scenes, {"a": new}, 1, None, FAULTS, {"a": "another file"})
    assert len(new.seen) == 4 + DRAWN
    lenses.measure(tmp_path, scenes, {"a": new, "b": other}, 1, None, FAULTS, {"a": "another file"})
    assert (len(new.seen), other.seen) == (4 + DRAWN, [])


def test_depth_by_a_network(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that gives half the exact disparity and a tenth, at another size, is as good as exact."""
    known = Scenes(open_dataset(scenes))
    shown: list[Any] = []

    class Network:
        def __init__(self, file: str) -> None:
            assert file == "a.onnx"

        def of(self, picture: Image.Image) -> np.ndarray:
            shown.append(np.asarray(picture))
            large = F.interpolate(known.example(0, 0).disparity[None], scale_factor=2.0)
            return (0.5 * large[0, 0] + 0.1).numpy()

    monkeypatch.setattr(lenses, "OnnxMap", Network)
    depth, example = lenses.depth_by(Path("a.onnx")), known.example(0, 0)
    assert torch.allclose(depth(example), example.disparity, atol=1e-3)
    assert np.array_equal(shown[0], (example.sharp * 255).round().movedim(0, -1).numpy())
    other = lenses.depth_by(Path("a.onnx"))(
        known.example(1, 0)
    )  # the other scene's map, as good as it can be
    assert float((other - known.example(1, 0).disparity).abs().mean()) > 0.05
    watched = Watched()
    for file in ("one file", "one file", "another file"):
        lenses.measure(tmp_path, scenes, {"a": watched}, 1, None, FAULTS | {"by a": depth}, {"by a": file})
    first, again = 2 * 3 + 3, 2 + 3  # the last time the network's depth alone, and a sheet with each depth
    assert len(watched.seen) == first + again


def test_other_scenes_are_refused(scenes: Path, tmp_path: Path) -> None:
    lenses.measure(tmp_path, scenes, {"a": Watched()}, 1, None, FAULTS)
    words = ["--scenes", "2", "--size", "32", "--levels", "2", "--rays", "4", "--seed", "9"]
    assert cli.main(["synthesize", str(tmp_path / "others"), *words]) == 0
    with pytest.raises(BokehError, match=r"values.json is of other scenes"):
        lenses.measure(tmp_path, tmp_path / "others", {"a": Watched()}, 1, None, FAULTS)


def test_what_the_command_refuses(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BokehError, match=r"Nothing was measured"):
        lenses.markdown({})
    assert cli.main(["world", "lenses", str(tmp_path), str(scenes), "--faults", "melted"]) != 0
    assert "There is no comparison 'melted'" in capsys.readouterr().err
    assert cli.main(["world", "lenses", str(tmp_path), str(scenes), "--scenes", "0"]) != 0
    assert "Nothing was measured" in capsys.readouterr().err
    assert cli.main(["world", "lenses", str(tmp_path), str(scenes), "--lens", "a"]) != 0
    assert "expected NAME=FILE" in capsys.readouterr().err
