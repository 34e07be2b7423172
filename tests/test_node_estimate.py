"""Depth of one picture in a real host: models found, loaded through the host, and what is said without them."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests import depth_models
from tests.test_estimate import picture
from tests.test_geometry import METRES, da3, moge

pytestmark = pytest.mark.host
pytest.importorskip("transformers")
WORLD = "small world (comes with it)"
NONE = "none found: see models/depth"


@pytest.fixture
def models(pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's ``models/depth``, empty."""
    import folder_paths  # type: ignore[import-not-found]

    kinds = {key: value for key, value in folder_paths.folder_names_and_paths.items() if key != "depth"}
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", kinds)
    (tmp_path / "depth").mkdir()
    return tmp_path / "depth"


def node(node_classes: dict[str, Any]) -> Any:
    return node_classes["BokehEstimateDepth"]


def listed(node_classes: dict[str, Any]) -> list[str]:
    inputs = {each.id: each for each in node(node_classes).define_schema().inputs}
    return inputs["model"].options


def test_depth_pro_through_the_host(models: Path, node_classes: dict[str, Any]) -> None:
    import comfy.model_management as management  # type: ignore[import-not-found]

    depth_models.make("depth_pro", models / "DepthPro-hf")
    assert listed(node_classes) == ["DepthPro-hf", WORLD]
    image = picture(96, 256).movedim(1, -1)
    depth, grey, focal, text = node(node_classes).execute(image, "DepthPro-hf").result
    assert depth.unit.value == "dioptres"
    assert focal == pytest.approx(128 / math.tan(math.radians(30)), rel=1e-3)  # pixels of the picture
    assert grey.shape == (1, *depth.disparity.shape[2:], 3)
    assert float(grey.min()) == 0.0
    assert float(grey.max()) == 1.0
    nearest = int(depth.disparity.flatten().argmax())
    assert float(grey[0, ..., 0].flatten()[nearest]) == 1.0
    assert text.startswith("DepthPro-hf: depth in metres, ")
    assert "60.0 degrees wide, as 31 mm on full frame" in text
    assert any(
        hasattr(each.model.model, "network") for each in management.current_loaded_models if each.model
    )


def test_the_one_that_comes_with_it(models: Path, node_classes: dict[str, Any]) -> None:
    """On the demo photograph, whose depth is exact and which it has not seen."""
    depth_models.make("metric", models / "z")
    assert listed(node_classes) == ["z", WORLD]
    assert node(node_classes).validate_inputs(model=WORLD) is True
    image, exact, subject = node_classes["LoadBokehDemoPhotograph"].execute("post").result
    depth, _, _, text = node(node_classes).execute(image, WORLD).result
    assert text.startswith(f"{WORLD}: depth in metres, 64 x 64, ")
    off, inside = (depth.disparity - exact.disparity).abs(), subject[None] > 0.5
    assert float((off[inside] / exact.disparity[inside]).mean()) < 0.15
    assert float(off.mean()) < 0.25  # of 1.24 dioptres; a network that has learnt nothing is off by 0.65


