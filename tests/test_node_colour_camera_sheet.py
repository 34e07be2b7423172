"""The nodes for colour, camera and contact sheet, in a real host."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bokeh_ops.numbers import parse_values
from tests.host.server import ComfyServer, PromptError

PHONE = {0x010F: "Maker", 0x0110: "Phone 7"}
PHONE_LENS = {0x829D: 1.5, 0x920A: 5.7, 0xA405: 26}


def phone_picture(path: Path, f_number: float = 1.5) -> None:
    exif = Image.Exif()
    exif.update(PHONE)
    exif.get_ifd(0x8769).update({**PHONE_LENS, 0x829D: f_number})
    Image.new("RGB", (64, 48), (90, 120, 60)).save(path, exif=exif)


@pytest.fixture
def nodes(pack: ModuleType) -> dict[str, Any]:
    found = {}
    for file, name in (
        ("colour", "LabColorMatch"),
        ("camera", "BokehFromCamera"),
        ("camera", "BokehDepthOfField"),
        ("sheet", "BokehContactSheet"),
    ):
        found[name] = getattr(importlib.import_module(f"{pack.__name__}.nodes.{file}"), name)
    return found


@pytest.fixture
def input_folder(pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import folder_paths  # type: ignore[import-not-found]

    folder = tmp_path / "input"
    folder.mkdir()
    monkeypatch.setattr(folder_paths, "input_directory", str(folder))
    return folder


SETTINGS: dict[str, Any] = {
    "f_number": 1.8,
    "focal_length": 50.0,
    "focus_distance": 2.0,
    "sensor": "Full frame",
    "sensor_width": 10.0,
    "image_width": 512,
}


def test_every_widget_has_what_the_host_asks_for(nodes: dict[str, Any], input_folder: Path) -> None:
    for node_id, cls in nodes.items():
        schema = cls.GET_SCHEMA()
        assert (schema.node_id, schema.category) == (node_id, "Bokeh")
        assert schema.description
        entries = [*schema.inputs, *schema.outputs]
        assert all(entry.tooltip for entry in entries)
    phone_picture(input_folder / "b.jpg")
    (input_folder / "notes.txt").write_text("no picture")
    (input_folder / "a folder.jpg").mkdir()
    kind, options = nodes["BokehFromCamera"].INPUT_TYPES()["required"]["photograph"]
    offered = options.get("options", kind)
    assert offered == ["", "b.jpg"]
    assert options["image_upload"] is True


def test_colour_match(nodes: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    images = torch.full((2, 8, 8, 3), 0.4)
    reference = torch.full((1, 5, 5, 3), 0.6)
    (matched,) = nodes["LabColorMatch"].execute(images, reference, "mean", 1.0).args
    assert (matched - 0.6).abs().max() < 1e-5
    assert not caplog.records
    (same,) = nodes["LabColorMatch"].execute(images, reference, "mean", 0.0).args
    assert torch.equal(same, images)
    assert "strength is 0" in caplog.text


def test_k_of_a_camera(nodes: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    node = nodes["BokehFromCamera"]
    k, text, distance, listed, cameras = node.execute(**SETTINGS).args
    assert distance == 2.0
    (camera,) = cameras
    assert camera.k(512) == k
    assert listed.endswith(" px/dioptre")
    assert parse_values(listed) == pytest.approx([k], rel=1e-6)
    assert k == pytest.approx(10.13, abs=0.005)
    assert text == (
        "50 mm f/1.8 focused at 2 m on a 36 mm sensor, 512 px: K = 10.13 px of blur radius per dioptre."
    )
    assert node.execute(**SETTINGS, photograph="none").args == (k, text, distance, listed, cameras)
    custom = node.execute(**{**SETTINGS, "sensor": "custom width", "sensor_width": 18.0}).args[0]
    assert custom == pytest.approx(2 * k)
    assert not caplog.records
    strong, text, *_ = node.execute(**{**SETTINGS, "f_number": 0.5}).args
    assert strong == pytest.approx(k * 1.8 / 0.5)
    assert "K = 36.47 is outside 0 to 30" in text
    assert "K = 36.47 is outside 0 to 30" in caplog.text
    with pytest.raises(ValueError, match="farther than the focal length"):
        node.execute(**{**SETTINGS, "focus_distance": 0.05})


def test_k_of_several_f_numbers(nodes: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """K is inversely proportional to the f-number; the list is what BokehMe Render takes as k_values."""
    node = nodes["BokehFromCamera"]
    k, text, _, listed, cameras = node.execute(**SETTINGS, f_numbers="1.4, 2.8, 16").args
    assert [camera.f_number for camera in cameras] == [1.4, 2.8, 16.0]
    assert k == pytest.approx(10.13, abs=0.005)  # of f_number, as without
    series = parse_values(listed)
    assert series == pytest.approx([k * 1.8 / 1.4, k * 1.8 / 2.8, k * 1.8 / 16], rel=1e-6)
    assert "K of each f-number: f/1.4: 13.02, f/2.8: 6.51, f/16: 1.14." in text
    assert "f/2.8: 6.51" in caplog.text
    for bad, message in {"1.4, 0": "f-number is 0", "1.4; wide": "'wide' is not a number"}.items():
        with pytest.raises(ValueError, match=message):
            node.execute(**SETTINGS, f_numbers=bad)


def test_k_of_a_photograph(
    nodes: dict[str, Any], input_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = nodes["BokehFromCamera"]
    phone_picture(input_folder / "phone.jpg")
    k, text, *_ = node.execute(**SETTINGS, photograph="phone.jpg").args
    # f/1.5 and 5.7 mm are the photograph's, 2 m the node's; the sensor is 43.267 * 5.7 / 26 * 4/5 = 7.588 mm wide
    assert k == pytest.approx(0.0057**2 * 2 / (2 * 1.5 * (2 - 0.0057)) * 512 / 0.0075883, rel=1e-4)
    assert text.startswith("5.7 mm f/1.5 focused at 2 m on a 7.588 mm sensor, 512 px: K = 0.73 px")
    for part in (
        "From phone.jpg (Maker Phone 7): f/1.5, focal length 5.7 mm, sensor 7.588 mm along the longer side (by "
        "the 35 mm equivalent)",
        "taken from this node: focus distance (SubjectDistance is missing)",
    ):
        assert part in text
        assert part in caplog.text
    Image.new("RGB", (8, 8)).save(input_folder / "plain.png")
    k, text, *_ = node.execute(**SETTINGS, photograph="plain.png").args
    assert k == pytest.approx(10.13, abs=0.005)
    assert "From plain.png: nothing." in text


def test_a_photograph_that_changes_is_read_again(nodes: dict[str, Any], input_folder: Path) -> None:
    node = nodes["BokehFromCamera"]
    phone_picture(input_folder / "phone.jpg")
    before = node.fingerprint_inputs(**SETTINGS, photograph="phone.jpg")
    assert node.fingerprint_inputs(**SETTINGS, photograph="phone.jpg") == before
    phone_picture(input_folder / "phone.jpg", f_number=2.8)
    assert node.fingerprint_inputs(**SETTINGS, photograph="phone.jpg") != before
    assert node.fingerprint_inputs(**SETTINGS, photograph="") == node.fingerprint_inputs(**SETTINGS)


def test_a_photograph_that_is_not_there_is_refused(nodes: dict[str, Any], input_folder: Path) -> None:
    node = nodes["BokehFromCamera"]
    phone_picture(input_folder / "phone.jpg")
    phone_picture(input_folder.parent / "outside.jpg")
    assert node.validate_inputs("phone.jpg") is True
    assert node.validate_inputs("") is True
    missing = node.validate_inputs("gone.jpg")
    assert f"no file 'gone.jpg' in {input_folder}" in missing
    for outside in ("../outside.jpg", str(input_folder.parent / "outside.jpg")):
        assert "outside the input folder" in node.validate_inputs(outside)
        with pytest.raises(ValueError, match="outside the input folder"):
            node.execute(**SETTINGS, photograph=outside)


LENS = {name: value for name, value in SETTINGS.items() if name != "image_width"}


def test_depth_of_field_as_text(nodes: dict[str, Any], input_folder: Path) -> None:
    node = nodes["BokehDepthOfField"]
    text, overlay, near, far, hyperfocal = node.execute(**LENS).args
    assert text.splitlines() == [
        "50 mm f/1.8 focused at 2 m on a 36 mm sensor, 512 px: K = 10.13 px of blur radius per dioptre.",
        "Sharp from 1.922 m to 2.084 m (16.2 cm deep), at a circle of confusion of 28.8 µm.",
        "Hyperfocal distance 48.2 m.",
        "Infinity is blurred to discs of 712 µm, 1.98 % of the picture's longer side.",
    ]
    assert (near, far, hyperfocal) == pytest.approx((1.9222, 2.0844, 48.201), abs=2e-3)
    assert "link depth in metres" in overlay.message  # the host shows it on what the overlay is linked to
    strict = node.execute(**LENS, circle=8.0).args
    assert near < strict[2] < 2 < strict[3] < far
    square = node.execute(**LENS, image=torch.zeros(1, 8, 8, 3)).args
    assert "circle of confusion of 33.9 µm" in square[0]  # sqrt(2) of 36 mm / 1500
    phone_picture(input_folder / "phone.jpg")
    text = node.execute(**LENS, photograph="phone.jpg").args[0]
    assert text.startswith("5.7 mm f/1.5 focused at 2 m on a 7.588 mm sensor")
    assert "circle of confusion of 6.32 µm" in text
    assert "From phone.jpg (Maker Phone 7)" in text
    assert node.execute(**{**LENS, "f_number": 64.0}).args[3] == float("inf")


def test_depth_of_field_as_an_overlay(nodes: dict[str, Any], pack: ModuleType) -> None:
    """A ramp of distances: what lies within the limits is green, what is nearer orange, what is farther blue."""
    node, depths = nodes["BokehDepthOfField"], pack.bokeh_ops.depth.conventions
    distance = torch.linspace(1.6, 2.6, 300).expand(1, 1, 200, 300)
    depth = depths.DepthMap(1 / distance, depths.DepthUnit.DIOPTRES)
    _, sheet, near, far, _ = node.execute(**LENS, depth=depth).args
    gap = (sheet.shape[2] - 300) // 2  # the paper around the picture
    assert sheet.shape[1] > 200 + gap  # room for the legend
    assert float(sheet[0, 200 + gap :].max()) > 0.8
    line = sheet[0, gap + 100, gap : gap + 300]
    red, green, blue = line.T
    seen = torch.where((green > red) & (green > blue), 0, torch.where(red > blue, 1, 2))
    where = distance[0, 0, 0]
    assert bool((seen[(where > near + 0.005) & (where < far - 0.005)] == 0).all())
    assert bool((seen[where < 1 / (2 / near - 0.5)] == 1).all())  # twice as far from the focus in disparity
    assert bool((seen[where > 1 / (2 / far - 0.5)] == 2).all())
    pictures = torch.rand(2, 40, 60, 3)
    assert len(node.execute(**LENS, depth=depth, image=pictures).args[1]) == 2
    with pytest.raises(ValueError, match="no unit: it knows near and far, not metres"):
        node.execute(**LENS, depth=depths.DepthMap(1 / distance, depths.DepthUnit.RELATIVE))


def test_contact_sheet(nodes: dict[str, Any]) -> None:
    node = nodes["BokehContactSheet"]
    images = torch.rand(6, 30, 40, 3)
    (sheet,) = node.execute(images, "0, 4, 8, 12, 18, 28", "K = ", 0, 512, "dark").args
    (titled,) = node.execute(images, "0:20:4", "K = ", 0, 512, "white", "above", "A sweep").args
    assert sheet.shape[0] == titled.shape[0] == 1
    assert titled.shape[1] > sheet.shape[1]
    (numbered,) = node.execute(images, "", "K = ", 3, 512, "dark").args
    assert numbered.shape[-1] == 3
    with pytest.raises(ValueError, match="4 labels for 6 pictures"):
        node.execute(images, "0, 4, 8, 12", "K = ", 0, 512, "dark")


def test_all_three_in_a_running_server(comfy_server: ComfyServer, tmp_path: Path) -> None:
    phone_picture(tmp_path / "phone.jpg")
    name = comfy_server.upload_image(tmp_path / "phone.jpg")
    colour = {"width": 40, "height": 30, "batch_size": 2}
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {**colour, "color": 0x806040}},
        "2": {"class_type": "EmptyImage", "inputs": {**colour, "color": 0x408060}},
        "3": {
            "class_type": "LabColorMatch",
            "inputs": {"images": ["1", 0], "reference": ["2", 0], "mode": "mean", "strength": 1.0},
        },
        "4": {
            "class_type": "BokehContactSheet",
            "inputs": {
                "images": ["3", 0],
                "values": "0, 8",
                "prefix": "K = ",
                "columns": 0,
                "cell_size": 0,
                "background": "dark",
            },
        },
        "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "sheet"}},
        "6": {"class_type": "BokehFromCamera", "inputs": {**SETTINGS, "photograph": name}},
        "7": {"class_type": "PreviewAny", "inputs": {"source": ["6", 1]}},
    }
    run = comfy_server.run(prompt)
    (image,) = run.images("5")
    pixels = np.asarray(Image.open(io.BytesIO(comfy_server.view(**image)))).astype(int)
    matched = (np.abs(pixels - [0x40, 0x80, 0x60]).max(-1) <= 1).sum()
    assert matched == 2 * 40 * 30
    said = [text for node, text in run.texts if node == "6"]
    assert len(said) == 1
    assert "f/1.5, focal length 5.7 mm" in said[0]
    prompt["6"]["inputs"]["photograph"] = "gone.jpg"
    with pytest.raises(PromptError, match=r"node 6 \(BokehFromCamera\).*no file 'gone\.jpg'"):
        comfy_server.run({node: prompt[node] for node in ("6", "7")})
