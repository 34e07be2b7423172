"""Depth with gradients: as it is estimated without, gradients that differences confirm, models that are refused."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from bokeh_ops.depth.estimate import Estimator, estimate_one, load_estimator
from bokeh_ops.errors import BokehError
from tests import depth_models
from trainer.frozen.depth import NEAREST, FrozenDepth

pytest.importorskip("transformers")
MEASURING = ("metric", "glpn", "zoedepth", "depth_pro")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Estimator]:
    root = tmp_path_factory.mktemp("depth")
    for kind in depth_models.KINDS:
        depth_models.make(kind, root / kind)
    return {kind: load_estimator(root / kind) for kind in depth_models.KINDS}


def pictures(count: int, height: int, width: int) -> torch.Tensor:
    """``[N, 3, H, W]``, of 8 bits."""
    drawn = np.random.default_rng(0).integers(0, 256, (count, 3, height, width))
    return torch.from_numpy(drawn / 255).float()


@pytest.mark.parametrize("kind", MEASURING)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (72, 104), (20, 24)])
def test_it_is_what_is_estimated(made: dict[str, Estimator], kind: str, height: int, width: int) -> None:
    if kind == "glpn" and height < 32:
        pytest.skip("it sees multiples of 32")
    given = pictures(2, height, width)
    found = FrozenDepth(made[kind])(given)
    assert found.shape == (2, 1, height, width)
    for picture, own in zip(given, found, strict=True):
        shown = Image.fromarray((picture.movedim(0, -1) * 255).round().byte().numpy())
        values = estimate_one(made[kind], shown).values
        near = 1 / values.clamp(min=NEAREST)
        metres = 1 / F.interpolate(near[None, None], (height, width), mode="bilinear")[0]
        assert float(metres.std()) > 0
        assert float((1 / own - metres).abs().mean()) < 0.1 * float(metres.std())


@pytest.mark.parametrize("kind", MEASURING)
def test_gradients_against_differences(made: dict[str, Estimator], kind: str) -> None:
    depth = FrozenDepth(made[kind]).double()
    given = pictures(2, 48, 40).double().clamp(0.1, 0.9).requires_grad_()
    weights = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 1, 48, 40)))
    (slope,) = torch.autograd.grad((depth(given) * weights).sum(), given)
    way = torch.from_numpy(np.random.default_rng(2).normal(size=given.shape))
    step = 1e-8  # small: the networks bend at every ReLU
    with torch.no_grad():
        ahead, behind = ((depth(given + sign * step * way) * weights).sum() for sign in (1, -1))
    assert float((slope * way).sum()) == pytest.approx(float(ahead - behind) / (2 * step), rel=1e-5)
    assert all(float(each.abs().sum()) > 0 for each in slope)
    depth.float()  # the estimator's own, which others here use
    assert all(parameter.grad is None for parameter in depth.parameters())


def test_planes_stay_planes(made: dict[str, Estimator], monkeypatch: pytest.MonkeyPatch) -> None:
    """A ground whose disparity grows evenly, half as large as the picture."""
    depth = FrozenDepth(made["metric"])
    rows = torch.arange(28) * 0.1 + 0.1
    metres = (1 / rows)[None, :, None].expand(1, 28, 28)
    monkeypatch.setattr(
        depth.network, "forward", lambda pixel_values: SimpleNamespace(predicted_depth=metres)
    )
    steps = depth(pictures(1, 56, 56))[0, 0, 1:-1].diff(dim=0)
    torch.testing.assert_close(steps, torch.full_like(steps, 0.05), rtol=1e-4, atol=1e-6)


def test_near_things_are_bounded(made: dict[str, Estimator], monkeypatch: pytest.MonkeyPatch) -> None:
    depth = FrozenDepth(made["metric"])
    monkeypatch.setattr(depth.network.head, "max_depth", 1e-6)
    given = pictures(1, 28, 28).requires_grad_()
    found = depth(given)
    assert found.unique().tolist() == pytest.approx([100.0])
    found.sum().backward()
    assert given.grad is not None
    assert bool((given.grad == 0).all())


@pytest.mark.parametrize("kind", ["relative", "dpt"])
def test_models_that_do_not_measure(made: dict[str, Estimator], kind: str) -> None:
    with pytest.raises(
        BokehError, match=r"gives disparity .* needs metres.* such as .*Metric-Indoor.*DepthPro-hf"
    ):
        FrozenDepth(made[kind])
    with pytest.raises(BokehError, match="values of unknown meaning"):
        FrozenDepth(replace(made[kind], kind=None))


def test_depth_pro_without_its_scale(made: dict[str, Estimator], monkeypatch: pytest.MonkeyPatch) -> None:
    depth = FrozenDepth(made["depth_pro"])
    bias = depth.network.fov_model.head.layers[-1].bias
    monkeypatch.setattr(bias, "data", torch.full_like(bias, -5.0))
    with pytest.raises(BokehError, match=r"no usable field of view .* from 1 to 179"):
        depth(pictures(1, 32, 32))
    monkeypatch.setattr(depth.network.config, "use_fov_model", False)
    with pytest.raises(BokehError, match="metres without their scale"):
        FrozenDepth(made["depth_pro"])


def test_a_processor_that_is_not_known(made: dict[str, Estimator], monkeypatch: pytest.MonkeyPatch) -> None:
    estimator = made["metric"]
    monkeypatch.setattr(estimator.processor, "rescale_factor", 1 / 200)
    with pytest.raises(BokehError, match=r"DPTImageProcessor.* not known here"):
        FrozenDepth(estimator)
    with pytest.raises(BokehError, match="not known here"):
        FrozenDepth(replace(estimator, family="another"))


def test_a_picture_that_is_too_small(made: dict[str, Estimator]) -> None:
    with pytest.raises(BokehError, match=r"cannot look at a picture of 24 x 20 pixels .* larger"):
        FrozenDepth(made["glpn"])(pictures(1, 20, 24))
