"""A camera through the nodes: from its settings to blur focused where the picture is, to the EXIF data of a file."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from tests.test_node_render import focus, said  # noqa: F401
from tests.test_node_strength import METRES, known

pytestmark = pytest.mark.host
HEIGHT, WIDTH = METRES.shape[1:]


def cameras(pack: ModuleType, stops: str = "", **settings: float) -> Any:
    """What Bokeh K From Camera gives for an 85 mm lens on APS-C."""
    given = {"f_number": 2.0, "focal_length": 85.0, "focus_distance": 99.0, **settings}
    node = pack.nodes.camera.BokehFromCamera
    return node.execute(**given, sensor="APS-C", sensor_width=1.0, image_width=512, f_numbers=stops).result[
        -1
    ]


def rendered(pack: ModuleType, camera: Any, pictures: int = 1, **changes: Any) -> tuple[Any, ...]:
    inputs: dict[str, Any] = {
        "image": torch.rand(pictures, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(1)),
        "depth": known(pack),
        "depth_kind": "disparity (near is bright)",
        "depth_range": "as is",
        "depth_scale": 1.0,
        "edges": "as is",
        "k": 5.0,
        "k_reference": "512 px",
        "focus_x": 0.0,
        "focus_y": 0.5,
        "model": "classical",
        "transfer": "sRGB",
        "highlight_recovery": 0.0,
        "camera": camera,
    }
    return pack.nodes.render.BokehMeRender.execute(**{**inputs, **changes}).result


def test_blur_is_that_of_the_camera_focused_where_the_picture_is(pack: ModuleType) -> None:
    """Blur on the sensor is ``f^2 / (N (S - f)) |1 - S / D|`` in diameter; 23.5 mm of it are the longer side."""
    chosen = focus(pack, "distance in metres", value=2.0)
    _, signed, distance, taken = rendered(pack, cameras(pack), focus=chosen)
    f, n, s = 0.085, 2.0, 2.0
    radius = f**2 / (n * (s - f)) * (1 - s / METRES[0, 0]) / 2 * WIDTH / 0.0235
    assert torch.allclose(signed[0, 0], -radius, rtol=1e-4, atol=1e-5)
    assert distance == pytest.approx(2.0)
    (camera,) = taken
    assert camera.focus_distance == pytest.approx(2.0)
    assert (camera.focal_length, camera.f_number, camera.sensor_width) == pytest.approx((0.085, 2.0, 0.0235))
    # What the node shows of itself is that camera's K.
    k = camera.k(WIDTH)
    assert torch.allclose(signed[0, 0], k * (1 / METRES[0, 0] - 1 / 2), rtol=1e-4, atol=1e-5)


def test_the_scale_of_the_focus_is_in_the_blur(pack: ModuleType) -> None:
    """As eq. 6 of Fine-grained Defocus is printed: ``|d - f_d| / d f^2 / (N (f_s f_d - f))`` in diameter."""
    chosen = focus(pack, "distance in metres", value=2.0)
    _, signed, _, (camera,) = rendered(pack, cameras(pack, focus_scale=1.5), focus=chosen)
    radius = (METRES[0, 0] - 2).abs() / METRES[0, 0] * 0.085**2 / (2 * (1.5 * 2 - 0.085)) / 2 * WIDTH / 0.0235
    assert torch.allclose(signed[0, 0].abs(), radius, rtol=1e-4, atol=1e-5)
    assert camera.focus_scale == 1.5
    near, far = camera.sharp_range(3e-5)
    for limit in (near, far):  # where that diameter is reached
        circle = abs(limit - 2) / limit * 0.085**2 / (2 * (1.5 * 2 - 0.085))
        assert circle == pytest.approx(3e-5)


def test_a_series_of_f_numbers_and_a_focus_pull(pack: ModuleType) -> None:
    """Pictures, defocus and cameras come in one order."""
    pull = focus(pack, "distance in metres", values="2, 4")
    image, signed, distance, taken = rendered(pack, cameras(pack, "f/2, 8"), pictures=2, focus=pull)
    assert len(image) == len(signed) == len(taken) == 8
    assert distance == pytest.approx(2.0)
    for own, camera in zip(signed, taken, strict=True):
        expected = camera.k(WIDTH) * (1 / METRES[0, 0] - 1 / camera.focus_distance)
        assert torch.allclose(own[0], expected, rtol=1e-4, atol=1e-5)
    assert {(each.f_number, round(each.focus_distance, 3)) for each in taken} == {
        (n, s) for n in (2.0, 8.0) for s in (2.0, 4.0)
    }


def test_cameras_that_are_not_asked_for(pack: ModuleType, said: list[str]) -> None:  # noqa: F811
    *_, distance, taken = rendered(pack, None)
    assert taken == (None,)
    at_left = pack.bokeh_ops.depth.focus.focus_at_point(known(pack).disparity, 0.0, 0.5)
    assert distance == pytest.approx(1 / float(at_left))
    *_, distance, taken = rendered(pack, None, f_number=2.8)
    (camera,) = taken
    assert camera.f_number == 2.8
    assert camera.focal_length == pytest.approx(24 / WIDTH * 0.036)
    *_, distance, taken = rendered(pack, None, depth_range="normalise to 0..1")
    assert distance == 0
    said.clear()
    rendered(pack, cameras(pack), f_number=2.8)
    assert any("a camera is linked" in text for text in said)


def test_a_camera_needs_metres(pack: ModuleType) -> None:
    error = pack.bokeh_ops.errors.BokehError
    with pytest.raises(
        error, match="f-number needs depth in metres, but the depth that is linked has no unit"
    ):
        rendered(pack, cameras(pack), depth=known(pack, "relative"))
    with pytest.raises(error, match="farther than the focal length"):
        rendered(pack, cameras(pack, focal_length=1500.0), focus=focus(pack, "distance in metres", value=1.0))
    with pytest.raises(error, match=r"0\.085 mm, which no lens has; it is counted in millimetres"):
        cameras(pack, focal_length=0.085)
    for stop in (0.0, -2.0, math.inf):
        with pytest.raises(error):
            rendered(pack, cameras(pack, f_number=stop))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP"])
def test_a_file_tells_the_camera(
    pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Read again, by the reader of photographs: all four settings, to the precision of EXIF's numbers."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    (camera,) = cameras(pack)
    near, far = replace(camera, focus_distance=2.125), replace(camera, focus_distance=math.inf)
    pictures = torch.rand(2, 20, 30, 3)
    node = pack.nodes.save.BokehSavePhotograph
    shown = node.execute(pictures, "some/photo", kind, 95, (near, far)).ui.as_dict()["images"]
    assert [each["subfolder"] for each in shown] == ["some", "some"]
    assert len({each["filename"] for each in shown}) == 2
    for each, own in zip(shown, (near, far), strict=True):
        path = tmp_path / "some" / each["filename"]
        with Image.open(path) as image:
            assert image.size == (30, 20)
            assert image.format == kind.upper()
        exif = pack.bokeh_ops.camera.exif.read_exif(path)
        assert exif.f_number == pytest.approx(2.0)
        assert exif.focal_length == pytest.approx(0.085)
        assert exif.sensor_width == pytest.approx(0.0235, rel=2e-3)
        assert exif.focal_length_35mm == pytest.approx(0.130, abs=1e-3)
        if own is near:
            assert exif.focus_distance == pytest.approx(2.125)
        else:
            assert exif.focus_distance is None
    again = node.execute(pictures, "some/photo", kind, 95, (near,)).ui.as_dict()["images"]
    assert not {each["filename"] for each in again} & {each["filename"] for each in shown}  # nothing is lost
    none = node.execute(pictures[:1], "some/photo", kind, 95, None).ui.as_dict()["images"]
    assert pack.bokeh_ops.camera.exif.read_exif(tmp_path / "some" / none[0]["filename"]).f_number is None


def test_pictures_that_cannot_be_saved(pack: ModuleType, tmp_path: Path) -> None:
    node, error = pack.nodes.save.BokehSavePhotograph, pack.bokeh_ops.errors.BokehError
    with pytest.raises(error, match="at least one"):
        node.execute(torch.rand(0, 4, 4, 3), "a", "PNG", 95)
    with pytest.raises(error, match="There are 2 cameras for 3 pictures"):
        node.execute(torch.rand(3, 4, 4, 3), "a", "PNG", 95, cameras(pack, "2, 8"))
    with pytest.raises(error, match=r"WebP holds 16383 pixels each way\. Choose PNG"):
        node.execute(torch.rand(1, 1, 16384, 3), "a", "WebP", 95)


@pytest.mark.parametrize("size", [(24, 24), (24, 18), (36, 24), (48, 24), (20, 60)])
def test_the_sensor_of_a_picture_of_any_shape(
    pack: ModuleType, size: tuple[int, int], tmp_path: Path
) -> None:
    (camera,) = cameras(pack)
    exif = pack.bokeh_ops.camera.exif.written_exif(camera, *size)
    Image.new("RGB", size).save(tmp_path / "a.jpg", exif=exif)
    read = pack.bokeh_ops.camera.exif.read_exif(tmp_path / "a.jpg")
    filled, _, _ = pack.bokeh_ops.camera.exif.fill_in(replace(camera, sensor_width=1.0, f_number=9.0), read)
    assert filled.sensor_width == pytest.approx(0.0235, rel=0.02)  # equivalents are whole millimetres
    assert filled.f_number == pytest.approx(2.0)


def test_a_camera_of_another_renderer(pack: ModuleType) -> None:
    """Each f-number once; none of pictures by K, and not several lenses."""
    error = pack.bokeh_ops.errors.BokehError
    *_, taken = rendered(pack, cameras(pack, "2, 8"), pictures=2)
    assert len(taken) == 4
    image, *_, again = rendered(pack, taken)
    assert [each.f_number for each in again] == [2.0, 8.0]
    assert len(image) == 2
    *_, none = rendered(pack, None)
    with pytest.raises(error, match="blurred by K, which many cameras have"):
        rendered(pack, none)
    with pytest.raises(error, match="2 different lenses or sensors"):
        rendered(pack, (*cameras(pack), *cameras(pack, focal_length=50.0)))
