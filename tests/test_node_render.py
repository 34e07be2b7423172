"""The rendering nodes in a real host."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.host

KIND, RANGE = "disparity (near is bright)", "normalise to 0..1"


def call(pack: ModuleType, **changes: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run BokehMeRender on a small picture, a sharp square on the left half before a ramp, with its defaults."""
    torch.manual_seed(3)
    inputs: dict[str, Any] = {
        "image": torch.rand(1, 24, 32, 3),
        "depth": torch.linspace(0.2, 0.8, 32).expand(1, 24, 32)[..., None].repeat(1, 1, 1, 3),
        "depth_kind": KIND,
        "depth_range": RANGE,
        "depth_scale": 1.0,
        "k": 5.0,
        "k_reference": "in image pixels",
        "focus_mode": "point",
        "focus_x": 0.0,
        "focus_y": 0.5,
        "focus_value": 1.0,
        "gamma": 2.2,
        "blades": 0,
        "rotation": 0.0,
        "highlight_boost": 0.0,
    }
    return pack.nodes.render.BokehMeRender.execute(**(inputs | changes)).result


@pytest.fixture
def said(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the node tells its user."""
    texts: list[str] = []
    monkeypatch.setattr(pack.nodes.render, "say", lambda text, node_id=None: texts.append(text))
    return texts


def test_outputs_have_the_hosts_layout(pack: ModuleType, said: list[str]) -> None:
    image, colours, blur = call(pack)
    assert image.shape == colours.shape == (1, 24, 32, 3)
    assert blur.shape == (1, 24, 32)
    for tensor in (image, colours, blur):
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        assert 0 <= float(tensor.min()) <= float(tensor.max()) <= 1
    assert float(blur[0, 0, 0]) < 0.05 < 0.95 < float(blur[0, 0, -1])
    assert said == []


def test_every_input_and_output_has_a_tooltip(pack: ModuleType) -> None:
    for cls in (pack.nodes.render.BokehMeRender, pack.nodes.render.BokehLoadDepth):
        schema = cls.GET_SCHEMA()  # also checks that ids are unique
        assert schema.category == "Bokeh"
        assert schema.description
        assert all(port.tooltip for port in [*schema.inputs, *schema.outputs])


def test_sweep_of_values_over_a_batch(pack: ModuleType, said: list[str]) -> None:
    images = torch.rand(2, 24, 32, 3)
    swept = call(pack, image=images, k_values="0, 6")[0]
    assert swept.shape == (4, 24, 32, 3)
    assert torch.equal(swept[:2], images)
    for row in range(2):
        alone = call(pack, image=images[row : row + 1], k=6.0)[0]
        assert torch.equal(swept[2 + row], alone[0])
    assert said == []


def test_k_counts_at_512_pixels_or_at_the_image(pack: ModuleType) -> None:
    at_512 = call(pack, k=80.0, k_reference="at 512 px width (scales with the image)")[0]
    assert torch.equal(at_512, call(pack, k=80.0 * 32 / 512)[0])


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_one_and_four_channels(pack: ModuleType, channels: int) -> None:
    image = torch.rand(2, 24, 32, channels)
    assert call(pack, image=image)[0].shape == image.shape


def test_depth_may_be_a_mask_or_of_another_size(pack: ModuleType, said: list[str]) -> None:
    as_mask = call(pack, depth=torch.linspace(0.2, 0.8, 32).expand(1, 24, 32))
    assert torch.equal(as_mask[0], call(pack)[0])
    assert said == []
    assert call(pack, depth=torch.linspace(0.2, 0.8, 64).expand(1, 48, 64))[0].shape == (1, 24, 32, 3)
    assert said == ["The depth map was resized from 64 x 48 to 32 x 24."]


def test_focus_modes(pack: ModuleType) -> None:
    def sharpest(blur: torch.Tensor) -> int:
        return int(blur[0, 12].argmin())

    mask = torch.zeros(1, 24, 32)
    mask[:, :, 20:23] = 1.0
    assert sharpest(call(pack, focus_x=0.5)[2]) in (15, 16)
    assert sharpest(call(pack, focus_mode="mask", focus_mask=mask)[2]) == 21
    assert sharpest(call(pack, focus_mode="disparity value", focus_value=1.0)[2]) == 31
    metres = {"depth": torch.linspace(1, 32, 32).expand(1, 24, 32), "depth_kind": "metric (metres)"}
    far = call(pack, **metres, depth_range="as is", focus_mode="distance in metres", focus_value=8.0)
    assert sharpest(far[2]) == 7


def test_what_did_little_or_is_unusual_is_said(pack: ModuleType, said: list[str]) -> None:
    image = torch.rand(1, 24, 32, 3)
    assert torch.equal(call(pack, image=image, k=0.0)[0], image)
    call(pack, k=0.1)
    call(pack, k_values="5, 31, 40.5")
    call(pack, depth=torch.full((1, 24, 32), 0.5), depth_range="as is", focus_mode="disparity value")
    for text, expected in zip(
        said,
        ["K is 0", "hardly anything is blurred", "K = 31, 40.5 is above 30", "same value 0.5 everywhere"],
        strict=True,
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": torch.rand(0, 24, 32, 3)}, "at least one"),
        ({"depth": torch.rand(2, 24, 32)}, "2 depth maps for 1 images"),
        ({"depth": torch.rand(1, 32, 24)}, "differ by more than 2 %"),
        ({"depth": torch.ones(1, 24, 32, 3)}, "Load Depth Map"),
        ({"depth": torch.full((1, 24, 32), float("nan"))}, "768 of 768 values of the depth map are NaN"),
        ({"k": -1.0}, "K is -1"),
        ({"k_values": "4, soft"}, "soft"),
        ({"focus_mode": "mask"}, "no focus_mask is connected"),
        ({"focus_mode": "mask", "focus_mask": torch.zeros(1, 24, 32)}, "focus mask is empty"),
        ({"focus_mode": "distance in metres"}, "forgets the units"),
        ({"focus_x": 1.5}, "outside the picture"),
        ({"blades": 2}, "2 blades"),
    ],
)
def test_bad_input_is_refused(pack: ModuleType, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(pack.bokeh_ops.errors.BokehError, match=message):
        call(pack, **changes)


def test_an_interrupt_stops_the_rendering(pack: ModuleType) -> None:
    import comfy.model_management as management  # type: ignore[import-not-found]

    management.interrupt_current_processing(True)
    try:
        with pytest.raises(management.InterruptProcessingException):
            call(pack)
    finally:
        management.interrupt_current_processing(False)


def test_boosted_highlights_stay_in_range(pack: ModuleType) -> None:
    image = torch.ones(1, 24, 32, 3)
    assert float(call(pack, image=image, highlight_boost=0.4)[0].max()) == 1.0


def test_loading_a_16_bit_map(pack: ModuleType) -> None:
    import folder_paths  # type: ignore[import-not-found]

    folder = Path(folder_paths.get_input_directory())
    folder.mkdir(parents=True, exist_ok=True)
    values = np.linspace(12272, 35903, 24 * 32).reshape(24, 32).astype(np.uint16)
    path = folder / "bokeh_test_depth.png"
    Image.fromarray(values).save(path)
    node = pack.nodes.render.BokehLoadDepth
    try:
        assert node.validate_inputs(path.name) is True
        assert "no file" in node.validate_inputs("bokeh_test_absent.png")
        before = node.fingerprint_inputs(path.name)
        depth = node.execute(path.name).result[0]
        assert depth.shape == (1, 24, 32, 3)
        assert np.array_equal((depth[0, ..., 1].double().numpy() * 65535).round(), values)
        Image.fromarray(values // 2).save(path)
        assert node.fingerprint_inputs(path.name) != before
    finally:
        path.unlink()
    assert call(pack, depth=depth)[0].shape == (1, 24, 32, 3)


def test_validation_lets_k_exceed_the_slider_but_not_fall_below_0(pack: ModuleType) -> None:
    node = pack.nodes.render.BokehMeRender
    assert node.validate_inputs(k=45.0) is True
    assert node.validate_inputs() is True
    assert node.validate_inputs(k=-1.0) == "K is -1.0; it must be 0 (all in focus) or larger."
