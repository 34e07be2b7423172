"""The main thing by networks of others: small ones of ``transformers`` that segment, and ONNX files of one node."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from bokeh_ops.depth.main_thing import find_main_thing, read_finder
from bokeh_ops.errors import BokehError
from tests import depth_models
from tests.onnx_files import mean_network
from tests.segmenters import mobilevit, segformer

PLAIN = {"scale": 255, "mean": [0, 0, 0], "std": [1, 1, 1]}


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """``[1, 3, H, W]``, of 8 bits."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (1, 3, height, width)) / 255).float()


def saliency(path: Path, pictures: torch.Tensor) -> torch.Tensor:
    """``[B, H, W]`` of a file or folder; the scale is 1."""
    found, scale = find_main_thing(read_finder(path), pictures)
    assert scale.tolist() == [1.0] * len(pictures)
    assert found.shape == (len(pictures), *pictures.shape[2:])
    return found


# ---- folders of transformers ----


def test_what_is_not_background(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    network, processor = segformer(tmp_path, ["cat", "BackGround", "dog"])
    shown = picture(32, 32)  # the network's shape, so that nothing is resized on its way in
    found = saliency(tmp_path, shown)
    image = Image.fromarray((shown[0].movedim(0, -1) * 255).round().byte().numpy())
    with torch.no_grad():
        logits = network(**processor(images=image, return_tensors="pt")).logits
    expected = F.interpolate(logits.softmax(1)[:, [0, 2]].sum(1, keepdim=True), (32, 32), mode="bilinear")
    torch.testing.assert_close(found, expected[0], rtol=1e-4, atol=1e-5)
    assert float(found.std()) > 0.05


def test_one_channel_is_the_saliency(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    network, processor = segformer(tmp_path, ["thing"])
    shown = picture(32, 32)
    image = Image.fromarray((shown[0].movedim(0, -1) * 255).round().byte().numpy())
    with torch.no_grad():
        logits = network(**processor(images=image, return_tensors="pt")).logits
    expected = F.interpolate(logits.sigmoid(), (32, 32), mode="bilinear")[0]
    torch.testing.assert_close(saliency(tmp_path, shown), expected, rtol=1e-4, atol=1e-5)


def test_pictures_of_every_size_and_kind(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    segformer(tmp_path, ["void", "thing"])
    for height, width in ((1, 1), (3, 70), (70, 3), (1, 40), (90, 41)):
        assert bool(torch.isfinite(saliency(tmp_path, picture(height, width))).all())
    # Three rows are no three channels: the same colours over more rows are seen alike.
    rows = picture(1, 64).expand(-1, -1, 3, -1)
    more = saliency(tmp_path, rows.repeat_interleave(4, 2).repeat_interleave(4, 3))
    torch.testing.assert_close(
        F.interpolate(more[None], (3, 64), mode="bilinear", antialias=True)[0],
        saliency(tmp_path, rows),
        rtol=0,
        atol=0.02,
    )
    three = torch.cat([picture(20, 30, seed) for seed in range(3)])
    together = saliency(tmp_path, three)
    for row in range(3):
        assert torch.equal(together[row : row + 1], saliency(tmp_path, three[row : row + 1]))
    alpha = torch.cat([three, torch.zeros(3, 1, 20, 30)], 1)
    assert torch.equal(saliency(tmp_path, alpha), together)
    grey = three[:, :1]
    assert torch.equal(saliency(tmp_path, grey), saliency(tmp_path, grey.expand(-1, 3, -1, -1)))


def test_depth_is_not_looked_at(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    segformer(tmp_path, ["unlabeled", "thing"])
    shown, network = picture(20, 30), read_finder(tmp_path)
    found, _ = find_main_thing(network, shown, torch.rand(1, 1, 5, 8))
    assert torch.equal(found, find_main_thing(network, shown)[0])
    with pytest.raises(BokehError, match="There are 2 depth maps for 1 images"):
        find_main_thing(network, shown, torch.rand(2, 1, 5, 8))


def test_the_rim_is_seen_where_the_processor_would_cut_it_off(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    mobilevit(tmp_path, ["background", "thing"])
    network = read_finder(tmp_path)
    seen: list[torch.Tensor] = []
    module: torch.nn.Module = network.network  # type: ignore[attr-defined]
    module.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["pixel_values"]), with_kwargs=True
    )
    shown = torch.zeros(1, 3, 64, 128)
    shown[..., :16] = 1  # an eighth of the width, which a square in the middle does not hold
    find_main_thing(network, shown)
    assert seen[0].shape == (1, 3, 64, 64)
    assert float(seen[0][..., :6].min()) > 0.9
    assert float(seen[0][..., 12:].max()) < 0.1


def test_no_background(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    segformer(tmp_path / "few", ["wall", "sky"])
    with pytest.raises(
        BokehError, match=r"few has no label for the background.*it has wall, sky; expected one"
    ):
        read_finder(tmp_path / "few")
    segformer(tmp_path / "many", [f"l{index}" for index in range(20)])
    with pytest.raises(
        BokehError, match=r"l10, l11 and 8 more; expected one called background, unlabeled, void"
    ):
        read_finder(tmp_path / "many")


def test_folders_that_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = tmp_path / "model"
    depth_models.make("glpn", folder)
    with pytest.raises(
        BokehError, match=r"another task: its kind is 'glpn'\. Expected a model for semantic seg"
    ):
        read_finder(folder)
    depth_models.make("dpt", folder)
    with pytest.raises(
        BokehError, match=r"another task: it is a DPTForDepthEstimation\. Expected .*: segformer"
    ):
        read_finder(folder)
    segformer(folder, ["background", "thing"])
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-9])
    with pytest.raises(BokehError, match=r"cannot be loaded for semantic-segmentation: .* download it again"):
        read_finder(folder)
    weights.unlink()
    with pytest.raises(
        BokehError, match=r"not whole and cannot be loaded for semantic-segmentation: model\.saf"
    ):
        read_finder(folder)
    weights.write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": None}))
    with pytest.raises(BokehError, match=r"names no model_type.* of BiRefNet and RMBG take the \.onnx file"):
        read_finder(folder)


def test_a_network_that_puts_out_nan(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    network, _ = segformer(tmp_path, ["background", "thing"])
    with torch.no_grad():
        network.decode_head.classifier.bias[0] = torch.nan
    network.save_pretrained(tmp_path)
    with pytest.raises(BokehError, match="put out NaN or infinity for a picture"):
        saliency(tmp_path, picture(8, 8))


# ---- ONNX files ----


@pytest.mark.parametrize("flat", [False, True])
def test_a_map_of_zero_to_one(tmp_path: Path, flat: bool) -> None:
    pytest.importorskip("onnxruntime")
    file = mean_network(tmp_path / "a.ONNX", (40, 56), flat=flat, more=True)
    file.with_suffix(".json").write_text(json.dumps(PLAIN))
    shown = picture(40, 56)
    torch.testing.assert_close(saliency(file, shown), shown.mean(1), rtol=0, atol=1e-5)
    smooth = F.interpolate(picture(4, 5), (80, 112), mode="bilinear")
    torch.testing.assert_close(saliency(file, smooth), smooth.mean(1), rtol=0, atol=0.03)


def test_logits(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    file, shown = mean_network(tmp_path / "a.onnx", (40, 56)), picture(40, 56)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    expected = ((shown - mean) / std).mean(1).sigmoid()  # ImageNet's, as nothing else is told
    torch.testing.assert_close(saliency(file, shown), expected, rtol=1e-4, atol=1e-5)
    told = {"scale": 127.5, "mean": [1, 1, 1], "std": [0.5, 0.5, 0.5]}
    file.with_suffix(".json").write_text(json.dumps(told))
    expected = ((2 * shown - 1) / 0.5).mean(1).sigmoid()
    torch.testing.assert_close(saliency(file, shown), expected, rtol=1e-4, atol=1e-5)
    # What rounding takes a little beyond 0..1 is no logit.
    file.with_suffix(".json").write_text(json.dumps({**PLAIN, "scale": 254}))
    white = torch.ones(1, 3, 40, 56)
    assert float(saliency(file, white).min()) == 1.0


def test_the_size_that_it_is_shown(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    file = mean_network(tmp_path / "a.onnx", ("h", "w"))
    file.with_suffix(".json").write_text(json.dumps(PLAIN))
    # Stripes of two pixels: seen as they are, and gone where the network sees a quarter of them.
    stripes = torch.arange(64).div(2, rounding_mode="floor").remainder(2).float().expand(1, 3, 64, 64)
    torch.testing.assert_close(saliency(file, stripes), stripes.mean(1))
    file.with_suffix(".json").write_text(json.dumps({**PLAIN, "size": [64, 16]}))
    assert 0.3 < float(saliency(file, stripes).min()) < float(saliency(file, stripes).max()) < 0.7
    for height, width in ((1, 1), (3, 70), (90, 41)):
        assert bool(torch.isfinite(saliency(file, picture(height, width))).all())


def test_files_that_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")

    def refused(message: str, name: str = "a.onnx") -> None:
        with pytest.raises(BokehError, match=message):
            saliency(tmp_path / name, picture(8, 8))

    refused("There is no ONNX file")
    (tmp_path / "a.onnx").write_text("no network")
    refused("cannot be loaded as an ONNX network")
    mean_network(tmp_path / "a.onnx", (8, 8), channels=4)
    refused(r"takes in \[1, 4, 8, 8\]; expected one picture")
    mean_network(tmp_path / "a.onnx", (8, 8), axis=2)
    refused(r"put out \(1, 3, 1, 8\) as out for one picture; expected a map \[1, 1, h, w\]")
    mean_network(tmp_path / "a.onnx", (8, 8))
    (tmp_path / "a.json").write_text('{"size": [9, 9]}')
    refused("failed on a picture of 9 x 9: ")
    (tmp_path / "a.json").write_text('{"size": 9}')
    refused(r"a\.json: expected mean and std as lists")
    (tmp_path / "a.json").write_text('{"means": [1, 1, 1]}')
    refused(r"a\.json: unknown means")


def test_without_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = mean_network(tmp_path / "a.onnx", (8, 8))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BokehError, match=r"needs the package onnxruntime.*pip install onnxruntime; .*or"):
        read_finder(file)
