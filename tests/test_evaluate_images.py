"""``python -m trainer evaluate images`` on sweeps made here."""

from __future__ import annotations

import json
import math
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bokeh_ops.errors import BokehError
from tests.onnx_files import field, onnx_file
from trainer.cli import main
from trainer.measure.metrics import blur_monotonicity, energy, laplacian_variance, mean_lab
from trainer.measure.segment import load_segmenter
from trainer.measure.sweeps import find_sweeps, match_reference, read_picture

KS = (0, 4, 12.5, 30)


def evaluate(*words: object) -> int:
    return main(["evaluate", "images", *map(str, words)])


def blurred(seed: int, k: float, size: int = 48) -> np.ndarray:
    """Noise blurred by a Gaussian whose deviation grows with K, in the Fourier domain, so that the mean stays."""
    rng = np.random.default_rng(seed)
    picture = np.clip(0.5 + 0.25 * rng.standard_normal((3, size, size)), 0, 1)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    spectrum = np.fft.fft2(picture) * np.exp(-2 * (math.pi * frequency * k / 10) ** 2)
    return np.clip(np.fft.ifft2(spectrum).real, 0, 1)


def save(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture.transpose(1, 2, 0) * 255).round().astype(np.uint8)).save(path)


TWO = '{"images": [{"file": "a.png", "k": 1}, {"file": "a.png", "k": 2}]}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(3):
        for k in KS:
            save(tmp_path / "sweeps" / f"scene_{seed}" / f"k{k:g}.png", blurred(seed, k))
    return tmp_path / "sweeps"


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# ---- the command ----


def test_a_named_pivot_is_what_the_others_are_held_against(tmp_path: Path) -> None:
    focus = np.zeros((3, 48, 48))
    focus[:, :, :24] = 1
    images = [{"file": f"{k}.png", "k": k} for k in (0, 8, 14)]
    for name in ("sweeps", "references"):
        scene = tmp_path / name / "scene"
        for k in (0, 8, 14):
            save(
                scene / f"{k}.png",
                np.where(focus > 0, 0.5 + (k == 14) * (name == "sweeps") * 0.1, blurred(1, k)),
            )
        save(scene / "focus.png", focus)
        text = json.dumps(
            {"images": images, "focus": "focus.png", **({"pivot": 8} if name == "sweeps" else {})}
        )
        (scene / "sweep.json").write_text(text)
    file = tmp_path / "out.json"
    words = (tmp_path / "sweeps", "--reference", tmp_path / "references", "--json", file)
    assert evaluate(*words) == 0
    (scene,) = load(file)["runs"][0]["scenes"]
    assert (scene["sharper"], scene["blurrier"], scene["ordered"]) == (1, 1, 1)
    assert scene["focus_dE"] == pytest.approx(9.6 / 2, abs=0.3)  # L* from 53.4 to 63.2, in one picture of two
    assert scene["focus_dE_ref"] == 0
    # A picture of its own, as bright as the one that was not.
    save(tmp_path / "sweeps" / "scene" / "pivot.png", np.where(focus > 0, 0.6, blurred(1, 8)))
    assert evaluate(*words) == 0
    (again,) = load(file)["runs"][0]["scenes"]
    assert again["focus_dE"] == pytest.approx(9.6 / 2, abs=0.3)
    (sweep,) = find_sweeps(tmp_path / "sweeps")
    save(tmp_path / "sweeps" / "scene" / "pivot.png", blurred(1, 8, 32))
    with pytest.raises(BokehError, match=r"pivot.png is 32 x 32 but the pictures are 48 x 48"):
        sweep.load_pivot()
    assert evaluate(*words) == 1
    assert sweep.pivot == (8, tmp_path / "sweeps" / "scene" / "pivot.png")


