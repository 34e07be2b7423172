"""The main thing of pictures in a real host: the network that comes with it, the user's own, and Bokeh Focus."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from bokeh_ops.depth.focus_transformer import FocusTransformer, Sizes, write_focus_transformer
from tests.onnx_files import mean_network
from tests.segmenters import segformer

pytestmark = pytest.mark.host
WORLD = "small world (comes with it)"


@pytest.fixture
def models(pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's ``models/bokeh_focus``, empty."""
    import folder_paths  # type: ignore[import-not-found]

    kinds = {key: value for key, value in folder_paths.folder_names_and_paths.items() if key != "bokeh_focus"}
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", kinds)
    (tmp_path / "bokeh_focus").mkdir()
    return tmp_path / "bokeh_focus"


def node(node_classes: dict[str, Any]) -> Any:
    return node_classes["BokehMainThing"]


def listed(node_classes: dict[str, Any]) -> list[str]:
    return {each.id: each for each in node(node_classes).define_schema().inputs}["network"].options


def write(path: Path, scale: float = 0.0) -> None:
    network = FocusTransformer(Sizes(side=8, patch=4, width=8, heads=2, layers=1))
    torch.nn.init.constant_(network.scale.bias, scale)
    write_focus_transformer(path, network)


def test_the_demo_photograph_through_the_host(models: Path, node_classes: dict[str, Any]) -> None:
    import comfy.model_management as management  # type: ignore[import-not-found]

    image, depth, subject = node_classes["LoadBokehDemoPhotograph"].execute("post").result
    made = node(node_classes).execute(image, WORLD, depth)
    saliency, scale = made.result
    assert scale == 1.0
    assert saliency.shape == subject.shape
    one, other = saliency > 0.5, subject > 0.5
    assert int((one & other).sum()) > 0.7 * int((one | other).sum())
    assert len(made.ui.as_dict()["images"]) == 1
    assert any(
        type(each.model.model).__name__ == "FocusTransformer"
        for each in management.current_loaded_models
        if each.model
    )
    (focus,) = (
        node_classes["BokehFocus"].execute("weighted by the mask", 0.5, 0.5, 0.0, 0.0, mask=saliency).result
    )
    found = float(focus.find(depth.disparity)[0].disparity)
    true = float(depth.disparity[0][subject > 0.5].median())
    assert found == pytest.approx(true, rel=0.05)
    without, _ = node(node_classes).execute(image, WORLD).result
    assert not torch.equal(without, saliency)


def test_networks_of_the_user(models: Path, node_classes: dict[str, Any]) -> None:
    assert listed(node_classes) == [WORLD]
    write(models / "own.safetensors", scale=0.5)
    assert listed(node_classes) == [WORLD, "own.safetensors"]
    image = torch.rand(2, 9, 14, 3)
    stamp = node(node_classes).fingerprint_inputs(network="own.safetensors", image=None)
    saliency, scale = node(node_classes).execute(image, "own.safetensors").result
    assert saliency.shape == (2, 9, 14)
    assert scale == pytest.approx(1.6487, rel=1e-3)
    write(models / "own.safetensors", scale=-0.25)
    assert node(node_classes).fingerprint_inputs(network="own.safetensors", image=None) != stamp
    assert node(node_classes).execute(image, "own.safetensors").result[1] == pytest.approx(0.7788, rel=1e-3)
    assert node(node_classes).validate_inputs(network="own.safetensors") is True
    assert node(node_classes).validate_inputs() is True


@pytest.mark.parametrize("name", ["gone.safetensors", "../outside.safetensors", ""])
def test_a_network_that_is_not_there(models: Path, node_classes: dict[str, Any], name: str) -> None:
    write(models.parent / "outside.safetensors")
    said = node(node_classes).validate_inputs(network=name)
    assert said.startswith(f"No focus network {name!r}. Searched {models} and found none. Put a file that ")
    with pytest.raises(ValueError, match="No focus network"):
        node(node_classes).execute(torch.rand(1, 8, 8, 3), name)


