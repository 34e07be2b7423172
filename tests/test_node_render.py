"""The rendering nodes in a real host."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

pytestmark = pytest.mark.host

KIND, RANGE = "disparity (near is bright)", "normalise to 0..1"


def call(pack: ModuleType, **changes: Any) -> tuple[torch.Tensor, ...]:
    """BokehMeRender on a small picture before a ramp of depth, by the classical model, focused at the left edge.

    Its picture, BokehDefocusViews of its signed defocus (map, blur amount, in focus, overlay), and that itself.
    """
    torch.manual_seed(3)
    inputs: dict[str, Any] = {
        "image": torch.rand(1, 24, 32, 3),
        "depth": torch.linspace(0.2, 0.8, 32).expand(1, 24, 32)[..., None].repeat(1, 1, 1, 3),
        "depth_kind": KIND,
        "depth_range": RANGE,
        "depth_scale": 1.0,
        "edges": "as is",
        "k": 5.0,
        "k_reference": "image px",
        "focus_x": 0.0,
        "focus_y": 0.5,
        "model": "classical",
        "transfer": "sRGB",
        "highlight_recovery": 0.0,
    }
    inputs |= changes
    image, signed, *_ = pack.nodes.render.BokehMeRender.execute(**inputs).result
    seen = {"image": inputs["image"], "transfer": inputs["transfer"]}
    return image, *pack.nodes.views.BokehDefocusViews.execute(signed, **seen).result, signed


def focus(pack: ModuleType, mode: str = "point", **changes: Any) -> Any:
    inputs = {"x": 0.5, "y": 0.5, "value": 1.0, "band": 0.0}
    return pack.nodes.lens.BokehFocus.execute(mode, **(inputs | changes)).result[0]


def aperture(pack: ModuleType, **changes: Any) -> Any:
    inputs = {
        "blades": 0,
        "rotation": 0.0,
        "curvature": 0.0,
        "squeeze": 1.0,
        "cats_eye": 0.0,
        "spherical": 0.0,
    }
    return pack.nodes.lens.BokehAperture.execute(**(inputs | changes)).result


@pytest.fixture
def said(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the nodes tell their user."""
    texts: list[str] = []
    for room in (pack.nodes.render, pack.nodes.lens, pack.nodes.depth):
        monkeypatch.setattr(room, "say", lambda text, node_id=None: texts.append(text))
    return texts


def test_outputs_have_the_hosts_layout(pack: ModuleType, said: list[str]) -> None:
    image, colours, blur, sharp, tinted, signed = call(pack)
    assert image.shape == colours.shape == tinted.shape == (1, 24, 32, 3)
    assert blur.shape == sharp.shape == signed.shape == (1, 24, 32)
    assert signed.dtype == torch.float32
    for tensor in (image, colours, blur, sharp, tinted):
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        assert 0 <= float(tensor.min()) <= float(tensor.max()) <= 1
    assert float(blur[0, 0, 0]) < 0.05 < 0.95 < float(blur[0, 0, -1])
    assert float(sharp[0, 0, 0]) == 1
    assert float(sharp[0, 0, 8:].max()) == 0  # more than a pixel of blur
    assert said == []


def test_views_of_a_series_are_those_of_each_picture(pack: ModuleType) -> None:
    """The colours end at the largest blur of the whole output, the masks count pixels."""
    images = torch.rand(2, 24, 32, 3)
    series = call(pack, image=images, k_values="2, 6")
    for row in range(2):
        alone = call(pack, image=images[row : row + 1], k=6.0)
        for whole, part in zip(series, alone, strict=True):
            assert torch.allclose(whole[2 + row], part[0])
    assert torch.allclose(series[2][0], call(pack, k=2.0)[2][0] / 3, atol=1e-6)


