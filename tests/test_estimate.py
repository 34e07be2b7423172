"""Depth by small random networks of every class: what comes out, in which unit, and what is said of bad folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from bokeh_ops.depth.conventions import DepthUnit
from bokeh_ops.depth.estimate import Estimate, estimate, load_estimator, to_map
from bokeh_ops.errors import BokehError
from tests import depth_models

pytest.importorskip("transformers")
Made = dict[str, tuple[Any, Any, Path]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Network, processor and folder of every kind."""
    root = tmp_path_factory.mktemp("depth")
    return {kind: (*depth_models.make(kind, root / kind), root / kind) for kind in depth_models.KINDS}


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """``[1, 3, H, W]``, of 8 bits."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (1, 3, height, width)) / 255).float()


def raw(made: Made, kind: str, image: torch.Tensor) -> Any:
    network, processor, _ = made[kind]
    shown = Image.fromarray((image[0].movedim(0, -1) * 255).round().byte().numpy())
    with torch.no_grad():
        return network(**processor(images=shown, return_tensors="pt"))


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    """But for rounding, which differs with where weights lie in memory."""
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["relative", "dpt"])
def test_disparity_has_no_unit(made: Made, kind: str) -> None:
    image = picture(64, 64)  # the network's shape, so that nothing is resized
    found = estimate(load_estimator(made[kind][2]), image)
    assert found.unit is DepthUnit.RELATIVE
    assert found.focal_pixels is None
    expected = raw(made, kind, image).predicted_depth
    close(found.disparity, expected[None])
    assert float(expected.std()) > 0.1


@pytest.mark.parametrize(("kind", "most"), [("metric", depth_models.MAX_DEPTH), ("glpn", 10.0)])
def test_metres_become_dioptres(made: Made, kind: str, most: float) -> None:
    image = picture(64, 64)
    found = estimate(load_estimator(made[kind][2]), image)
    metres = raw(made, kind, image).predicted_depth
    assert found.unit is DepthUnit.DIOPTRES
    assert float(metres.max()) <= most
    close(found.disparity, 1 / metres[None])


def test_depth_pro_is_metres_with_a_focal_length(made: Made) -> None:
    image = picture(96, 128)
    found = estimate(load_estimator(made["depth_pro"][2]), image)
    assert found.unit is DepthUnit.DIOPTRES
    assert found.disparity.shape == (1, 1, 96, 128)
    focal = 64 / np.tan(np.radians(depth_models.FIELD_OF_VIEW / 2))  # 110.9 pixels on 128
    assert found.focal_pixels == pytest.approx(focal, rel=1e-6)
    # Canonical inverse depth: dioptres once the picture's width is known in focal lengths.
    canonical = raw(made, "depth_pro", image).predicted_depth[None]
    expected = F.interpolate(canonical * 128 / focal, (96, 128), mode="bilinear")
    close(found.disparity, expected.clamp(1e-4, 1e4))


def test_depth_pro_against_the_librarys_own(made: Made) -> None:
    image = picture(96, 128)
    found = estimate(load_estimator(made["depth_pro"][2]), image)
    (own,) = made["depth_pro"][1].post_process_depth_estimation(raw(made, "depth_pro", image), [(96, 128)])
    close(1 / found.disparity[0, 0], own["predicted_depth"])
    assert found.focal_pixels == pytest.approx(float(own["focal_length"]))


def test_a_field_of_view_that_cannot_be(made: Made, tmp_path: Path) -> None:
    network, processor, _ = made["depth_pro"]
    bias = network.fov_model.head.layers[-1].bias
    with torch.no_grad():
        bias.fill_(-5.0)
    network.save_pretrained(tmp_path)
    with torch.no_grad():
        bias.fill_(depth_models.FIELD_OF_VIEW)
    processor.save_pretrained(tmp_path)
    said: list[str] = []
    found = estimate(load_estimator(tmp_path), picture(32, 32), said.append)
    assert found.unit is DepthUnit.RELATIVE
    assert found.focal_pixels is None
    assert any("no usable field of view" in text for text in said)


def test_padding_is_taken_off(made: Made) -> None:
    """ZoeDepth's processor pads the picture; the map shows the picture alone, as the library cuts it."""
    image = picture(64, 48)
    found = estimate(load_estimator(made["zoedepth"][2]), image)
    output = raw(made, "zoedepth", image)
    (own,) = made["zoedepth"][1].post_process_depth_estimation(output, source_sizes=[(64, 48)])
    assert found.unit is DepthUnit.DIOPTRES
    ours = F.interpolate(1 / found.disparity, (64, 48), mode="bilinear")[0, 0]
    assert float((ours - own["predicted_depth"]).abs().mean()) < 0.1 * float(own["predicted_depth"].std())


@pytest.mark.parametrize("kind", depth_models.KINDS)
@pytest.mark.parametrize(("height", "width"), [(40, 120), (120, 40)])
def test_a_map_has_the_pictures_shape(made: Made, kind: str, height: int, width: int) -> None:
    """Networks that see squares too: a map of another shape would be taken for one of another picture."""
    found = estimate(load_estimator(made[kind][2]), picture(height, width))
    rows, columns = found.disparity.shape[2:]
    assert abs(columns / rows / (width / height) - 1) < 0.06
    assert rows <= height
    assert bool(torch.isfinite(found.disparity).all())