def test_files_and_pictures_that_are_refused(models: Path, node_classes: dict[str, Any]) -> None:
    (models / "broken.safetensors").write_bytes(b"no network")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        node(node_classes).execute(torch.rand(1, 8, 8, 3), "broken.safetensors")
    with pytest.raises(ValueError, match=r"Expected pictures \[B, H, W, C\]"):
        node(node_classes).execute(torch.rand(8, 8, 3), WORLD)
    with pytest.raises(ValueError, match="Expected pictures"):
        node(node_classes).execute(torch.rand(0, 8, 8, 3), WORLD)


def test_the_host_may_stop_it(models: Path, node_classes: dict[str, Any]) -> None:
    import comfy.model_management as management  # type: ignore[import-not-found]

    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        node(node_classes).execute(torch.rand(1, 8, 8, 3), WORLD)


def test_networks_of_others(models: Path, node_classes: dict[str, Any]) -> None:
    import comfy.model_management as management  # type: ignore[import-not-found]

    pytest.importorskip("transformers")
    segformer(models / "people" / "segformer", ["background", "thing"])
    write(models / "own.safetensors")
    write(models / "people" / "own.safetensors")
    assert listed(node_classes) == [
        WORLD,
        "own.safetensors",
        "people/own.safetensors",
        "people/segformer",
    ]  # not the weights in the folder
    name = "people/segformer"
    assert node(node_classes).validate_inputs(network=name) is True
    stamp = node(node_classes).fingerprint_inputs(network=name, image=None)
    assert node(node_classes).fingerprint_inputs(network=name, image=None) == stamp
    image = torch.rand(2, 20, 31, 4)
    saliency, scale = node(node_classes).execute(image, name).result
    assert (saliency.shape, scale) == ((2, 20, 31), 1.0)
    assert 0 <= float(saliency.min()) < float(saliency.max()) <= 1
    assert any(
        type(each.model.model).__name__ == "Segmentation"
        for each in management.current_loaded_models
        if each.model
    )
    segformer(models / name, ["thing", "background"])
    assert node(node_classes).fingerprint_inputs(network=name, image=None) != stamp
    swapped = node(node_classes).execute(image, name).result[0]
    torch.testing.assert_close(swapped, 1 - saliency, rtol=1e-3, atol=1e-4)
    for wrong in ("people", "people/..", "."):
        said = node(node_classes).validate_inputs(network=wrong)
        assert "found own.safetensors, people/own.safetensors, people/segformer. Put a file" in said


def test_an_onnx_file(models: Path, node_classes: dict[str, Any]) -> None:
    pytest.importorskip("onnxruntime")
    file = mean_network(models / "a.onnx", (32, 32))
    assert listed(node_classes) == [WORLD, "a.onnx"]
    image = torch.rand(2, 32, 32, 3)
    stamp = node(node_classes).fingerprint_inputs(network="a.onnx", image=None)
    logits = node(node_classes).execute(image, "a.onnx").result[0]
    file.with_suffix(".json").write_text('{"mean": [0, 0, 0], "std": [1, 1, 1]}')
    assert node(node_classes).fingerprint_inputs(network="a.onnx", image=None) != stamp
    saliency, scale = node(node_classes).execute(image, "a.onnx").result
    assert scale == 1.0
    torch.testing.assert_close(saliency, image.mean(3), rtol=0, atol=1e-3)
    assert not torch.allclose(saliency, logits, atol=0.05)


@pytest.mark.parametrize("name", ["a.onnx", "folder"])
def test_the_host_may_stop_networks_of_others(
    models: Path, node_classes: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management  # type: ignore[import-not-found]
    import comfy.utils  # type: ignore[import-not-found]

    pytest.importorskip("onnxruntime")
    pytest.importorskip("transformers")
    mean_network(models / "a.onnx", (8, 8))
    segformer(models / "folder", ["background", "thing"])
    told: list[int] = []

    def update(self: Any, done: int, *_: Any) -> None:
        told.append(done)
        management.interrupt_current_processing(done == 1)

    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", update)
    with pytest.raises(management.InterruptProcessingException):
        node(node_classes).execute(torch.rand(4, 8, 8, 3), name)
    assert told == [0, 1]