def test_it_is_kept_until_its_files_change(
    models: Path, node_classes: dict[str, Any], pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = pack.bokeh_ops.host.folders.depth_models
    loads: list[Path] = []
    real = found.load_estimator
    monkeypatch.setattr(
        found, "load_estimator", lambda folder, dtype: (loads.append(folder), real(folder, dtype))[1]
    )
    depth_models.make("relative", models / "a")
    image = picture(64, 64).movedim(1, -1)
    first = node(node_classes).execute(image, "a").result
    stamp = node(node_classes).fingerprint_inputs(model="a", image=None)
    node(node_classes).execute(image, "a")
    assert len(loads) == 1
    assert first[0].unit.value == "relative"
    assert first[2] == 0.0
    assert "relative depth, no unit" in first[3]
    depth_models.make("metric", models / "a")
    assert node(node_classes).fingerprint_inputs(model="a", image=None) != stamp
    assert node(node_classes).execute(image, "a").result[0].unit.value == "dioptres"
    assert len(loads) == 2


def test_no_model(models: Path, node_classes: dict[str, Any]) -> None:
    assert listed(node_classes) == [NONE, WORLD]  # the first is chosen
    said = node(node_classes).validate_inputs(model=NONE)
    for part in (
        f"No depth model in {models}: found no folder with a config.json.",
        "Download config.json, preprocessor_config.json, model.safetensors of depth-anything/Depth-Anything-V2-Small"
        f"-hf into {models / 'Depth-Anything-V2-Small-hf'} and press R.",
        "apple/DepthPro-hf",
    ):
        assert part in said
    (models / "original").mkdir()
    (models / "original" / "depth_anything_v2_vits.pth").write_bytes(b"x")
    for name in ("config.json", "model.safetensors"):
        (models / name).write_bytes(b"x")
    assert listed(node_classes) == [NONE, WORLD]
    said = node(node_classes).validate_inputs(model=NONE)
    assert f"in no folder of their own with a config.json in {models}, {models / 'original'}." in said


@pytest.mark.parametrize("name", ["gone", "../outside", "..", ".", ""])
def test_a_model_that_is_not_there(models: Path, node_classes: dict[str, Any], name: str) -> None:
    for folder in ("a/b", "../outside"):
        (models / folder).mkdir(parents=True)
        (models / folder / "config.json").write_text("{}")
    assert listed(node_classes) == ["a/b", WORLD]
    said = node(node_classes).validate_inputs(model=name)
    assert said.startswith(f"No depth model {name!r} in ")
    assert "found a/b." in said
    assert node(node_classes).validate_inputs(model="a/b") is True
    assert node(node_classes).validate_inputs() is True
    with pytest.raises(
        ValueError, match=r"is not whole.*: preprocessor_config.json, model.safetensors is missing"
    ):
        node(node_classes).execute(picture(8, 8).movedim(1, -1), "a/b")


def test_the_host_may_stop_it(models: Path, node_classes: dict[str, Any]) -> None:
    import comfy.model_management as management  # type: ignore[import-not-found]

    depth_models.make("relative", models / "a")
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        node(node_classes).execute(picture(64, 64).movedim(1, -1), "a")


@pytest.mark.parametrize(
    ("kind", "height", "width"), [("relative", 1, 1), ("metric", 3, 400), ("glpn", 3, 400)]
)
def test_pictures_that_a_model_cannot_look_at(
    models: Path, node_classes: dict[str, Any], kind: str, height: int, width: int
) -> None:
    depth_models.make(kind, models / "a")
    with pytest.raises(
        ValueError, match=f"a cannot look at a picture of {width} x {height} pixels: .* a larger one"
    ):
        node(node_classes).execute(torch.rand(1, height, width, 3), "a")


def test_memory_that_runs_out(
    models: Path, node_classes: dict[str, Any], pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device it goes on with the CPU; there it is an error like any other."""
    found, told = pack.bokeh_ops.host.folders.depth_models, []
    depth_models.make("metric", models / "a")
    image = picture(64, 64).movedim(1, -1)
    right = found.estimate_depth("a", image)
    real, devices = found.estimate, []

    def short(estimator: Any, *args: Any) -> Any:
        devices.append(next(estimator.network.parameters()).device.type)
        if len(devices) == 1:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return real(estimator, *args)

    monkeypatch.setattr(found, "estimate", short)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        found.estimate_depth("a", image, told.append)
    devices.clear()
    monkeypatch.setattr(found.management, "get_torch_device", lambda: torch.device("meta"))
    monkeypatch.setattr(found.management, "load_models_gpu", lambda *_, **__: None)
    monkeypatch.setattr(found.management, "should_use_fp16", lambda *_, **__: False)
    again = found.estimate_depth("a", image, told.append)
    assert len(devices) == 2
    assert torch.equal(again.disparity, right.disparity)
    assert told == [
        "a does not fit in the memory of meta; its depth is estimated on the CPU, which takes longer."
    ]


def geometry(
    node_classes: dict[str, Any], found: Any, unit: str = "as the geometry tells", **more: Any
) -> Any:
    options = {"focal_pixels": 0.0, "resolution": 504, "confidence": 0.0} | more
    return node_classes["BokehDepthFromGeometry"].execute(found, unit, **options).result


def test_geometry_of_either_kind(node_classes: dict[str, Any]) -> None:
    depth, grey, focal, text = geometry(node_classes, moge())
    assert depth.disparity[0, 0, 0].tolist() == [1.0, 0.5, 0.25, 0.0]
    assert grey.shape == (1, 2, 4, 3)
    assert grey[0, 0, :, 0].tolist() == sorted(grey[0, 0, :, 0].tolist(), reverse=True)
    assert focal == pytest.approx(3.4641, abs=1e-3)
    assert text.startswith("MoGe: depth in metres, 4 x 2, from 1 m to infinity")
    raw = METRES * 300 / 450
    depth, _, focal, text = geometry(
        node_classes, da3(depth=raw), "Depth Anything 3 Metric", focal_pixels=450.0, resolution=4
    )
    torch.testing.assert_close(depth.disparity, 1 / METRES[None])
    assert focal == 450.0
    assert text.startswith("Depth Anything 3: depth in metres, 4 x 2, from 1 m to ")
    with pytest.raises(ValueError, match="no depth: it holds image"):
        geometry(node_classes, {"image": METRES})


def test_what_the_hosts_own_moge_node_gives(
    node_classes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that sees a slope before a sky, through the host's inference."""
    host = pytest.importorskip("comfy_extras.nodes_moge")
    import comfy.model_management as management  # type: ignore[import-not-found]

    monkeypatch.setattr(management, "load_model_gpu", lambda _: None)
    height, width, focal, scale = 48, 64, 80.0, 2.5
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    depth = 2 + rows / height
    points = torch.stack(
        [(columns - width / 2) / focal * depth, (rows - height / 2) / focal * depth, depth], -1
    )
    mask = (rows > 8).float()

    class Network:
        def forward(self, image: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
            one = {"points": points, "mask": mask, "normal": torch.zeros_like(points)}
            made = {key: value[None].repeat(len(image), *[1] * value.ndim) for key, value in one.items()}
            return made | {"metric_scale": torch.full((len(image),), scale)}

    model = object.__new__(host.MoGeModel)
    vars(model).update(
        model=Network(),
        patcher=None,
        load_device="cpu",
        version="v2",
        mask_threshold=0.5,
        num_tokens_range=(1, 2),
    )
    (made,) = host.MoGeInference.execute(model, torch.rand(2, height, width, 3), 9, 0.0, 4, True, True).result
    found, _, given, _ = geometry(node_classes, made)
    assert found.unit.value == "dioptres"
    assert given == pytest.approx(focal, rel=0.02)
    assert float(found.disparity[:, 0, :8].max()) == 0.0
    wanted = (1 / (scale * depth))[9:].expand(2, -1, -1)
    torch.testing.assert_close(found.disparity[:, 0, 9:], wanted, rtol=0.02, atol=0)


def test_what_the_hosts_own_depth_anything_3_node_gives(
    node_classes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A metric network before a wall at 3 m with sky above, seen through a lens of 40 pixels on 64."""
    host = pytest.importorskip("comfy_extras.nodes_depth_anything_3")
    from types import SimpleNamespace

    monkeypatch.setattr(host.mm, "load_model_gpu", lambda _: None)
    seen: list[int] = []

    def network(image: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        seen.append(image.shape[-1])
        focal = 40.0 / 64 * image.shape[-1]
        depth = torch.full((len(image), *image.shape[-2:]), 3.0 * 300 / focal)
        sky = torch.zeros_like(depth)
        sky[:, : depth.shape[1] // 2] = 0.9
        return {"depth": depth, "sky": sky}

    network.dtype = torch.float32  # type: ignore[attr-defined]
    model = SimpleNamespace(model=SimpleNamespace(diffusion_model=network))
    (made,) = host.DA3Inference.execute(
        model, torch.rand(1, 64, 64, 3), 140, "upper_bound_resize", {"mode": "mono"}
    ).result
    assert seen == [140]
    found, *_ = geometry(node_classes, made, "Depth Anything 3 Metric", focal_pixels=40.0, resolution=140)
    assert float(found.disparity[0, 0, :30].max()) == 0.0
    torch.testing.assert_close(found.disparity[0, 0, 34:], torch.full((30, 64), 1 / 3))
