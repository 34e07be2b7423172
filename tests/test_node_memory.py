"""What BokehMeRender costs for each frame, in memory and in work, and what it does not do twice."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.memory import Peak
from tests.test_node_render import call, focus

pytestmark = pytest.mark.host

ALIGNED = "aligned to the image"
HEIGHT, WIDTH = 16, 24


def frames(count: int) -> dict[str, Any]:
    """Pictures of a block before a ramp, no two alike, and their depth."""
    depth = torch.linspace(0.2, 0.8, WIDTH).expand(count, HEIGHT, WIDTH) + 1e-3 * torch.rand(count, 1, 1)
    depth[:, 6:12, 8:14] = 0.9
    return {"image": torch.rand(count, HEIGHT, WIDTH, 3), "depth": depth}


@pytest.fixture
def quick(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Edges that are not moved: what counts here is what is held beyond the frame that is worked on."""
    pack.nodes.render.ALIGNED.clear()
    monkeypatch.setattr(
        pack.bokeh_ops.depth.conventions, "align_to_image", lambda disparity, *_: disparity.clone()
    )


def a_frame(pack: ModuleType, changes: Callable[[int], dict[str, Any]]) -> float:
    """Bytes that one more frame adds to the peak, over the frame's own."""
    node, peaks = pack.nodes.render.BokehMeRender, []
    for count in (8, 24):
        inputs = frames(count) | changes(count)
        with Peak() as peak:
            node.execute(
                **{
                    "depth_kind": "disparity (near is bright)",
                    "depth_range": "normalise to 0..1",
                    "depth_scale": 1.0,
                    "edges": "as is",
                    "k": 0.0,
                    "k_reference": "image px",
                    "focus_x": 0.0,
                    "focus_y": 0.5,
                    "model": "classical",
                    "transfer": "sRGB",
                    "highlight_recovery": 3.0,
                }
                | inputs
            )
        peaks.append(peak.bytes)
    return (peaks[1] - peaks[0]) / 16 / (HEIGHT * WIDTH * 3 * 4)


def noisy(count: int) -> dict[str, Any]:
    """Depth as pictures that went through JPEG."""
    depth = frames(count)["depth"][..., None] + 0.004 * torch.rand(count, HEIGHT, WIDTH, 3)
    return {"depth": depth}


def one_map(count: int) -> dict[str, Any]:
    return {"depth": frames(count)["depth"][:1]}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"k": 2.0},
        {"k": 2.0, "model": "thin_lens"},
        {"edges": ALIGNED},
        {"edges": ALIGNED, "transfer": "linear (HDR)"},
        {"depth_kind": "metric (metres)"},
        {"depth_kind": "inverted (far is bright)", "depth_range": "normalise over the batch"},
        noisy,
        one_map,
    ],
    ids=lambda changes: getattr(changes, "__name__", str(changes)),
)
@pytest.mark.usefixtures("quick")
def test_a_frame_costs_at_most_twice_its_size(pack: ModuleType, changes: Any) -> None:
    """Its blurred picture, its defocus, its disparity; the maps that are kept included."""
    cost = a_frame(pack, changes if callable(changes) else lambda _: changes)
    assert 1.3 < cost <= 2


@pytest.mark.usefixtures("quick")
def test_a_mask_held_sharp_costs_little(pack: ModuleType) -> None:
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[:, 6:12, 8:14] = 1.0

    def changes(count: int) -> dict[str, Any]:
        return {"edges": ALIGNED, "focus": focus(pack, "whole mask sharp", mask=mask.expand(count, -1, -1))}

    assert 1.3 < a_frame(pack, changes) <= 2


@pytest.fixture
def aligned(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each map whose edges are moved; nothing is kept from before."""
    pack.nodes.render.ALIGNED.clear()
    done: list[int] = []
    real = pack.bokeh_ops.depth.conventions.align_to_image

    def counted(disparity: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        done.extend([1] * len(disparity))
        return real(disparity, *args, **kwargs)

    monkeypatch.setattr(pack.bokeh_ops.depth.conventions, "align_to_image", counted)
    return done


def test_only_the_blur_is_computed_again(pack: ModuleType, aligned: list[int]) -> None:
    inputs = frames(3) | {"edges": ALIGNED}
    first = call(pack, **inputs)
    assert len(aligned) == 3
    mask = torch.ones(1, HEIGHT, WIDTH)
    for change in (
        {"k": 2.0},
        {"k_values": "1, 2"},
        {"k_reference": "512 px"},
        {"focus_x": 1.0},
        {"focus_mask": mask},
        {"focus": focus(pack, "whole mask sharp", mask=mask)},
        {"model": "thin_lens"},
        {"transfer": "gamma 2.2"},
        {"model": "layered", "highlight_recovery": 3.0},
    ):
        call(pack, **inputs, **change)
    assert len(aligned) == 3
    copies = {key: value.clone() for key, value in frames(1).items()}
    call(
        pack, **{key: inputs[key][1:2].clone() for key in copies}, edges=ALIGNED, k=1.0
    )  # one of the frames alone
    assert len(aligned) in (3, 4)  # normalised by itself, its map may be another
    again = call(
        pack, **{key: value.clone() if torch.is_tensor(value) else value for key, value in inputs.items()}
    )
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one, other)


def test_whatever_the_maps_depend_on_makes_them_anew(pack: ModuleType, aligned: list[int]) -> None:
    inputs = frames(1) | {"edges": ALIGNED}
    call(pack, **inputs)
    changed = inputs["image"].clone()
    changed[0, 0, 0, 0] += 0.01
    for change in (
        {"image": changed},
        {"depth": inputs["depth"] ** 2},
        {"depth_kind": "inverted (far is bright)"},
    ):
        before = len(aligned)
        call(pack, **(inputs | change))
        assert len(aligned) == before + 1, change
    call(pack, **inputs)
    assert len(aligned) == 4  # all of them are kept
    inputs["image"][0, 0, 0, 0] += 0.02  # in place: the same tensor, another picture
    call(pack, **inputs)
    assert len(aligned) == 5


def test_a_still_for_every_frame_is_aligned_once(pack: ModuleType, aligned: list[int]) -> None:
    still = {key: value.expand(5, *value.shape[1:]) for key, value in frames(1).items()}
    call(pack, **still, edges=ALIGNED)
    assert len(aligned) == 1


def test_what_is_kept_is_nobody_s_to_write_to(pack: ModuleType, aligned: list[int]) -> None:
    inputs = frames(2) | {"edges": ALIGNED}
    for k in (0.0, 3.0):
        made = call(pack, **inputs, k=k)
        copies = [one.clone() for one in made]
        for one in made:
            one.fill_(7.0)
        for one, other in zip(call(pack, **inputs, k=k), copies, strict=True):
            assert torch.equal(one, other)
    assert len(aligned) == 2


def test_an_interrupt_stops_before_what_is_kept_too(pack: ModuleType, aligned: list[int]) -> None:
    import comfy.model_management as management  # type: ignore[import-not-found]

    inputs = frames(1) | {"edges": ALIGNED}
    call(pack, **inputs)
    management.interrupt_current_processing(True)
    try:
        with pytest.raises(management.InterruptProcessingException):
            call(pack, **inputs)
    finally:
        management.interrupt_current_processing(False)
