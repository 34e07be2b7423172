"""K and focus of a photograph: from EXIF data, and from its pixels, on pictures whose blur is known in closed form."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bokeh_ops.camera import blur
from bokeh_ops.camera.blur import Evidence, fit, gather, working_size
from bokeh_ops.camera.exif import read_exif
from bokeh_ops.camera.from_photo import Source, exif_lacks, from_photograph
from bokeh_ops.camera.optics import k_from_camera
from bokeh_ops.depth.conventions import DepthMap, DepthUnit
from bokeh_ops.errors import BokehError
from bokeh_ops.numbers import PER_DIOPTRE, PerDioptre
from bokeh_ops.picture.colour import linear_to_srgb

from .photographs import exif

DEPTHS = (0.2, 0.7, 1.2, 1.7)
SIZE: tuple[int, int] = (320, 384)  # height and width
STRIPS = SIZE[1] // len(DEPTHS)


def disc(spectrum: Tensor, radius: float) -> Tensor:
    """A picture's spectrum ``[H, W]`` behind a disc, which is 2 J1(2 pi r f) / (2 pi r f)."""
    height, width = spectrum.shape
    y, x = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
    phase = 2 * math.pi * radius * torch.hypot(y[:, None], x).double()
    kernel = torch.where(phase > 1e-6, 2 * torch.special.bessel_j1(phase) / phase.clamp_min(1e-9), 1.0)
    return spectrum * kernel


