"""What is made of one photograph: K, focus, crop, filters. Scenes are a disc before a wall, so all is closed form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bokeh_ops.camera.optics import k_from_camera
from tests.photographs import photograph, pixels
from trainer.data.prepare.annotate import Outcome, look_at
from trainer.data.prepare.focus import focus_from_foreground, typical_blur
from trainer.data.prepare.framing import frame
from trainer.data.prepare.providers import Photograph, Providers, make_providers
from trainer.data.prepare.record import Item
from trainer.data.prepare.rejection import REASONS, Rejected
from trainer.data.prepare.settings import Settings
from trainer.data.sample import Sample, decode_sample

SETTINGS = Settings(resolution=(64, 64), picture="png")


def look(path: Path, providers: Providers | None = None, **settings: Any) -> Outcome:
    chosen = replace(SETTINGS, **settings)
    return look_at(Item(path.name, path), providers or make_providers(chosen), chosen)


def accepted(path: Path, providers: Providers | None = None, **settings: Any) -> Sample:
    outcome = look(path, providers, **settings)
    assert outcome.reason is None, (outcome.reason, outcome.detail)
    assert outcome.files is not None
    return decode_sample(outcome.key, outcome.files, replace(SETTINGS, **settings).resolution)


def reason(path: Path, **settings: Any) -> tuple[str | None, str]:
    outcome = look(path, **settings)
    assert outcome.files is None
    assert outcome.reason in REASONS
    return outcome.reason, outcome.detail


def test_k_by_hand(tmp_path: Path) -> None:
    """Full frame, 50 mm f/2 focused at 1 m: of 36 x 24 mm the square shows 24, at 64 pixels."""
    sample = accepted(photograph(tmp_path / "a.jpg", (384, 256)))
    by_hand = 0.05**2 * 1.0 / (2 * 2.0 * (1.0 - 0.05)) * 64 / 0.024
    assert sample.k == pytest.approx(by_hand, rel=1e-6)
    assert sample.info["s1_m"] == pytest.approx(1.0, rel=1e-5)
    assert sample.info["sensor_width_mm"] == pytest.approx(36)
    assert sample.info["sensor_shown_mm"] == pytest.approx(24)
    assert sample.info["crop"] == [64, 0, 256, 256]
    assert sample.info["blur_px"] == pytest.approx(by_hand * 0.75, rel=1e-3)  # 1/1 m less 1/4 m
    assert sample.captions == ("a disc",)
    assert not sample.all_in_focus
    assert sample.disparity.max() == pytest.approx(1.0, rel=1e-4)
    assert sample.disparity[0, 0] == pytest.approx(0.25, rel=1e-3)
    assert sample.mask[32, 32] == 1
    assert sample.mask[0, 0] == 0


def test_k_does_not_depend_on_the_size_of_the_file(tmp_path: Path) -> None:
    """It is counted at the training resolution, of which the width is that of a part of the sensor."""
    found = [accepted(photograph(tmp_path / f"{w}.jpg", (w, w * 2 // 3))).k for w in (96, 300, 1500)]
    assert found == pytest.approx([found[0]] * 3, rel=1e-3)
    half = accepted(photograph(tmp_path / "r.jpg", (960, 640)), resolution=(128, 128)).k
    assert half == pytest.approx(2 * (found[0] or 0), rel=1e-3)


def test_upright_photographs_use_the_short_side_of_the_sensor(tmp_path: Path) -> None:
    """An upright one and one lying, both square in the end, have the same K; so has one turned by EXIF."""
    lying = accepted(photograph(tmp_path / "l.jpg", (384, 256)))
    standing = accepted(photograph(tmp_path / "s.jpg", (256, 384)))
    assert standing.k == pytest.approx(lying.k)
    path = photograph(tmp_path / "t.jpg", (256, 384))
    stored = Image.fromarray(np.rot90(pixels((256, 384))))  # a quarter turn to the left, which 6 takes back
    with Image.open(path) as image:
        held = image.getexif()
        held[0x112] = 6
        stored.save(path, quality=90, exif=held)
    turned = accepted(path)
    assert turned.k == pytest.approx(lying.k)
    assert np.abs(turned.image.astype(int) - standing.image).mean() < 3


def test_k_of_the_library_and_of_a_wide_resolution(tmp_path: Path) -> None:
    sample = accepted(
        photograph(tmp_path / "a.jpg", (600, 400), focal_length=35.0, f_number=1.4), resolution=(96, 64)
    )
    assert sample.k == pytest.approx(k_from_camera(0.035, 1.4, 1.0, 0.036, 96), rel=1e-5)
    assert sample.image.shape == (64, 96, 3)


@pytest.mark.parametrize("x", [0.2, 0.5, 0.8])
def test_the_crop_follows_the_foreground(tmp_path: Path, x: float) -> None:
    path = photograph(tmp_path / "a.png", (192, 64), centre=(x, 0.5), near=1.0)
    sample = accepted(path, max_aspect=3.0)
    columns = sample.mask.sum(0)
    assert (columns * (np.arange(64) + 0.5)).sum() / columns.sum() == pytest.approx(32, abs=1)
    left = round(x * 192 - 32)
    assert sample.info["crop"] == [left, 0, 64, 64]
    assert np.array_equal(
        sample.image, pixels((192, 64))[:, left : left + 64]
    )  # one cut for picture and maps
    centred = look(path, max_aspect=3.0, crop="centre")
    assert centred.reason == ("foreground_area" if x != 0.5 else None)


def test_a_foreground_at_the_edge(tmp_path: Path) -> None:
    assert frame((192, 64), (64, 64), np.eye(64, 192)).left == 0
    sample = accepted(photograph(tmp_path / "a.png", (128, 64), centre=(0.05, 0.5)))
    assert sample.info["crop"][0] == 0
    reason_, detail = reason(photograph(tmp_path / "b.png", (128, 64), centre=(0.2, 0.5)), crop="centre")
    assert reason_ in ("foreground_cut", "foreground_area"), detail


def test_focus_of_a_flat_and_of_a_deep_foreground() -> None:
    """1.0 to 1.1 m counts as one distance; of 1 to 3 m the nearest quarter does."""
    mask = np.zeros((10, 100), np.float32)
    mask[:5] = 1
    depth = np.full((10, 100), 8.0)
    depth[:5] = np.linspace(1.0, 1.1, 100)
    flat = focus_from_foreground(1 / depth, mask)
    assert flat.flat
    assert flat.distance == pytest.approx(1.05, rel=1e-3)
    depth[:5] = np.linspace(1.0, 3.0, 100)
    deep = focus_from_foreground(1 / depth, mask)
    assert not deep.flat
    assert deep.distance == pytest.approx(1.25, rel=0.02)  # the middle of the nearest quarter, 1 to 1.5 m
    assert deep.foreground_range == pytest.approx(2.9 / 1.1, rel=0.02)
    assert focus_from_foreground(1 / depth, mask, nearest=1.0).distance == pytest.approx(2.0, rel=0.02)
    assert focus_from_foreground(1 / depth, mask, flat=3.0).distance == pytest.approx(2.0, rel=0.02)
    for disparity, spoilt in ((1 / depth, mask * 0), (depth * 0, mask)):
        with pytest.raises(Rejected):
            focus_from_foreground(disparity, spoilt)


def test_sky_in_the_foreground_is_no_error() -> None:
    disparity = np.zeros((10, 10))
    disparity[:5] = 1.0
    focus = focus_from_foreground(disparity, np.ones((10, 10), np.float32))
    assert focus.distance == 1.0
    assert not focus.flat


def test_typical_blur() -> None:
    assert typical_blur(np.full((4, 4), 0.25), k=10, focus=1.0) == pytest.approx(7.5)
    assert typical_blur(np.array([[1.0] * 99 + [50.0]]), k=10, focus=1.0) == 0  # a hundredth does not count


def test_all_in_focus(tmp_path: Path) -> None:
    sharp = {"f_number": 16.0, "focal_length": 24.0}
    assert accepted(photograph(tmp_path / "a.jpg", **sharp)).all_in_focus
    assert accepted(photograph(tmp_path / "b.jpg", exposure_time=0.01, **sharp)).all_in_focus
    assert not accepted(photograph(tmp_path / "c.jpg", exposure_time=0.5, **sharp)).all_in_focus
    assert not accepted(photograph(tmp_path / "d.jpg", **sharp), sharp_radius=0.01).all_in_focus
    for told in (True, False):
        path = photograph(tmp_path / f"{told}.jpg", **sharp)
        path.with_suffix(".json").write_text(f'{{"pseudo_aif": {str(told).lower()}}}')
        sample = accepted(path)
        assert (sample.all_in_focus, sample.info["all_in_focus_by"]) == (told, "given")


@pytest.mark.parametrize("settings", [{}, {"max_k": 1.0}])
def test_a_lens_that_contradicts_what_is_told_to_be_sharp(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Contrastive sets are rendered from it; in the wild it would teach that K 1.75 is sharp."""
    path = photograph(tmp_path / "a.jpg")
    k = accepted(path).k
    assert k is not None
    assert accepted(path).info["blur_px"] > 1
    path.with_suffix(".json").write_text('{"pseudo_aif": true}')
    sample = accepted(path, **settings)
    assert sample.all_in_focus
    assert sample.k is None
    assert sample.info["k_by_lens"] == pytest.approx(k)
    assert accepted(path, sharp_radius=1.5).k == k  # where that much counts as sharp, nothing is contradicted
    path.with_suffix(".json").write_text('{"pseudo_aif": false}')
    assert accepted(path).k == k