def test_frames_one_after_another(made: Made) -> None:
    frames = torch.cat([picture(64, 64, seed) for seed in range(3)])
    model = load_estimator(made["metric"][2])
    steps: list[tuple[int, int]] = []
    found = estimate(model, frames, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(0, 3), (1, 3), (2, 3), (3, 3)]
    for row in range(3):
        assert torch.equal(found.disparity[row : row + 1], estimate(model, frames[row : row + 1]).disparity)

    def stop(done: int, _: int) -> None:
        if done == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        estimate(model, frames, progress=stop)


def test_grey_and_transparent_pictures(made: Made) -> None:
    model, image = load_estimator(made["metric"][2]), picture(64, 64)
    alpha = torch.cat([image, torch.zeros(1, 1, 64, 64)], 1)
    assert torch.equal(estimate(model, alpha).disparity, estimate(model, image).disparity)
    grey = image[:, :1]
    assert torch.equal(estimate(model, grey).disparity, estimate(model, grey.expand(-1, 3, -1, -1)).disparity)
    with pytest.raises(BokehError, match="channels; got"):
        estimate(model, image[:, :2])


def test_half_precision_is_for_those_that_bear_it(made: Made) -> None:
    assert load_estimator(made["relative"][2], torch.float16).network.dtype is torch.float16
    assert load_estimator(made["zoedepth"][2], torch.float16).network.dtype is torch.float32


def test_zero_and_infinite_metres() -> None:
    from bokeh_ops.depth.conventions import DepthKind

    said: list[str] = []
    values = torch.tensor([[2.0, torch.inf, 4.0], [2.0, 0.0, torch.nan]])
    found = to_map("x", DepthKind.METRIC, [Estimate(values)], said.append)
    assert found.disparity[0, 0, 0].tolist() == [0.5, 0.0, 0.25]
    assert bool(torch.isfinite(found.disparity).all())
    assert "filled in" in said[0]


# ---- Folders that are no use ----


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BokehError, match=r"There is no folder .*expected one with config.json"):
        load_estimator(tmp_path / "none")


@pytest.fixture
def folder(made: Made, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made["relative"][2], tmp_path / "model"))


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_half_a_model(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BokehError, match=f"is not whole.*: {name} is missing; found .*json"):
        load_estimator(folder)


def change(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_model_of_another_task(folder: Path) -> None:
    change(folder, architectures=["DPTForSemanticSegmentation"])
    with pytest.raises(BokehError, match=r"another task: it is a DPTForSemanticSegmentation. Expected"):
        load_estimator(folder)
    change(folder, architectures=["BertModel"], model_type="bert")
    with pytest.raises(BokehError, match=r"another task: its kind is 'bert'"):
        load_estimator(folder)
    change(folder, model_type=None)
    with pytest.raises(BokehError, match=r"names no model_type.*-hf"):
        load_estimator(folder)
    change(folder, model_type="of_tomorrow")
    with pytest.raises(BokehError, match="cannot be loaded for depth-estimation"):
        load_estimator(folder)


def test_weights_of_another_model(made: Made, folder: Path) -> None:
    shutil.copy(made["dpt"][2] / "model.safetensors", folder)
    with pytest.raises(BokehError, match=r"are not whole|cannot be loaded"):
        load_estimator(folder)


def test_some_weights_missing(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    # Nothing is ever added to the deepest layer of the fusion, and released models leave its weights out.
    unused = [key for key in weights if "fusion_stage.layers.0.residual_layer1" in key]
    assert unused
    kept = {key: value for key, value in weights.items() if key not in unused}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    before = load_estimator(folder)
    assert before.name == "model"
    del kept["head.conv1.weight"]
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        BokehError, match=r"not whole: 1 of \d+ are missing, the first is 'head.conv1.weight'"
    ):
        load_estimator(folder)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\0" * 4096])
def test_a_damaged_file(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(BokehError, match=r"cannot be loaded.*download it again"):
        load_estimator(folder)
    (folder / "config.json").write_bytes(content)
    with pytest.raises(BokehError, match="cannot be loaded"):
        load_estimator(folder)


def test_pickles_are_not_run(made: Made, folder: Path) -> None:
    import pickle

    (folder / "model.safetensors").unlink()
    mark = folder / "was_run"

    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (mark,)

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"head.conv1.weight": Trap()}))
    with pytest.raises(BokehError, match="cannot be loaded"):
        load_estimator(folder)
    assert not mark.exists()
    torch.save(made["relative"][0].state_dict(), folder / "pytorch_model.bin")
    image = picture(64, 64)
    close(estimate(load_estimator(folder), image).disparity[0], raw(made, "relative", image).predicted_depth)


def test_code_of_the_models_own_is_not_run(folder: Path) -> None:
    mark = folder / "was_run"
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w')\nclass Own: pass\n")
    change(
        folder,
        model_type="own_kind",
        auto_map={"AutoConfig": "own.Own", "AutoModelForDepthEstimation": "own.Own"},
    )
    with pytest.raises(BokehError, match="cannot be loaded"):
        load_estimator(folder)
    assert not mark.exists()


def test_a_backbone_elsewhere_is_not_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    change(folder, backbone="someone/dinov2", backbone_config=None)
    with pytest.raises(BokehError, match=r"names another repository .someone/dinov2. as its backbone"):
        load_estimator(folder)


def test_only_nan(made: Made, folder: Path) -> None:
    network, _, _ = made["relative"]
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    weights["head.conv3.bias"].fill_(torch.nan)
    from safetensors.torch import save_file

    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BokehError, match="nothing but NaN or infinity"):
        estimate(load_estimator(folder), picture(32, 32))