def test_views_end_at_the_radius_given_and_need_no_picture(pack: ModuleType) -> None:
    views = pack.nodes.views.BokehDefocusViews.execute
    signed = torch.linspace(-4, 4, 32).expand(2, 24, 32).clone()
    colours, blur, sharp, tinted = views(signed, largest=8.0).result
    assert float(blur.max()) == pytest.approx(0.5)
    assert torch.allclose(
        colours[0, 0, -1], torch.tensor([0.98, 0.62, 0.28]), atol=1e-6
    )  # orange: half of the way
    assert torch.equal(sharp, views(signed).result[2])
    assert tinted.shape == (2, 24, 32, 3)
    grey = views(signed, torch.full((1, 24, 32, 1), 0.5), largest=8.0).result
    assert torch.equal(tinted, grey[3])
    light = torch.full((1, 24, 32, 3), 0.2140)  # what sRGB shows as 0.5
    assert torch.allclose(views(signed, light, "linear (HDR)", 8.0).result[3], tinted, atol=1e-3)
    assert float(views(torch.zeros(1, 24, 32)).result[1].max()) == 0
    for bad, message in {
        (3, 24, 32, 3): "size must agree, and there must be one picture",
        (2, 24, 31, 3): "size must agree",
        (24, 32, 3): "size must agree",
    }.items():
        with pytest.raises(pack.bokeh_ops.errors.BokehError, match=message):
            views(signed, torch.zeros(bad))
    for spoilt, message in ((signed[0], r"a mask \[B, H, W\]"), (signed / 0, "NaN or infinite")):
        with pytest.raises(pack.bokeh_ops.errors.BokehError, match=message):
            views(spoilt)


def test_the_schema(pack: ModuleType) -> None:
    render, views, lens, depth = pack.nodes.render, pack.nodes.views, pack.nodes.lens, pack.nodes.depth
    for cls in (
        render.BokehMeRender,
        views.BokehDefocusViews,
        depth.BokehLoadDepth,
        lens.BokehAperture,
        lens.BokehFocus,
    ):
        schema = cls.GET_SCHEMA()  # also checks that ids are unique
        assert schema.category == "Bokeh"
        assert all(port.tooltip for port in [*schema.inputs, *schema.outputs])
    models = next(port for port in render.BokehMeRender.GET_SCHEMA().inputs if port.id == "model")
    assert set(models.options) == {*pack.bokeh_ops.render.MODELS, "bokehme"}
    assert models.options[0] == models.default == pack.bokeh_ops.render.DEFAULT_MODEL


def test_the_signed_defocus_is_in_pixels_positive_in_front(pack: ModuleType) -> None:
    """A ramp of disparity 0 to 1, focused at a half, at K = 5 and 10 pixels."""
    made = call(pack, k_values="5, 10", focus=focus(pack, "disparity value", value=0.5))
    ramp = torch.linspace(0, 1, 32) - 0.5
    for row, k in enumerate((5, 10)):
        assert torch.allclose(made[5][row, 12], k * ramp, atol=1e-5)
    assert torch.allclose(made[5].abs() / 5, made[2], atol=1e-5)


def test_what_is_given_and_not_looked_at_is_said(pack: ModuleType, said: list[str]) -> None:
    mask = torch.ones(1, 24, 32)
    call(pack, focus=focus(pack, "point", mask=mask))
    call(pack, focus=focus(pack, "mask", mask=mask, values="0, 1"))
    call(pack, focus=focus(pack, "mask", mask=mask), focus_mask=mask)
    call(pack, highlight_recovery=9.0)
    depth = torch.stack([torch.linspace(0.1, high, 32).expand(24, 32) for high in (0.5, 0.9)])
    call(pack, image=torch.rand(2, 24, 32, 3), depth=depth)
    for text, expected in zip(
        said,
        [
            "The focus mask is not looked at: the focus mode is 'point'",
            "The 2 focus values are not looked at: the focus mode is 'mask'",
            "focus_mask is not looked at, because the focus that is linked has a mask of its own",
            "highlight_recovery is not looked at: the lens model 'classical'",
            "normalised by itself, and their ranges differ by 50 %. For the frames of one video choose",
        ],
        strict=True,
    ):
        assert expected in text
    said.clear()
    call(pack, image=torch.rand(2, 24, 32, 3), depth=depth, depth_range="normalise over the batch")
    call(pack, highlight_recovery=9.0, model="layered")
    call(pack, focus=focus(pack, "disparity value", values="0, 1"))
    call(pack, focus=focus(pack, "mask"), focus_mask=mask)
    assert said == []