def test_what_is_told_to_be_sharp_needs_no_lens(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.jpg", make="", model="", f_number=0.0)
    assert reason(path)[0] == "no_lens_data"
    path.with_suffix(".json").write_text('{"pseudo_aif": true, "source": "me", "license": "CC0"}')
    sample = accepted(path)
    assert sample.k is None
    assert sample.all_in_focus
    assert (sample.info["source"], sample.info["licence"]) == ("me", "CC0")


def test_subject_distance_when_asked_for(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.jpg", subject_distance=2.0)
    assert accepted(path).info["s1_by"] == "foreground"
    sample = accepted(path, subject_distance=True)
    assert (sample.info["s1_m"], sample.info["s1_by"]) == (2.0, "SubjectDistance")
    assert accepted(photograph(tmp_path / "b.jpg"), subject_distance=True).info["s1_m"] == pytest.approx(1.0)


def test_depth_in_other_meanings(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.jpg")
    metres = np.load(path.with_suffix(".depth.npy"))
    wanted = accepted(path)
    for kind, scale, values, more in (
        ("metric", 1000.0, metres / 1000, {}),
        ("disparity", 2.0, 1 / metres / 2, {}),
        ("disparity", 2.0, 1 / metres / 2 - 0.05, {"depth_offset": 0.1}),
        ("inverted", 2.0, 1 - 1 / metres / 2, {}),
    ):
        np.save(path.with_suffix(".depth.npy"), values.astype(np.float32))
        found = accepted(path, depth_kind=kind, depth_scale=scale, **more)
        assert np.allclose(found.disparity, wanted.disparity, atol=1e-4)
        assert found.k == pytest.approx(wanted.k, rel=1e-4)
    np.save(path.with_suffix(".depth.npy"), (7 / metres).astype(np.float32))
    stretched = accepted(path, depth_kind="disparity", depth_scale=3.0, depth_normalise=True)
    assert float(stretched.disparity.max()) == pytest.approx(3.0, rel=1e-4)


@pytest.mark.parametrize("ending", ["png", "tif", "npy", "exr"])
def test_depth_files(tmp_path: Path, ending: str) -> None:
    path = photograph(tmp_path / "a.jpg")
    metres = np.load(path.with_suffix(".depth.npy"))
    path.with_suffix(".depth.npy").unlink()
    target, scale = path.with_suffix(f".depth.{ending}"), 1.0
    if ending == "png":
        scale = 65.535
        Image.fromarray(np.rint(metres * 1000).astype(np.uint16)).save(target)
    elif ending == "exr":
        openexr = pytest.importorskip("OpenEXR")
        header = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}
        openexr.File(header, {"Z": metres}).write(str(target))
    elif ending == "tif":
        Image.fromarray(metres).save(target)
    else:
        np.save(target, metres[None])
    sample = accepted(path, depth_scale=scale)
    assert sample.disparity.max() == pytest.approx(1.0, rel=1e-4)
    assert sample.disparity.min() == pytest.approx(0.25, rel=1e-3)


def test_names_by_a_pattern(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.jpg")
    (tmp_path / "maps").mkdir()
    path.with_suffix(".depth.npy").rename(tmp_path / "maps" / "a_d.npy")
    assert reason(path) == ("no_depth", "there is no NAME.depth.png beside it")
    assert accepted(path, depth="files:maps/{stem}_d.npy").k is not None
    assert reason(path, depth="files:{stem}_x.npy") == ("no_depth", "there is no {stem}_x.npy beside it")


def spoil(path: Path, name: str, values: Any) -> Path:
    np.save(path.with_suffix(f".{name}.npy"), values)
    (path.with_suffix(f".{name}.png")).unlink(missing_ok=True)
    return path


@pytest.mark.parametrize(
    ("wanted", "photo", "settings"),
    [
        ("too_small", {"size": (96, 60)}, {}),
        ("too_small", {"size": (1, 1), "maps": False}, {}),
        ("panorama", {"size": (320, 64)}, {}),
        ("no_depth", {"maps": False}, {}),
        ("no_captions", {"caption": None}, {}),
        ("depth_range", {"near": 3.9, "far": 4.0}, {}),
        ("foreground_area", {}, {"min_foreground": 0.5}),
        ("foreground_area", {}, {"max_foreground": 0.1}),
        ("k_range", {"f_number": 1.2, "focal_length": 200.0}, {}),
        ("focus", {"near": 0.04, "far": 1.0}, {}),
        ("no_lens_data", {"f_number": 0.0}, {}),
        ("smartphone", {"make": "Apple", "model": "iPhone 8"}, {}),
        ("rendered_blur", {"custom_rendered": 7}, {}),
        ("cropped", {"width": 4000, "height": 4000}, {}),
        ("bad_depth", {}, {"depth_scale": 0.001}),
    ],
)
def test_filters(tmp_path: Path, wanted: str, photo: dict[str, Any], settings: dict[str, Any]) -> None:
    name = "a.png" if photo.get("size") == (1, 1) else "a.jpg"
    found, detail = reason(photograph(tmp_path / name, **photo), **settings)
    assert found == wanted, detail
    assert detail


def test_maps_that_cannot_be_used(tmp_path: Path) -> None:
    metres = np.ones((64, 96), np.float32)
    for number, values in enumerate(
        (
            metres * np.nan,
            metres * 0,
            -metres,
            np.ones((64, 64), np.float32),
            np.ones((3, 4, 5)),
            np.array(["a"]),
        )
    ):
        path = spoil(photograph(tmp_path / f"{number}.jpg"), "depth", values)
        assert reason(path)[0] == "bad_depth", number
    for number, values in enumerate(
        (metres * np.nan, metres * 3, -metres, np.ones((64, 64)), np.ones((2, 3, 4)))
    ):
        path = spoil(photograph(tmp_path / f"m{number}.jpg"), "mask", values)
        assert reason(path)[0] == "bad_mask", number
    path = photograph(tmp_path / "t.jpg")
    path.with_suffix(".mask.png").write_bytes(path.with_suffix(".mask.png").read_bytes()[:60])
    assert reason(path)[0] == "bad_mask"
    path.with_suffix(".depth.npy").write_bytes(b"\x93NUMPY" + b"\xff" * 50)
    assert reason(path)[0] == "bad_depth"
    path.with_suffix(".mask.png").unlink()
    spoil(path, "depth", metres)
    assert reason(path)[0] == "no_mask"


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.jpg")
    np.save(path.with_suffix(".depth.npy"), np.array([{"a": 1}], dtype=object), allow_pickle=True)
    found, detail = reason(path)
    assert found == "bad_depth"
    assert "Python objects" in detail


@pytest.mark.parametrize(
    "text", ["{", "[1]", "[" * 50_000, '{"f_number": "fast"}', '{"f_number": [2]}', "\xff"]
)
def test_data_beside_it_that_cannot_be_used(tmp_path: Path, text: str) -> None:
    path = photograph(tmp_path / "a.jpg")
    path.with_suffix(".json").write_text(text, encoding="latin-1")
    assert reason(path)[0] == "bad_fields"


def test_captions_of_all_kinds(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.jpg", caption="\ufeffone\n\n  two \none\n")
    path.with_suffix(".json").write_text('{"captions": ["three", "", 5], "caption": "two"}')
    assert accepted(path).captions == ("three", "two", "one")
    assert accepted(path, captions=("none",)).captions == ()
    path.with_suffix(".txt").write_bytes(b"\xff\xfe\x00")
    assert reason(path)[0] == "bad_fields"


def test_texts_that_are_no_unicode(tmp_path: Path) -> None:
    """Half a character in JSON, and a file name of another century."""
    path = photograph(tmp_path / "a.jpg")
    path.with_suffix(".json").write_text('{"captions": ["half \\ud83d"], "source": "\\udcff"}')
    outcome = look_at(Item("\udcff.jpg", path), make_providers(SETTINGS), SETTINGS)
    assert outcome.info is not None
    assert outcome.info["captions"][0] == "half ?"
    assert (outcome.info["id"], outcome.info["source"]) == ("?.jpg", "?")
    assert outcome.files is not None


def test_plug_ins(tmp_path: Path) -> None:
    """They see the photograph upright and reduced, with its focal length in pixels; their errors are its reason."""
    seen: list[Photograph] = []

    def depth(photo: Photograph) -> np.ndarray:
        seen.append(photo)
        return np.load(path.with_suffix(".depth.npy"))

    def fails(photo: Photograph) -> Any:
        raise ZeroDivisionError("of mine")

    path = photograph(tmp_path / "a.jpg", (384, 256))
    given = make_providers(SETTINGS)
    sample = accepted(path, replace(given, depth=depth, captions=(lambda photo: ["seen by a plug-in"],)))
    assert sample.captions == ("seen by a plug-in",)
    assert seen[0].image.size == (96, 64)
    assert seen[0].focal_px == pytest.approx(50 / 36 * 96)
    assert seen[0].disparity is None
    for spoilt in (
        replace(given, depth=fails),
        replace(given, mask=fails),
        replace(given, captions=(fails,)),
    ):
        outcome = look(path, spoilt)
        assert outcome.reason == "provider_failed"
        assert "ZeroDivisionError: of mine" in outcome.detail


def test_nearest_is_a_mask_of_the_depth(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.jpg")
    path.with_suffix(".mask.png").unlink()
    assert reason(path)[0] == "no_mask"
    sample = accepted(path, mask="nearest")
    assert sample.mask.mean() == pytest.approx(np.pi / 16, rel=0.05)  # the disc
    assert accepted(path, mask="nearest:,ratio=5", max_foreground=1.0).mask.min() == 1


def test_pictures_are_kept_as_they_were(tmp_path: Path) -> None:
    """At the training resolution already: pixel for pixel in a PNG, nearly so in a JPEG."""
    path = photograph(tmp_path / "a.png", (64, 64), seed=8)
    assert np.array_equal(accepted(path).image, pixels((64, 64), 8))
    found = accepted(path, picture="jpg").image
    assert 0 < np.abs(found.astype(int) - pixels((64, 64), 8)).mean() < 2


def test_the_result_depends_on_nothing_else(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.jpg")
    first, again = look(path), look(path)
    assert first == again
    assert first.key.startswith("a-")
    (tmp_path / "b").mkdir()
    moved = photograph(tmp_path / "b" / "a.jpg")
    assert look(moved).files == first.files  # named the same, from elsewhere