def test_a_good_sweep_is_good(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "out.json"
    assert evaluate(folder, "--reference", folder, "--json", file) == 0
    (run,) = load(file)["runs"]
    assert [scene["scene"] for scene in run["scenes"]] == ["scene_0", "scene_1", "scene_2"]
    for scene in run["scenes"]:
        assert scene["values"] == list(KS)
        for name in ("lvcorr", "lvcorr_diff", "lv_rank", "monotonic", "monotonic_ref", "monotonic_even"):
            assert scene[name] == pytest.approx(1), name
        assert scene["drift_L"] < 5
        assert scene["lpips"] == pytest.approx(scene["lpips_ref"])
        pictures = [read_picture(folder / scene["scene"] / f"k{k:g}.png") for k in KS]
        assert scene["laplacian_variance"] == [laplacian_variance(picture) for picture in pictures]
        assert scene["energy"] == [energy(picture) for picture in pictures]
        assert scene["lab"] == [pytest.approx(mean_lab(picture)) for picture in pictures]
    summary = run["summary"]["lpips"]
    assert summary["low"] <= summary["mean"] <= summary["high"]
    assert summary["mean"] == pytest.approx(sum(scene["lpips"] for scene in run["scenes"]) / 3)
    printed = capsys.readouterr().out
    assert "95 % from" in printed
    assert "judge" not in printed  # columns without a figure are left out


def test_what_is_wrong_is_seen(folder: Path, tmp_path: Path) -> None:
    """Blur the wrong way round; a sweep that only darkens; one that turns red."""
    for seed in range(2):
        for k in KS:
            name = f"scene_{seed}/k{k:g}.png"
            save(tmp_path / "reversed" / name, blurred(seed, 30 - k))
            save(tmp_path / "darkened" / name, blurred(seed, 0) * (1 - k / 60))
            red = blurred(seed, k)
            red[0] = np.clip(red[0] + k / 100, 0, 1)
            save(tmp_path / "red" / name, red)
    file = tmp_path / "out.json"
    folders = [tmp_path / name for name in ("reversed", "darkened", "red")]
    assert evaluate(*folders, "--reference", folder, "--json", file) == 0
    wrong, dark, red = (
        {name: each["mean"] for name, each in run["summary"].items()} for run in load(file)["runs"]
    )
    assert wrong["lvcorr"] < -0.3
    assert wrong["lv_rank"] == pytest.approx(-1)
    assert wrong["monotonic"] == 0
    # Darkness passes for blur by energy, but not once brightness is brought to one level.
    assert dark["monotonic"] == 1
    assert dark["monotonic_even"] < 0.7
    assert dark["drift_L"] > 15
    assert red["drift_ab"] > 20 > 3 > dark["drift_ab"]
    assert red["lv_rank"] == pytest.approx(1)


def test_lpips_of_pairs_and_of_neighbours(folder: Path, tmp_path: Path) -> None:
    from trainer.measure.metrics.weights import load_lpips

    model = load_lpips()
    if model is None:
        pytest.skip("no weights of LPIPS")
    file = tmp_path / "out.json"
    assert evaluate(folder / "scene_0", "--content-limit", "12.5", "--json", file) == 0
    (scene,) = load(file)["runs"][0]["scenes"]
    p = [read_picture(folder / "scene_0" / f"k{k:g}.png")[None] for k in KS]
    distance = {(i, j): float(model(p[i], p[j])) for i in range(4) for j in range(4)}
    pairs = [distance[i, j] for i in range(4) for j in range(i)]
    assert scene["lpips"] == pytest.approx(sum(pairs) / 6, rel=1e-4)
    assert scene["lpips_next"] == pytest.approx((distance[0, 1] + distance[1, 2]) / 2, rel=1e-4)


def test_apertures_run_the_other_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
        import numpy
        called = []
        def always(picture):
            called.append(picture.shape)
            return numpy.ones(picture.shape[:2], numpy.int64)
    """
    (tmp_path / "my_segmenter.py").write_text(textwrap.dedent(code))
    monkeypatch.chdir(tmp_path)  # modules are looked for in the current folder
    for f, k in ((1.8, 30), (2.8, 20), (4, 10), (16, 0)):
        save(tmp_path / "scene" / f"f{f:g}.png", blurred(0, k))
    file = tmp_path / "out.json"
    assert evaluate(tmp_path / "scene", "--json", file, "--segmenter", "my_segmenter:always") == 0
    (scene,) = load(file)["runs"][0]["scenes"]
    assert scene["values"] == [16, 4, 2.8, 1.8]  # the sharpest first
    assert (scene["monotonic"], scene["lv_rank"]) == (1, pytest.approx(1))
    assert blur_monotonicity(scene["energy"]) == 0
    assert scene["content"] == 1
    assert sys.modules.pop("my_segmenter").called == [(48, 48, 3)] * 2  # content from f/4 on, unless told
    assert str(tmp_path) not in sys.path


def test_plots(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert evaluate(folder, "--reference", folder, "--plots", tmp_path / "plots") == 0
    for name in ("trends.png", "figures.png"):
        with Image.open(tmp_path / "plots" / name) as plot:
            assert plot.width > 400
            assert len(plot.convert("RGB").getcolors(1 << 20) or []) > 50


# ---- what is in a folder ----


@pytest.mark.parametrize(
    ("names", "kind", "values"),
    [
        (["0.png", "12.5.jpg", "3.webp"], "k", (0, 3, 12.5)),
        (["k0.png", "K=4.png", "k_30.png"], "k", (0, 4, 30)),
        (["fox_k12.png", "the-fox-k8.png", "my fox K 9.png"], "k", (8, 9, 12)),
        (["f1.8.png", "F16.png", "x_f_2.8.png"], "f_number", (16, 2.8, 1.8)),
    ],
)
def test_names_say_how_blurred(
    tmp_path: Path, names: list[str], kind: str, values: tuple[float, ...]
) -> None:
    for name in names:
        save(tmp_path / name, blurred(0, 0, 16))
    (sweep,) = find_sweeps(tmp_path)
    assert (sweep.kind, sweep.values) == (kind, values)
    assert len(sweep.load()) == len(names)


def test_a_list_says_how_blurred(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "unlisted.png"):
        save(tmp_path / "s" / name, blurred(0, 0, 16))
    images = [{"file": "b.png", "k": 20}, {"file": "a.png", "k": 0.5}]
    (tmp_path / "s" / "sweep.json").write_text(json.dumps({"images": images}))
    (sweep,) = find_sweeps(tmp_path)
    assert (sweep.name, sweep.values) == ("s", (0.5, 20.0))
    assert [path.name for path in sweep.paths] == ["a.png", "b.png"]
    assert sweep.labels == ["K 0.5", "K 20"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["IMG_0001.png", "IMG_0002.png"], "does not say at which K"),
        (["k-5.png", "k5.png"], "does not say at which K"),
        (["k1.png", "f2.png"], "counts blur in K and in f-numbers"),
        (["k1.png", "K_1.png"], "several pictures at K1"),
        (["k1.png"], "holds one picture"),
        ([".hidden.png", "notes.txt"], "holds neither folders nor pictures"),
    ],
)
def test_folders_that_are_no_sweep(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        if name.endswith("png"):
            save(tmp_path / name, blurred(0, 0, 16))
        else:
            (tmp_path / name).write_text("x")
    with pytest.raises(BokehError, match=message):
        find_sweeps(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", 'expected {"images"'),
        ('{"images": [{"file": "a.png"}]}', "either k or f_number"),
        ('{"images": [{"file": "a.png", "k": "1"}]}', "either k or f_number"),
        ('{"images": [{"file": "a.png", "k": 1, "f_number": 2}]}', "either k or f_number"),
        ('{"images": [{"file": "a.png", "k": NaN}]}', "either k or f_number"),
        ('{"images": [{"file": "../a.png", "k": 1}]}', "lies outside the folder"),
        ('{"images": [{"file": "b.png", "k": 1}]}', "there is no file 'b.png'"),
        (TWO[:-1] + ', "pivot": "x"}', "pivot is 'x'; expected a number"),
        (TWO[:-1] + ', "pivot": 7}', "the pivot is at 7, but no picture is"),
    ],
)
def test_lists_that_are_none(tmp_path: Path, content: str, message: str) -> None:
    save(tmp_path / "s" / "a.png", blurred(0, 0, 16))
    save(tmp_path / "a.png", blurred(0, 0, 16))
    (tmp_path / "s" / "sweep.json").write_text(content)
    with pytest.raises(BokehError, match=message):
        find_sweeps(tmp_path / "s")


def test_references_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    sweeps = find_sweeps(folder)
    assert match_reference(sweeps[1], sweeps) == sweeps[1]
    (folder / "scene_2" / "k4.png").rename(folder / "scene_2" / "k5.png")
    with pytest.raises(
        BokehError, match=r"has K 0, K 4, K 12\.5, K 30 but its reference K 0, K 5, K 12\.5, K 30"
    ):
        match_reference(sweeps[2], find_sweeps(folder))
    with pytest.raises(BokehError, match="no scene named 'scene_0'"):
        match_reference(sweeps[0], sweeps[1:])


def test_pictures_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "k0.png", blurred(0, 0, 16))
    save(tmp_path / "k1.png", blurred(0, 0, 18))
    assert evaluate(tmp_path) == 1
    assert "k1.png is 18 x 18 but k0.png is 16 x 16" in capsys.readouterr().err
    whole = (tmp_path / "k0.png").read_bytes()
    (tmp_path / "k1.png").write_bytes(whole[: len(whole) // 2])
    assert evaluate(tmp_path) == 1
    assert "k1.png cannot be read as a picture" in capsys.readouterr().err
    Image.fromarray(np.zeros((16, 16), np.uint16)).save(tmp_path / "k1.png")
    assert evaluate(tmp_path) == 1
    assert "expected 8 bits a channel" in capsys.readouterr().err
    assert evaluate(tmp_path / "nothing") == 1


def test_pictures_as_they_are_read(tmp_path: Path) -> None:
    turned = Image.new("RGB", (20, 10), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(tmp_path / "a.jpg").shape == (3, 20, 10)
    Image.new("RGBA", (4, 4), (255, 255, 255, 0)).save(tmp_path / "b.png")
    assert torch.allclose(read_picture(tmp_path / "b.png"), torch.tensor(128 / 255))
    Image.new("L", (4, 4), 51).save(tmp_path / "c.png")
    assert torch.allclose(read_picture(tmp_path / "c.png"), torch.tensor(0.2))


# ---- segmenters ----


def by_brightness(picture: np.ndarray) -> np.ndarray:
    return (picture.mean(-1) > 127).astype(np.int32)


def nonsense(picture: np.ndarray) -> np.ndarray:
    return picture.astype(np.float32)


def test_a_function_as_segmenter(tmp_path: Path) -> None:
    left, right = np.zeros((3, 20, 20)), np.zeros((3, 20, 20))
    left[:, :, :10] = 1
    right[:, :, :15] = 1
    for k, picture in enumerate((left, right)):
        save(tmp_path / "s" / f"k{k}.png", picture)
    file = tmp_path / "out.json"
    words = ["--segmenter", "tests.test_evaluate_images:by_brightness", "--json", file]
    assert evaluate(tmp_path, *words) == 0
    small = load(file)["runs"][0]["scenes"][0]
    assert small["content"] == 0.75
    assert "lpips" not in small  # its network would have nothing left of so small a picture
    save(tmp_path / "s" / "k0.png", np.repeat(np.repeat(left, 2, 1), 2, 2))
    save(tmp_path / "s" / "k1.png", np.repeat(np.repeat(right, 2, 1), 2, 2))
    assert evaluate(tmp_path, *words) == 0
    assert load(file)["runs"][0]["scenes"][0]["content"] == 0.75


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "neither module:function nor an .onnx file"),
        ("no_such_module:f", "cannot be imported"),
        ("tests.test_evaluate_images:no_such", "has no function 'no_such'"),
        ("nothing.onnx", "There is no ONNX file nothing.onnx"),
    ],
)
def test_segmenters_that_are_not_there(name: str, message: str) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(BokehError, match=message):
        load_segmenter(name)


def test_a_segmenter_that_returns_nonsense() -> None:
    segment = load_segmenter("tests.test_evaluate_images:nonsense")
    with pytest.raises(BokehError, match=r"returned float32 \(8, 8, 3\) for a picture of \(8, 8\)"):
        segment(torch.zeros(3, 8, 8))


def onnx_classifier(path: Path, size: tuple[int, int] | None) -> None:
    """An ONNX file with one 1 x 1 convolution: scores of four classes, red, green, blue and their mean."""

    def shape(channels: int) -> bytes:
        sides = [field(1, 1), field(1, channels)]
        sides += [field(1, side) for side in size] if size else [field(2, b"h"), field(2, b"w")]
        return field(1, field(1, 1) + field(2, b"".join(field(1, side) for side in sides)))

    weights = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.3, 0.3, 0.3]], np.float32)
    node = field(1, b"x") + field(1, b"w") + field(2, b"y") + field(4, b"Conv")
    dims = b"".join(field(1, side) for side in (4, 3, 1, 1))
    tensor = dims + field(2, 1) + field(8, b"w") + field(9, weights.tobytes())
    ends = field(11, field(1, b"x") + field(2, shape(3))) + field(12, field(1, b"y") + field(2, shape(4)))
    onnx_file(path, field(1, node), field(5, tensor), ends)


@pytest.mark.parametrize("size", [None, (32, 64)])
def test_an_onnx_file_as_segmenter(tmp_path: Path, size: tuple[int, int] | None) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "classes.onnx"
    onnx_classifier(path, size)
    picture = torch.zeros(3, 40, 50)
    picture[0, :, :25] = 1
    picture[1, :, :25] = 0.5
    picture[2, :, 25:] = 1
    plain = {"scale": 255, "mean": [0, 0, 0], "std": [1, 1, 1]}
    path.with_suffix(".json").write_text(json.dumps(plain))
    classes = load_segmenter(str(path))(picture)
    assert classes.shape == (3, 40, 50)
    assert classes[:, 20, 5].tolist() == [0, 1, 3]
    assert classes[0, 20, 45] == 2
    # A mean that turns red into the least likely.
    path.with_suffix(".json").write_text(json.dumps({**plain, "mean": [2, 0, 0], "size": [32, 64]}))
    assert load_segmenter(str(path))(picture)[:, 20, 5].tolist() == [1, 2, 3]
    for broken in ('{"mean": 1}', '{"means": [1, 2, 3]}', "[]", "{", '{"scale": 0}', '{"size": [1.5, 2]}'):
        path.with_suffix(".json").write_text(broken)
        with pytest.raises(BokehError, match=r"classes\.json"):
            load_segmenter(str(path))
    path.write_bytes(b"<html>")
    path.with_suffix(".json").unlink()
    with pytest.raises(BokehError, match="cannot be loaded as an ONNX network"):
        load_segmenter(str(path))
