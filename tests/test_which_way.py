"""More blur for a picture that has some, and the choice between a lens and a model."""
# ruff: noqa: F811

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from bokeh_ops.camera.optics import k_lacking
from bokeh_ops.render import Aperture, Lens, render
from tests.host.server import ComfyServer
from tests.test_node_render import call, said  # noqa: F401


def spread(picture: torch.Tensor) -> float:
    """Mean square distance of a spot's light from its middle, in pixels."""
    y, x = torch.meshgrid(*(torch.arange(side) - side // 2 for side in picture.shape[-2:]), indexing="ij")
    weight = picture[0, 0] / picture[0, 0].sum()
    return float((weight * (x * x + y * y)).sum())


def test_blur_that_is_lacking_adds_up_by_squares() -> None:
    """A disc of radius r has a mean square distance of r^2 / 2; two after one another that of both."""
    spot = torch.zeros(1, 3, 65, 65)
    spot[..., 32, 32] = 1
    far = torch.zeros(1, 1, 65, 65)

    def blurred(picture: torch.Tensor, k: float) -> torch.Tensor:
        return render(picture, far, Lens(k, 1.0, 1.0, Aperture()), "classical").image

    once, twice = blurred(spot, 13.0), blurred(blurred(spot, 5.0), k_lacking(13.0, 5.0))
    assert k_lacking(13.0, 5.0) == 12
    assert spread(once) == pytest.approx(13**2 / 2, rel=0.02)
    assert spread(twice) == pytest.approx(spread(once), rel=0.02)
    assert k_lacking(5.0, 13.0) == 0
    assert k_lacking(-1.0, 13.0) == k_lacking(-1.0, 0.0) == -1  # for the lens to refuse
    assert torch.equal(k_lacking(torch.tensor([13.0, 3.0]), 5.0), torch.tensor([12.0, 0.0]))


@pytest.mark.host
def test_a_lens_adds_what_is_lacking(pack: ModuleType, said: list[str]) -> None:
    both = {"k": 0.0, "k_reference": "image px"}
    wanted = call(pack, **{**both, "k": 4.0})
    assert torch.equal(call(pack, **{**both, "k": 5.0}, photo_bokeh=3.0)[0], wanted[0])
    at_512 = {"k": 80.0, "k_reference": "512 px"}
    assert torch.equal(call(pack, **at_512, photo_bokeh=48.0)[0], call(pack, k=64.0, k_reference="512 px")[0])
    said.clear()
    unchanged, *_, signed = call(pack, **{**both, "k": 2.0}, photo_bokeh=3.0)
    assert not signed.any()
    assert len(said) == 1
    assert torch.equal(unchanged, call(pack, **both)[0])
    assert "takes none away: up to the photograph's K of 3 the picture is unchanged" in said[0]
    for wrong in (-1.0, float("nan"), float("inf")):  # as a link may bring them
        with pytest.raises(
            pack.bokeh_ops.errors.BokehError, match=f"K of the photograph is {wrong}; it must be 0"
        ):
            call(pack, photo_bokeh=wrong)
    node = pack.nodes.render.BokehMeRender
    assert node.validate_inputs(photo_bokeh=-1.0).startswith("K of the photograph is -1.0")
    assert node.validate_inputs(k=1.0, photo_bokeh=float("nan")) is not True
    assert node.validate_inputs(k=40.0, photo_bokeh=40.0) is True


LENS, MODEL = torch.zeros(6, 4, 4, 3), torch.ones(6, 4, 4, 3)
"""Two photographs at three K each."""


def chosen(pack: ModuleType, **changes: Any) -> tuple[torch.Tensor, str]:
    given = {"photo_bokeh": 14.0, "target_bokeh": "0, 14, 28", "way": "by direction"}
    images = {"by_lens": LENS, "by_model": MODEL}
    return pack.nodes.which_way.BokehLensOrModel.execute(**{**given, **images, **changes}).result


@pytest.mark.host
def test_less_blur_is_the_models_and_more_the_lens(pack: ModuleType) -> None:
    pictures, text = chosen(pack)
    assert pictures.flatten(1).mean(1).tolist() == [1, 1, 0, 0, 0, 0]
    assert text == "K 0: model\nK 14: lens\nK 28: lens"
    assert torch.equal(chosen(pack, way="lens alone", by_model=None)[0], LENS)
    assert torch.equal(chosen(pack, way="model alone", by_lens=None)[0], MODEL)
    assert torch.equal(chosen(pack, target_bokeh="14, 20, 28", by_model=None)[0], LENS)


@pytest.mark.host
def test_what_is_not_needed_is_not_asked_for(pack: ModuleType) -> None:
    asked = pack.nodes.which_way.BokehLensOrModel.check_lazy_status
    waiting = {"by_lens": None, "by_model": None}
    assert asked(14.0, "0, 28", "by direction", **waiting) == ["by_lens", "by_model"]
    assert asked(14.0, "0, 28", "by direction", by_lens=LENS, by_model=None) == ["by_model"]
    assert asked(14.0, "14, 28", "by direction", **waiting) == ["by_lens"]
    assert asked(14.0, "0, 7", "by direction", **waiting) == ["by_model"]
    assert asked(14.0, "0, 28", "lens alone", **waiting) == ["by_lens"]
    assert asked(14.0, "0, 28", "model alone", **waiting) == ["by_model"]


def test_in_a_running_server(comfy_server: ComfyServer) -> None:
    """What is not needed does not run; what is needed and not connected is named."""
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 2, "color": 0}},
        "2": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 2, "color": 1}},
        "3": {
            "class_type": "BokehLensOrModel",
            "inputs": {
                "photo_bokeh": 14.0,
                "target_bokeh": "14, 28",
                "way": "by direction",
                "by_lens": ["1", 0],
                "by_model": ["2", 0],
            },
        },
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
    }
    run = comfy_server.run(prompt)
    assert "1" in run.executed
    assert "2" not in run.executed
    del prompt["3"]["inputs"]["by_model"]
    prompt["3"]["inputs"]["target_bokeh"] = "0, 28"
    run = comfy_server.run(prompt, check=False)
    assert run.error is not None
    assert "by_model is not connected, and K 0 is to come from it" in run.error["exception_message"]


@pytest.mark.host
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"by_model": None}, "by_model is not connected, and K 0 is to come from it"),
        ({"by_lens": None}, "by_lens is not connected, and K 14, 28 is to come from it"),
        ({"by_lens": LENS[:5]}, "by_lens brings 5 pictures for 3 K; expected as many for each"),
        (
            {"by_model": torch.ones(6, 8, 4, 3)},
            r"differ \(by_model: 2 of 4 x 8, 3 channels; by_lens: 2 of 4 x 4",
        ),
        ({"target_bokeh": ""}, "no value was given"),
        ({"photo_bokeh": float("nan")}, "K of the photograph is nan; it must be 0"),
        ({"photo_bokeh": -1.0}, "K of the photograph is -1.0; it must be 0"),
        ({"by_model": torch.ones(0, 4, 4, 3)}, "by_model brings 0 pictures for 3 K"),
    ],
)
def test_what_does_not_fit_is_told(pack: ModuleType, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(pack.bokeh_ops.errors.BokehError, match=message):
        chosen(pack, **changes)