def test_the_page_s_bar_moves_while_edges_are_aligned_and_while_it_renders(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.utils  # type: ignore[import-not-found]

    bars: list[list[float]] = []

    class Bar:
        def __init__(self, total: int) -> None:
            self.seen: list[float] = []
            bars.append(self.seen)

        def update_absolute(self, value: int, total: int) -> None:
            self.seen.append(value / total)

    monkeypatch.setattr(comfy.utils, "ProgressBar", Bar)
    call(pack, edges="aligned to the image", k_values="3, 6", model="layered")
    aligned, rendered = bars
    assert len(aligned) >= 2
    assert len(rendered) > 4
    for seen in bars:
        assert seen == sorted(seen)
        assert seen[-1] == 1


def test_sweep_of_values_over_a_batch(pack: ModuleType, said: list[str]) -> None:
    images = torch.rand(2, 24, 32, 3)
    swept = call(pack, image=images, k_values="0, 6")[0]
    assert swept.shape == (4, 24, 32, 3)
    assert torch.equal(swept[:2], images)
    for row in range(2):
        alone = call(pack, image=images[row : row + 1], k=6.0)[0]
        assert torch.equal(swept[2 + row], alone[0])
    assert said == []


def test_a_focus_pull_is_a_series_within_the_series_of_k(pack: ModuleType) -> None:
    pulled = call(pack, k_values="3, 6", focus=focus(pack, "disparity value", values="0:1:0.5"))
    assert pulled[0].shape == (6, 24, 32, 3)
    sharpest = [int(blur[12].argmin()) for blur in pulled[2]]
    assert sharpest[:3] == sharpest[3:]
    assert sharpest[0] == 0
    assert sharpest[1] in (15, 16)
    assert sharpest[2] == 31
    last = call(pack, k=6.0, focus=focus(pack, "disparity value", value=1.0))
    assert torch.equal(pulled[0][5], last[0][0])


def test_one_focus_for_each_frame(pack: ModuleType) -> None:
    frames = torch.rand(3, 24, 32, 3)
    chosen = focus(pack, "disparity value", values="0, 1, 0", one_each=True)
    image, _, blur, *_ = call(pack, image=frames, focus=chosen)
    assert image.shape == frames.shape
    assert [int(row[12].argmin()) for row in blur] == [0, 31, 0]


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_one_and_four_channels(pack: ModuleType, channels: int) -> None:
    image = torch.rand(2, 24, 32, channels)
    made, _, _, _, tinted, _ = call(pack, image=image, edges="aligned to the image")
    assert made.shape == image.shape
    assert tinted.shape == (2, 24, 32, 3)


def test_depth_may_be_a_mask_or_of_another_size(pack: ModuleType, said: list[str]) -> None:
    as_mask = call(pack, depth=torch.linspace(0.2, 0.8, 32).expand(1, 24, 32))
    assert torch.equal(as_mask[0], call(pack)[0])
    assert said == []
    assert call(pack, depth=torch.linspace(0.2, 0.8, 64).expand(1, 48, 64))[0].shape == (1, 24, 32, 3)
    assert said == ["The depth map was resized from 64 x 48 to 32 x 24."]


def test_edges_are_aligned_if_asked(pack: ModuleType) -> None:
    """A small map of a thing whose edge the picture has at column 13."""
    image = torch.full((1, 24, 32, 3), 0.2)
    image[:, :, :13] = torch.tensor([0.8, 0.5, 0.1])
    depth = torch.nn.functional.avg_pool2d((image[..., 0] > 0.5).float(), 4)
    inputs = {"image": image, "depth": depth, "focus_x": 1.0, "k": 4.0}
    blurs = [call(pack, **inputs, edges=edges)[2][0, 12] for edges in ("aligned to the image", "as is")]
    assert ((blurs[0] > 0.2) == (torch.arange(32) < 13)).all()
    assert not ((blurs[1] > 0.2) == (torch.arange(32) < 13)).all()


def test_depth_over_the_batch_does_not_flicker(pack: ModuleType) -> None:
    """A second frame in which something nearer comes in: what was there keeps its blur."""
    depth = torch.linspace(0.2, 0.4, 32).expand(2, 24, 32).clone()
    depth[1, :4, :4] = 1.0
    frames, chosen = torch.rand(2, 24, 32, 3), focus(pack, "disparity value", value=0.0)
    inputs = {"image": frames, "depth": depth, "focus": chosen}
    over_batch, each = (
        call(pack, **inputs, depth_range=scaling)[2][:, 12]
        for scaling in ("normalise over the batch", "normalise to 0..1")
    )
    assert torch.equal(over_batch[0], over_batch[1])
    assert float((each[0] - each[1]).abs().max()) > 0.5


def test_depth_pro_s_own_output(pack: ModuleType) -> None:
    canonical = torch.linspace(0.2, 0.8, 32).expand(1, 24, 32)
    at = focus(pack, "distance in metres", value=2.9)
    made = call(
        pack,
        depth=canonical,
        depth_kind="canonical (Depth Pro)",
        depth_range="as is",
        focal_pixels=48.0,
        focus=at,
    )
    metres = 48.0 / (32 * canonical)
    same = call(pack, depth=metres, depth_kind="metric (metres)", depth_range="as is", focus=at)
    assert torch.allclose(made[0], same[0], atol=1e-5)
    assert int(made[2][0, 12].argmin()) == int((metres[0, 12] - 2.9).abs().argmin())


def test_focus_modes(pack: ModuleType) -> None:
    def sharpest(**changes: Any) -> int:
        return int(call(pack, **changes)[2][0, 12].argmin())

    mask = torch.zeros(1, 24, 32)
    mask[:, :, 20:23] = 1.0
    assert sharpest(focus_x=0.5) in (15, 16)
    assert sharpest(focus_mask=mask) == 21
    assert sharpest(focus=focus(pack, x=0.5), focus_mask=mask) in (15, 16)  # a point needs no mask
    assert sharpest(focus=focus(pack, "mask"), focus_mask=mask) == 21
    assert sharpest(focus=focus(pack, "automatic", mask=mask)) == 21
    assert sharpest(focus=focus(pack, "disparity value", value=1.0)) == 31
    metres = {"depth": torch.linspace(1, 32, 32).expand(1, 24, 32), "depth_kind": "metric (metres)"}
    far = focus(pack, "distance in metres", value=8.0)
    assert sharpest(**metres, depth_range="as is", focus=far) == 7
    wide = torch.zeros(1, 24, 32)
    wide[:, :, 10:20] = 1.0
    blur = call(pack, focus=focus(pack, "whole mask sharp", mask=wide))[2][0, 12]
    assert float(blur[10:20].max()) == 0
    assert float(blur[:10].min()) > 0
    band = call(pack, focus=focus(pack, x=0.5, band=0.4))[2][0, 12]
    assert int((band == 0).sum()) == pytest.approx(0.4 * 31, abs=1)


def held(pack: ModuleType, mask: torch.Tensor, **changes: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Picture and signed defocus with the whole of a mask sharp."""
    band = changes.pop("band", 0.0)
    made = call(pack, focus=focus(pack, "whole mask sharp", mask=mask, band=band), **changes)
    return made[0], made[5]


@pytest.mark.parametrize("spill", [0, 60, 700])
@pytest.mark.parametrize("edges", ["as is", "aligned to the image"])
def test_a_mask_s_spill_does_not_sharpen_the_picture(pack: ModuleType, spill: int, edges: str) -> None:
    """A mask of 1600 pixels at disparity 1, some of which lie on the background at 0."""
    image, depth, mask = torch.rand(1, 100, 100, 3), torch.zeros(1, 100, 100), torch.zeros(1, 100, 100)
    mask[:, 30:70, 30:70] = 1.0
    image[..., 2] = mask  # the picture has the mask's edge
    depth[mask > 0.5] = (torch.arange(1600) >= spill).float()
    made, signed = held(pack, mask, image=image, depth=depth, k=6.0, edges=edges, model="layered")
    inside = mask > 0.5
    assert float(signed[inside].abs().max()) == 0
    assert float(signed[~inside].max()) == -6
    sharp = (made - image).abs().amax(-1)
    assert float(sharp[:, 32:68, 32:68].max()) < 1e-3
    assert float(made[:, :20, :, :2].std()) < 0.4 * float(image[:, :20, :, :2].std())


def test_a_deep_subject_is_all_sharp_and_the_rest_keeps_its_depth(pack: ModuleType) -> None:
    """Disparity 0 to 1 from left to right; the subject reaches over half of it, the floor below it too."""
    image, mask = torch.rand(1, 24, 32, 3), torch.zeros(1, 24, 32)
    mask[:, :16, 8:25] = 1.0
    inside, depth = mask > 0.5, torch.linspace(0, 1, 32).expand(1, 24, 32)
    for model in pack.bokeh_ops.render.MODELS:
        made, signed = held(pack, mask, image=image, k=16.0, model=model)
        assert torch.allclose(signed, torch.where(inside, 0, 16 * (depth - 16 / 31)), atol=1e-4)
        assert torch.allclose(made[:, :4, 15:18], image[:, :4, 15:18], atol=0.02), model
    banded = held(pack, mask, k=16.0, band=0.25)[1]  # the user's own band counts as before
    assert torch.allclose(
        banded,
        torch.where(
            inside, 0, 16 * torch.sign(depth - 16 / 31) * ((depth - 16 / 31).abs() - 0.125).clamp(min=0)
        ),
        atol=1e-4,
    )


def test_a_whole_mask_for_each_frame_of_a_series(pack: ModuleType) -> None:
    frames, masks = torch.rand(2, 24, 32, 3), torch.zeros(2, 12, 16)
    masks[0, :, :6], masks[1, :, 10:] = 1.0, 1.0
    made, signed = held(pack, masks, image=frames, k_values="3, 6", model="layered")
    assert made.shape == (4, 24, 32, 3)
    for row, sharp in enumerate((slice(0, 11), slice(21, 32)) * 2):
        assert float(signed[row, :, sharp].abs().max()) == 0
    assert torch.equal(2 * signed[:2], signed[2:])
    for row in range(2):
        alone = held(pack, masks[row : row + 1], image=frames[row : row + 1], k=6.0, model="layered")
        assert torch.equal(made[2 + row], alone[0][0])
    both = held(pack, masks[:1], image=frames, k=6.0)[1]  # one mask for all
    assert torch.equal(both[0], both[1])


def test_apertures_shape_the_blur(pack: ModuleType, said: list[str]) -> None:
    """A point of light far behind the focus becomes the aperture; its picture is shown beside it."""
    image = torch.zeros(1, 41, 41, 3)
    image[:, 20, 20] = 1.0
    flat = {"image": image, "depth": torch.full((1, 41, 41), 0.5), "depth_range": "as is", "k": 12.0}
    flat["transfer"] = "gamma 2.2"
    away = focus(pack, "disparity value", value=1.5)
    made, shape = aperture(pack, blades=3)
    assert shape.shape == (1, 195, 195, 3)
    assert float(shape.max()) == 1
    x = torch.arange(41.0) - 20
    for model in sorted({"classical", "layered"} & set(pack.bokeh_ops.render.MODELS)):
        drawn = call(pack, **flat, focus=away, aperture=made, model=model)[0][0, ..., 0] ** 2.2
        third = float((drawn.sum(0) * x**3).sum() / drawn.sum())
        assert third == pytest.approx(12**3 / 40, rel=0.1)  # of a triangle with a vertex at the right
    picture = torch.zeros(1, 20, 20, 4)
    picture[..., :10, :3], picture[..., 3] = 1.0, 1.0
    made, shape = aperture(pack, blades=5, picture=picture)
    assert said[-1].startswith("The picture takes the place of the 5 blades")
    assert float(shape[0, :, :90].mean()) > 0.8 > 0.1 > float(shape[0, :, 105:].mean())
    picture[..., 3] = 0.0
    picture[:, :, 10:, :] = 1.0  # light, but only here opaque
    shape = aperture(pack, picture=picture)[1]
    assert float(shape[0, :, :90].mean()) < 0.1 < 0.8 < float(shape[0, :, 105:].mean())
    assert aperture(pack, cats_eye=0.5)[1].shape == (1, 195, 390, 3)  # the corner beside the middle


def test_linear_pictures_keep_their_range(pack: ModuleType) -> None:
    image = torch.rand(1, 24, 32, 3) ** 4 * 20
    made = call(pack, image=image, transfer="linear (HDR)")[0]
    assert float(made.max()) > 2
    inside = pack.bokeh_ops.render.render(
        image.movedim(-1, 1),
        torch.linspace(0, 1, 32).expand(1, 1, 24, 32),
        pack.bokeh_ops.render.Lens(5.0, 0.0, 1.0),
        "classical",
    )
    assert torch.allclose(made, inside.image.movedim(1, -1), atol=1e-4)


def test_transfers(pack: ModuleType) -> None:
    """Half of the picture white, half black, all blurred over one another: half the light, as each curve shows it."""
    image = torch.zeros(1, 24, 32, 3)
    image[:, :, ::2] = 1.0
    flat = {"depth": torch.full((1, 24, 32), 0.5), "depth_range": "as is", "k": 9.0}
    away = focus(pack, "disparity value", value=1.5)
    for transfer, grey in {"sRGB": 0.7354, "gamma 2.2": 0.5 ** (1 / 2.2), "linear (HDR)": 0.5}.items():
        made = call(pack, image=image, **flat, focus=away, transfer=transfer)[0]
        assert float(made[0, 12, 16].mean()) == pytest.approx(grey, abs=0.01)
    bright = call(pack, image=torch.rand(1, 24, 32, 3) * 3)[0]
    assert 1 < float(bright.max()) <= 3


def test_what_did_little_or_is_unusual_is_said(pack: ModuleType, said: list[str]) -> None:
    image = torch.rand(1, 24, 32, 3)
    assert torch.equal(call(pack, image=image, k=0.0)[0], image)
    call(pack, k=0.1)
    call(
        pack, k_values="5, 31, 40.5", focus=focus(pack, "disparity value", value=0.3)
    )  # nothing to say of that
    at_one = {"focus": focus(pack, "disparity value", value=0.5), "depth_range": "as is"}
    call(pack, depth=torch.full((1, 24, 32), 0.5), **at_one)
    call(pack, focus=focus(pack, "disparity value", value=1.75))
    for text, expected in zip(
        said,
        [
            "K is 0",
            "hardly anything is blurred",
            "same disparity 0.5 everywhere",
            "hardly anything",
            "The focus disparity 1.75 lies outside the depth map of picture 1, which runs from 0 to 1",
        ],
        strict=True,
    ):
        assert expected in text


def test_an_interrupt_stops_the_rendering(pack: ModuleType) -> None:
    import comfy.model_management as management  # type: ignore[import-not-found]

    for edges in ("as is", "aligned to the image"):
        management.interrupt_current_processing(True)
        try:
            with pytest.raises(management.InterruptProcessingException):
                call(pack, edges=edges)
        finally:
            management.interrupt_current_processing(False)


def test_recovered_highlights_stay_in_range(pack: ModuleType) -> None:
    """A lamp's disc is brighter; a lit wall stays white; linear pictures are left as they are."""
    image = torch.full((1, 24, 32, 3), 0.1)
    image[:, 11:13, 24:26] = 1.0
    inputs = {"image": image, "model": "layered"}
    plain, recovered = (call(pack, **inputs, highlight_recovery=value)[0] for value in (0.0, 3.0))
    assert float((recovered - plain).max()) > 0.05
    assert float(recovered.max()) <= 1.0
    linear = [call(pack, **inputs, transfer="linear (HDR)", highlight_recovery=v)[0] for v in (0.0, 3.0)]
    assert torch.equal(*linear)


def test_bokehme_needs_its_weights_and_takes_them_from_the_host_s_folders(
    pack: ModuleType, tmp_path: Path
) -> None:
    import folder_paths  # type: ignore[import-not-found]

    renderers, networks = pack.bokeh_ops.host.folders.renderers, pack.bokeh_ops.render.networks
    with pytest.raises(
        pack.bokeh_ops.errors.BokehError, match=r"Put arnet\.pth and iunet\.pth .*bokeh_renderers"
    ):
        call(pack, model="bokehme")
    renderers.FOLDER.roots()
    folder_paths.add_model_folder_path(renderers.FOLDER.name, str(tmp_path))
    try:
        torch.manual_seed(0)
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        save_file(networks.ARNet().state_dict(), tmp_path / "a" / "arnet.safetensors")
        with pytest.raises(pack.bokeh_ops.errors.BokehError, match="into one folder"):
            call(pack, model="bokehme", transfer="gamma 2.2")
        save_file(networks.ARNet().state_dict(), tmp_path / "b" / "arnet.safetensors")
        save_file(networks.IUNet().state_dict(), tmp_path / "b" / "iunet.safetensors")
        assert [path.parent.name for path in renderers.bokehme_files()] == ["b", "b"]
        made = call(pack, model="bokehme", transfer="gamma 2.2")[0]
        assert float((made - call(pack, transfer="gamma 2.2")[0]).abs().max()) > 0
        with pytest.raises(pack.bokeh_ops.errors.BokehError, match=r"Gamma is srgb.*1 to 5"):
            call(pack, model="bokehme")
    finally:
        folder_paths.folder_names_and_paths.pop(renderers.FOLDER.name)


def test_loading_a_16_bit_map(pack: ModuleType) -> None:
    import folder_paths  # type: ignore[import-not-found]

    folder = Path(folder_paths.get_input_directory())
    folder.mkdir(parents=True, exist_ok=True)
    values = np.linspace(12272, 35903, 24 * 32).reshape(24, 32).astype(np.uint16)
    path = folder / "bokeh_test_depth.png"
    Image.fromarray(values).save(path)
    node = pack.nodes.depth.BokehLoadDepth
    try:
        assert node.validate_inputs(path.name) is True
        assert "no file" in node.validate_inputs("bokeh_test_absent.png")
        before = node.fingerprint_inputs(path.name)
        depth = node.execute(path.name).result[0]
        assert depth.shape == (1, 24, 32, 3)
        assert np.array_equal((depth[0, ..., 1].double().numpy() * 65535).round(), values)
        Image.fromarray(values // 2).save(path)
        assert node.fingerprint_inputs(path.name) != before
        np.save(folder / "bokeh_test_metres.NPY.npy", np.full((24, 32), 2.5, np.float32))
        offered = next(one for one in node.GET_SCHEMA().inputs if one.id == "file").options
        assert {path.name, "bokeh_test_metres.NPY.npy"} <= set(offered)
        assert float(node.execute("bokeh_test_metres.NPY.npy").result[0].min()) == 2.5
    finally:
        path.unlink()
        (folder / "bokeh_test_metres.NPY.npy").unlink(missing_ok=True)
    assert call(pack, depth=depth)[0].shape == (1, 24, 32, 3)


def test_validation_lets_k_exceed_the_slider_but_not_fall_below_0(pack: ModuleType) -> None:
    node = pack.nodes.render.BokehMeRender
    assert node.validate_inputs(k=45.0) is True
    assert node.validate_inputs() is True
    assert node.validate_inputs(k=-1.0) == "K is -1.0; it must be 0 (all in focus) or larger."