def scene(k: float, focus: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Strips of texture at four disparities, each blurred by its own disc: ``[1, 3, H, W]`` and ``[1, 1, H, W]``.

    The texture's amplitude falls as f^-1.2. K counts at 512 px.
    """
    random = torch.Generator().manual_seed(seed)
    y, x = torch.fft.fftfreq(SIZE[0]), torch.fft.fftfreq(SIZE[1])
    fall = torch.hypot(y[:, None], x).clamp_min(1 / SIZE[1]) ** -1.2
    picture, disparity = torch.zeros(1, 3, *SIZE), torch.zeros(1, 1, *SIZE)
    for index, depth in enumerate(DEPTHS):
        part = slice(index * STRIPS, (index + 1) * STRIPS)
        disparity[..., part] = depth
        spectrum = torch.fft.fft2(torch.randn(*SIZE, generator=random)) * fall
        radius = k * SIZE[1] / 512 * abs(depth - focus)
        texture = torch.fft.ifft2(disc(spectrum, radius)).real
        scale = torch.fft.ifft2(spectrum).real.std()
        picture[..., part] = (0.35 + 0.1 * texture / scale).clamp(0, 0.9)[:, part]
    return linear_to_srgb(picture), disparity


# ---- pixels ----


@pytest.mark.parametrize("radius", [1.5, 3.0, 6.0])
def test_a_step_edge_behind_a_disc_has_the_energies_of_the_closed_form(radius: float) -> None:
    """A lone edge's energy per frequency falls as f^-2, the slope 3 of its picture's power."""
    position = torch.arange(480, dtype=torch.float64) + 0.5 - 264
    fine = (
        position[:, None] + (torch.arange(32) + 0.5) / 32 - 0.5
    ) / radius  # a pixel is the mean over its width
    inside = fine.clamp(-1, 1)
    edge = (0.5 + (inside * (1 - inside**2).sqrt() + inside.asin()) / math.pi).mean(1)
    picture = linear_to_srgb((0.1 + 0.5 * edge).float().expand(1, 3, 480, 480))
    disparity = (torch.arange(480) < 240).float()[:, None].expand(1, 1, 480, 480)
    found = gather(picture, disparity)
    frequency = torch.linspace(1e-4, 1.0, 20_000, dtype=torch.float64)
    phase = 2 * math.pi * radius * frequency
    spectrum = (2 * torch.special.bessel_j1(phase) / phase * torch.sinc(frequency) / frequency) ** 2
    energies = []
    for level in (1, 2):
        box = torch.sinc(frequency * level) / torch.sinc(frequency)
        for low, high in ((0.8, 1.13), (1.13, 1.6)):
            kept = [torch.exp(-2 * (math.pi * frequency * scale * level) ** 2) for scale in (low, high)]
            energies.append(float((spectrum * ((kept[0] - kept[1]) * box) ** 2).sum()))
    expected = torch.tensor(energies).log().diff()
    assert len(found.disparity) >= 8
    assert torch.allclose(found.ratios[:, :3].mean(0), expected.float(), atol=0.12)


@pytest.mark.parametrize(("k", "focus"), [(8.0, 0.7), (16.0, 1.2), (24.0, 0.7)])
def test_k_and_focus_come_back(k: float, focus: float) -> None:
    found = fit(gather(*scene(k, focus)))
    assert found.k == pytest.approx(k, rel=0.15)
    assert found.focus == pytest.approx(focus, abs=0.1)
    assert found.confidence > 0.2
    assert not found.sharp
    assert found.largest == pytest.approx(found.k * max(abs(d - found.focus) for d in DEPTHS), rel=0.05)


def test_k_counts_at_512_whatever_the_size() -> None:
    picture, disparity = scene(16, 0.7)
    double = torch.nn.functional.interpolate(picture, scale_factor=4, mode="bilinear")
    assert working_size(*double.shape[2:]) == (533, 640)
    large = from_photograph(double, DepthMap(disparity, DepthUnit.DIOPTRES))
    assert large.size == (533, 640)
    assert large.k == pytest.approx(16, rel=0.25)


def test_a_picture_that_is_sharp_all_over_is_said_to_be() -> None:
    found = fit(gather(*scene(0, 0.7)))
    assert found.largest < 2
    assert found.sharp
    assert found.confidence < 1 / 3
    assert "sharp all over explains as much" in from_photograph(*as_map(scene(0, 0.7))).text


def test_more_noise_is_not_taken_for_sharpness() -> None:
    picture, disparity = scene(24, 0.2)
    noisy = picture + 0.01 * torch.randn(picture.shape, generator=torch.Generator().manual_seed(1))
    assert fit(gather(noisy, disparity)).k == pytest.approx(24, rel=0.2)


def test_a_mask_says_where_the_focus_is() -> None:
    picture, depth = as_map(scene(16, 1.2))
    mask = ((depth.disparity[0] - 1.2).abs() < 0.1).float()
    found = from_photograph(picture, depth, mask)
    assert found.focus == pytest.approx(1.2, abs=0.076)
    assert "about the mask" in found.text
    with pytest.raises(BokehError, match="mask is empty"):
        from_photograph(picture, depth, torch.zeros_like(mask))


def test_the_focus_alone_is_found_where_k_is_known() -> None:
    found = fit(gather(*scene(16, 0.7)), k=16)
    assert found.k == pytest.approx(16)
    assert found.focus == pytest.approx(0.7, abs=0.05)


def test_what_tells_nothing_is_refused() -> None:
    picture, disparity = scene(8, 0.7)
    with pytest.raises(BokehError, match="The depth is 1 everywhere"):
        gather(picture, torch.ones_like(disparity))
    with pytest.raises(BokehError, match="Only 0 patches"):
        gather(torch.full_like(picture, 0.5), disparity)
    with pytest.raises(BokehError, match="Only 0 patches"):
        gather(torch.ones_like(picture), disparity)  # clipped
    with pytest.raises(BokehError, match="Only 0 patches"):
        gather(picture[..., :12, :12], torch.rand(1, 1, 12, 12))
    with pytest.raises(BokehError, match="Only 0 patches"):
        gather(picture, torch.rand(disparity.shape, generator=torch.Generator().manual_seed(0)))
    one = Evidence(torch.full((9,), 0.5), torch.zeros(9, 9), torch.ones(9, 9), 384, (0.0, 1.0))
    with pytest.raises(BokehError, match="lie at one depth"):
        fit(one)


def test_the_table_begins_without_blur_and_falls_with_it() -> None:
    """Coarser bands hold ever more of the energy, the more a picture is blurred, up to what the disc leaves."""
    model = blur._model()
    assert model.shape == (7, 65, 9)
    first = model[2, :, 0]  # slope 2
    assert bool((first[:30].diff() > -1e-3).all())
    assert float(first[0]) < 0.5 < float(first[30])


# ---- EXIF ----


def as_map(made: tuple[Tensor, Tensor], unit: DepthUnit = DepthUnit.DIOPTRES) -> tuple[Tensor, DepthMap]:
    return made[0], DepthMap(made[1], unit)


def file(path: Path, size: tuple[int, int] = (SIZE[1], SIZE[0]), **fields: Any) -> Path:
    camera = {"make": "Canon", "model": "Canon EOS 6D", "f_number": 2.0, "focal_length": 50.0, **fields}
    Image.new("RGB", size).save(path, exif=exif(**{name: v for name, v in camera.items() if v is not None}))
    return path


def test_exif_that_tells_all(tmp_path: Path) -> None:
    known = read_exif(file(tmp_path / "a.jpg", size=(480, 400), subject_distance=2.0))
    found = from_photograph(*as_map(scene(8, 0.7)), exif=known)
    # 6 : 5 of a sensor of 36 x 24 mm: its whole height, so 28.8 mm along the longer side.
    assert found.k == pytest.approx(k_from_camera(0.05, 2.0, 2.0, 0.024 * 1.2), rel=0.01)
    assert isinstance(found.k, PerDioptre)
    assert (found.focus, found.distance) == (0.5, 2.0)
    assert found.confidence >= 0.6
    assert "by SubjectDistance" in found.text


def test_a_focus_that_exif_does_not_tell_comes_from_the_mask_or_from_pixels(tmp_path: Path) -> None:
    known = read_exif(file(tmp_path / "a.jpg", f_number=1.8))
    picture, depth = as_map(scene(12.7, 0.7))
    masked = from_photograph(picture, depth, (depth.disparity[0] > 1.5).float(), known)
    assert masked.focus == pytest.approx(1.7)
    assert masked.distance == pytest.approx(1 / 1.7)
    assert "SubjectDistance is missing): it is taken from the mask" in masked.text
    bare = from_photograph(picture, depth, None, known)
    assert bare.focus == pytest.approx(0.7, abs=0.05)
    assert bare.k == pytest.approx(12.7, rel=0.05)
    assert "no mask is linked: it is from pixels" in bare.text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"f_number": 0}, r"f-number \(FNumber is 0, which stands for unknown\)"),
        ({"focal_length": 9000.0}, "which cannot be true"),
        ({"make": "Nobody", "model": "None"}, "size of the sensor"),
        ({"size": (400, 200)}, "is 400 x 200 but the picture is 384 x 320, so another crop"),
        ({"custom_rendered": 8}, "portrait mode"),
        ({"subject_distance": 0.03}, "within the focal length, which cannot be true"),
    ],
)
def test_exif_that_does_not_tell_is_said_or_refused(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    known = read_exif(file(tmp_path / "a.jpg", **fields))
    picture, depth = as_map(scene(8, 0.7))
    with pytest.raises(BokehError, match=message):
        from_photograph(picture, depth, exif=known, source=Source.EXIF)
    found = from_photograph(picture, depth, exif=known)
    assert found.text.count("Not from EXIF") == 1
    assert found.k == pytest.approx(8, rel=0.15)
    assert "Not from EXIF" not in from_photograph(picture, depth, exif=known, source="pixels").text


def test_a_photograph_on_its_side_is_the_same(tmp_path: Path) -> None:
    known = read_exif(file(tmp_path / "a.jpg", size=(400, 480)))
    assert exif_lacks(known, *SIZE) is None
    assert exif_lacks(None, *SIZE) == "no photograph file is given to read EXIF data from"
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    assert exif_lacks(read_exif(tmp_path / "b.png"), *SIZE) == "the file holds no EXIF"


def test_a_picture_that_is_not_finite_is_refused() -> None:
    picture, depth = as_map(scene(12.0, 0.5))
    picture[0, 0, 3, 3] = float("nan")
    with pytest.raises(BokehError, match="picture has values that are NaN"):
        from_photograph(picture, depth)


def test_depth_without_a_unit(tmp_path: Path) -> None:
    known = read_exif(file(tmp_path / "a.jpg", subject_distance=2.0))
    picture, depth = as_map(scene(8, 0.7), DepthUnit.RELATIVE)
    with pytest.raises(BokehError, match="the depth map has no unit"):
        from_photograph(picture, depth, exif=known, source=Source.EXIF)
    found = from_photograph(picture, depth, exif=known)
    assert not isinstance(found.k, PerDioptre)
    assert found.distance is None
    assert "per unit of disparity" in found.text


# ---- path-traced scenes and photographs ----


def test_a_path_traced_scene(shared: Path) -> None:
    """Held out: the method was made on others. Its table is in the documentation."""
    pytest.importorskip("OpenEXR")
    from trainer.exr import read_colour, read_plane

    folder = shared / "scenes" / "scene_103"
    disparity = torch.tensor(1 / read_plane(folder / "depth.exr"))[None, None]
    light = torch.tensor(np.clip(read_colour(folder / "bokeh_00_00.exr"), 0, 1)).movedim(-1, 0)[None]
    found = fit(gather(light ** (1 / 2.2), disparity.float()))
    assert found.k == pytest.approx(8, rel=0.15)
    assert found.focus == pytest.approx(1 / 1.2440714582373729, abs=0.1)


# ---- the node ----

NODE: dict[str, Any] = {
    "source": Source.AUTO.value,
    "depth_kind": "disparity (near is bright)",
    "depth_range": "as is",
    "depth_scale": 1.0,
}


@pytest.fixture
def input_folder(pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import folder_paths  # type: ignore[import-not-found]

    folder = tmp_path / "input"
    folder.mkdir()
    monkeypatch.setattr(folder_paths, "input_directory", str(folder))
    return folder


def images(*made: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Pictures ``[B, H, W, 3]`` and depth maps ``[B, H, W]`` as the host hands them on."""
    return torch.cat([one for one, _ in made]).movedim(1, -1), torch.cat([depth for _, depth in made])[:, 0]


@pytest.mark.host
def test_the_node_gives_out_what_the_renderer_takes(node_classes: dict[str, Any]) -> None:
    node = node_classes["BokehFromPhoto"]
    picture, depth = images(scene(12, 0.7), scene(20, 1.2))
    node.GET_SCHEMA()
    k, focus, disparity, distance, confidence, text, listed, preview = node.execute(
        picture, depth, **NODE
    ).result
    assert type(k).__name__ == "PerDioptre"
    assert listed.endswith(f" {PER_DIOPTRE}")
    each = [float(part) for part in listed.removesuffix(PER_DIOPTRE).split(",")]
    assert each == pytest.approx([12, 20], rel=0.15)
    assert k == pytest.approx(sum(each) / 2)
    assert focus.values == pytest.approx((0.7, 1.2), abs=0.1)
    assert focus.one_each
    assert disparity == pytest.approx(sum(focus.values) / 2)
    assert distance == pytest.approx(sum(1 / value for value in focus.values) / 2)
    assert 0.3 < confidence <= 1
    assert text.count("Picture ") == 2
    assert preview.shape == (2, *SIZE, 3)
    green, blue = preview[0, :, STRIPS : 2 * STRIPS].mean((0, 1)), preview[0, :, :STRIPS].mean((0, 1))
    assert green.argmax() == 1
    assert blue.argmax() == 2
    (step,) = focus.find(depth[:, None])
    assert step.disparity.tolist() == pytest.approx(list(focus.values))


@pytest.mark.host
def test_the_node_reads_exif_and_keeps_the_unit(
    node_classes: dict[str, Any], input_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = node_classes["BokehFromPhoto"]
    file(input_folder / "a.jpg", subject_distance=2.0)
    picture, depth = images(scene(12, 0.7))
    metric = {**NODE, "depth_kind": "metric (metres)", "depth_range": "normalise to 0..1"}
    k, _, disparity, distance, _, text, *_ = node.execute(
        picture, 1 / depth, **metric, photograph="a.jpg"
    ).result
    assert (disparity, distance) == (0.5, 2.0)
    assert "by EXIF" in text
    assert "is read in its own units" in caplog.text
    normalised = {**NODE, "depth_range": "normalise to 0..1"}
    k, *_, text, _, _ = node.execute(picture, depth, **normalised, photograph="a.jpg").result
    assert "the depth map has no unit" in text
    assert k == pytest.approx(12 * 1.5, rel=0.15)
    with pytest.raises(ValueError, match="forgets dioptres"):
        node.execute(picture, depth, **{**normalised, "source": "EXIF"}, photograph="a.jpg")


@pytest.mark.host
def test_what_the_node_refuses(
    node_classes: dict[str, Any], input_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = node_classes["BokehFromPhoto"]
    picture, depth = images(scene(12, 0.7), scene(12, 0.7))
    with pytest.raises(ValueError, match="Expected pictures"):
        node.execute(picture[0], depth, **NODE)
    with pytest.raises(ValueError, match="mask is"):
        node.execute(picture, depth, **NODE, mask=torch.ones(3, *SIZE))
    with pytest.raises(ValueError, match="There are 3 depth maps for 2 images"):
        node.execute(picture, depth[[0, 1, 1]], **NODE)
    with pytest.raises(ValueError, match="one is upright and the other is not"):
        node.execute(picture, depth.mT, **NODE)
    with pytest.raises(ValueError, match="Picture 2 of 2: Only 0 patches"):
        node.execute(torch.stack([picture[0], picture[0] * 0]), depth, **NODE)
    with pytest.raises(ValueError, match="K is not to be had from EXIF"):
        node.execute(picture, depth, **{**NODE, "source": "EXIF"})
    assert "outside the input folder" in node.validate_inputs(photograph="../x.png")
    node.execute(*images(scene(0, 0.7)), **NODE)
    assert "sharp all over explains as much" in caplog.text
    assert "Link a mask" in caplog.text


@pytest.mark.host
def test_through_the_server(comfy_server: Any) -> None:
    """The demo photograph, by its pixels; and what is refused, said on the node."""
    found = {"image": ["1", 0], "depth": ["1", 1], "photograph": "", **NODE}
    prompt = {
        "1": {"class_type": "LoadBokehDemoPhotograph", "inputs": {"picture": "pug"}},
        "2": {"class_type": "BokehFromPhoto", "inputs": found},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 5]}},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["2", 7]}},
    }
    run = comfy_server.run(prompt)
    assert len(run.images("4")) == 1
    prompt["2"]["inputs"]["source"] = Source.EXIF.value
    with pytest.raises(Exception, match=r"node 2 \(BokehFromPhoto\).*K is not to be had from EXIF"):
        comfy_server.run(prompt)
