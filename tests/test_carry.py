"""An edit made at a model's size, in the original's pixels: what stays, what changes, and against path-traced truth."""

from __future__ import annotations

import importlib
import io
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bokeh_ops.errors import BokehError
from bokeh_ops.picture.carry import carry_edit
from tests.host.server import ComfyServer


def reduced(pictures: Tensor, times: int = 3) -> Tensor:
    return F.avg_pool2d(pictures.movedim(-1, 1), times).movedim(1, -1)


def upscaled(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    large = F.interpolate(pictures.movedim(-1, 1), size, mode="bicubic", antialias=True, align_corners=False)
    return large.movedim(1, -1).clamp(0, 1)


def blurred(pictures: Tensor, radius: int) -> Tensor:
    padded = F.pad(pictures.movedim(-1, 1), [radius] * 4, mode="replicate")
    return F.avg_pool2d(padded, 2 * radius + 1, 1).movedim(1, -1)


def grainy(height: int = 48, width: int = 72, channels: int = 3) -> Tensor:
    """Detail of every size down to a pixel, ``[1, H, W, C]`` in 0.1..0.9."""
    generator = torch.Generator().manual_seed(1)
    parts = [torch.rand(1, channels, height // n, width // n, generator=generator) for n in (12, 4, 1)]
    parts = [F.interpolate(part, (height, width), mode="bilinear") for part in parts]
    return (0.1 + 0.8 * (parts[0] + parts[1] + parts[2]) / 3).movedim(1, -1)


def psnr(made: Tensor, truth: Tensor, where: Tensor | None = None) -> float:
    squared = (made - truth) ** 2 if where is None else ((made - truth) ** 2)[0][where]
    return -10 * math.log10(float(squared.mean()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_what_nothing_was_asked_of_comes_back_bit_for_bit(dtype: torch.dtype, channels: int) -> None:
    original = grainy(channels=channels).to(dtype)
    codec = reduced(original.float())[..., :3] * 0.9 + 0.03  # what it did to the picture is no edit
    made = carry_edit(original, codec, codec.clone(), smallest=0)
    assert made.dtype == dtype
    assert torch.equal(made, original)
    noisy = codec + 0.9 / 255 * torch.randn(codec.shape, generator=torch.Generator().manual_seed(2)).sign()
    assert torch.equal(carry_edit(original, codec, noisy), original)
    assert not torch.equal(carry_edit(original, codec, noisy, smallest=0), original)


def test_a_change_stays_where_it_is() -> None:
    original = grainy(60, 90).double()  # more than the computation's own precision
    original += 1e-9 * torch.rand(
        original.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    before = reduced(original).float()
    after = before.clone()
    after[:, 5:9, 18:24] = after[:, 5:9, 18:24].mean((1, 2), keepdim=True)
    made = carry_edit(original, before, after)
    same = (made == original).all(-1)[0]
    far = torch.ones(60, 90, dtype=torch.bool)
    far[0:45, 36:90] = False  # ten of the model's pixels and more from it
    assert bool(same[far].all())
    assert not bool(same[15:27, 54:72].any())


def test_more_blur_takes_the_grain_along_and_less_blur_keeps_it() -> None:
    original = grainy(72, 96)
    soft = blurred(original, 6)
    towards = carry_edit(original, reduced(original), reduced(soft))
    assert psnr(towards, soft) > 40  # detail that the model never saw is gone
    assert (
        psnr(original + upscaled(reduced(soft - original), (72, 96)), soft) < 28
    )  # as adding the difference is not
    noise = 0.01 * torch.randn(soft.shape, generator=torch.Generator().manual_seed(3))
    back = carry_edit(soft + noise, reduced(soft + noise), reduced(original))
    assert psnr(back, original) > psnr(upscaled(reduced(original), (72, 96)), original) - 0.5
    fine = (back - upscaled(reduced(back), (72, 96)))[:, 6:-6, 6:-6]
    grain = (noise - upscaled(reduced(noise), (72, 96)))[:, 6:-6, 6:-6]
    assert float((fine * grain).sum() / (grain * grain).sum()) == pytest.approx(1, abs=0.1)


def test_texture_finer_than_the_model_sees_goes_with_what_is_around_it() -> None:
    """A chessboard of single pixels is flat grey to the model, before and after; what stands in it is blurred."""
    original = grainy(144, 144)
    y, x = torch.meshgrid(torch.arange(144), torch.arange(144), indexing="ij")
    hidden = (x - 72).abs().maximum((y - 72).abs()) < 28
    original[:, hidden] = ((x + y) % 2).float()[hidden][:, None] * 0.4 + 0.3
    soft = blurred(original, 6)
    made = carry_edit(original, reduced(original, 4), reduced(soft, 4))
    assert float(made[:, 68:76, 68:76].std()) < 0.3 * float(original[:, 68:76, 68:76].std())


def test_what_the_codec_did_to_colours_is_undone() -> None:
    original = grainy(72, 72)
    soft = blurred(original, 6)
    cast = torch.tensor([0.06, -0.04, 0.02])
    made = carry_edit(original, reduced(original) + cast, reduced(soft) + cast)
    assert float((made - soft).mean((0, 1, 2)).abs().max()) < 0.003


@pytest.mark.parametrize("cut", [(2, 4), (0, 2), (3, 4), (0, 0)])
def test_an_edit_of_a_little_less_than_all_is_laid_where_it_belongs(cut: tuple[int, int]) -> None:
    """As VAE Encode cuts the middle out of a picture whose sides are no multiples of 8."""
    original, (rows, columns), told = grainy(192, 240), cut, []
    soft = blurred(original, 4)
    soft[:, :, 120:] = original[:, :, 120:]

    def seen(pictures: Tensor) -> Tensor:
        small = reduced(pictures, 2)
        return small[:, rows // 2 : 96 - (rows - rows // 2), columns // 2 : 120 - (columns - columns // 2)]

    made = carry_edit(original, seen(original), seen(soft), notice=told.append)
    assert psnr(made[:, 10:-10, 10:-10], soft[:, 10:-10, 10:-10]) > 34
    assert torch.equal(made[:, :, 160:], original[:, :, 160:])
    assert len(told) == (cut != (0, 0))
    assert not told or "VAE Encode cuts sides" in told[0]


@pytest.mark.parametrize("strip", [1, 500, 2000])
def test_strips_are_as_the_whole(strip: int) -> None:
    original = grainy(60, 84)[:, :59, :83]
    before = upscaled(original, (20, 28))
    after = blurred(before, 2)
    after[:, 10:] = before[:, 10:]
    assert torch.equal(carry_edit(original, before, after, strip=strip), carry_edit(original, before, after))


def test_series_and_pairs() -> None:
    originals = torch.cat([grainy(), grainy().flip(2)])
    before = reduced(originals)
    after = torch.cat([blurred(before, 1), blurred(before, 2)])  # two pictures at one K, then at the next
    made = carry_edit(originals, before, after)
    assert made.shape == (4, *originals.shape[1:])
    for row in range(4):
        here = slice(row % 2, row % 2 + 1)
        assert torch.equal(
            made[row : row + 1], carry_edit(originals[here], before[here], after[row : row + 1])
        )


def test_alpha_and_grey() -> None:
    original = grainy(channels=4)
    made = carry_edit(original, reduced(original)[..., :3], blurred(reduced(original), 2))
    assert torch.equal(made[..., 3], original[..., 3])
    assert not torch.equal(made[..., :3], original[..., :3])
    grey = original[..., :1]
    assert carry_edit(grey, reduced(grey), blurred(reduced(grey), 2)).shape == grey.shape
    tinted = blurred(reduced(grey), 2) * torch.tensor([1.0, 0.9, 0.8])
    assert carry_edit(grey, reduced(grey), tinted).shape == (1, 48, 72, 3)


def test_an_original_smaller_than_the_edit() -> None:
    original = grainy()
    large = upscaled(original, (72, 108))
    assert torch.equal(carry_edit(original, large, large), original)
    soft = blurred(original, 3)
    assert psnr(carry_edit(original, large, upscaled(soft, (72, 108))), soft) > 40


def test_progress_and_interrupt() -> None:
    original, told = grainy(), []
    before = reduced(original)

    def stop(done: int, total: int) -> None:
        told.append((done, total))
        if done == 7:
            raise KeyboardInterrupt

    carry_edit(original, before, before, progress=lambda *step: told.append(step), strip=72 * 12)
    assert told == [(step, 4) for step in range(5)]
    told.clear()
    with pytest.raises(KeyboardInterrupt):
        carry_edit(original, before, blurred(before, 2).expand(2, -1, -1, -1), progress=stop, strip=72 * 6)
    assert told[-1] == (7, 16)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"after": torch.zeros(1, 16, 25, 3)}, "before is 24 x 16 pixels and after 25 x 16"),
    (
        {"original": torch.zeros(1, 48, 48, 3)},
        "an edit of it 24 wide is 24 high, but before and after are 24 x 16",
    ),
    ({"original": torch.zeros(2, 48, 72, 3)}, "2 pictures in original for 1 edits"),
    ({"before": torch.zeros(3, 16, 24, 3)}, "3 pictures in before for 1 edits"),
    ({"original": torch.full((1, 48, 72, 3), math.nan)}, "original: picture 0 holds NaN"),
    ({"after": torch.full((1, 16, 24, 3), math.inf)}, "after: picture 0 holds NaN or infinite"),
    ({"before": torch.zeros(16, 24, 3)}, "before: expected pictures"),
    ({"after": torch.zeros(1, 16, 24, 2)}, "after: expected pictures"),
    ({"original": torch.zeros(1, 48, 72, 3, dtype=torch.uint8)}, "original: expected floating point"),
    ({"smallest": -0.1}, "smallest change is -0.1"),
    ({"smallest": math.nan}, "smallest change is nan"),
]


@pytest.mark.parametrize(("changed", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_does_not_belong_together_is_refused(changed: dict[str, Any], message: str) -> None:
    small = torch.zeros(1, 16, 24, 3)
    with pytest.raises(BokehError, match=message):
        carry_edit(**{"original": torch.zeros(1, 48, 72, 3), "before": small, "after": small, **changed})


@pytest.mark.parametrize("size", [(136, 208), (137, 205), (64, 96)])
def test_a_size_rounded_for_a_model_is_of_the_same_shape(size: tuple[int, int]) -> None:
    small = torch.zeros(1, *size, 1)
    assert carry_edit(torch.zeros(1, 40, 60, 1), small, small).shape == (1, 40, 60, 1)


def test_path_traced_pairs() -> None:
    """Against a path tracer's own picture at full size, in both directions; plain upscaling is what there was."""
    found = np.load(Path(__file__).parent / "data" / "traced.npz")
    depth, sharp, lenses = (
        torch.from_numpy(found[name].astype(np.float32)) for name in ("depth", "image", "lens")
    )
    sharp = sharp.movedim(0, -1)[None].clamp(0, 1) ** (1 / 2.2)
    for picture, (k, focus) in zip(found["bokeh"], lenses.tolist(), strict=True):
        soft = torch.from_numpy(picture.astype(np.float32)).movedim(0, -1)[None].clamp(0, 1) ** (1 / 2.2)
        focused = (k * (1 / depth - 1 / focus)).abs() < 0.5
        for start, end in ((sharp, soft), (soft, sharp)):
            made = carry_edit(start, reduced(start, 2), reduced(end, 2))
            plain = upscaled(reduced(end, 2), (120, 160))
            if int(focused.sum()) > 500:
                assert psnr(made, end, focused) > psnr(plain, end, focused) + 0.5
            assert psnr(made, end, ~focused) > psnr(plain, end, ~focused) - 0.2
            assert psnr(made, end) > psnr(plain, end) + 0.2


def test_path_traced_scenes(shared: Path) -> None:
    """Those of 512 x 384, the strongest blur: in focus the original's pixels are far nearer to the truth."""
    exr = pytest.importorskip("OpenEXR")

    def colours(path: Path) -> Tensor:
        found = np.asarray(exr.File(str(path)).channels()["RGB"].pixels, np.float32)
        return torch.from_numpy(found)[None].clamp(0, 1) ** (1 / 2.2)

    for folder in sorted((shared / "scenes").glob("scene_*"))[:3]:
        sharp, soft = (colours(folder / name) for name in ("image.exr", "bokeh_02_00.exr"))
        for start, end, least in ((sharp, soft, 1.5), (soft, sharp, 0.4)):
            made = carry_edit(start, reduced(start, 2), reduced(end, 2))
            plain = upscaled(reduced(end, 2), (384, 512))
            assert psnr(made, end) > psnr(plain, end) + least


@pytest.fixture
def node(pack: ModuleType) -> Any:
    return importlib.import_module(f"{pack.__name__}.nodes.carry").BokehCarryEdit


@pytest.mark.host
def test_the_node(node: Any, caplog: pytest.LogCaptureFixture) -> None:
    original = grainy()
    before = reduced(original)
    (made,) = node.execute(original, before, blurred(before, 2).expand(2, -1, -1, -1)).args
    assert torch.equal(made[:1], carry_edit(original, before, blurred(before, 2)))
    assert not caplog.records
    (same,) = node.execute(original, before, before + 0.9 / 255, 1.0).args
    assert torch.equal(same, original)
    assert "Nothing changed from before to after" in caplog.text


@pytest.mark.host
def test_the_node_stops_when_the_host_says(node: Any) -> None:
    import comfy.model_management  # type: ignore[import-not-found]

    original = grainy()
    comfy.model_management.interrupt_current_processing(True)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            node.execute(original, reduced(original), blurred(reduced(original), 2))
    finally:
        comfy.model_management.interrupt_current_processing(False)


def test_in_a_running_server(comfy_server: ComfyServer) -> None:
    """With the readout, whose overlay nothing is linked to, and f-numbers that a camera makes K of."""
    picture = {"width": 24, "height": 16, "batch_size": 1, "color": 0x808080}
    lens = {"f_number": 1.8, "focal_length": 50.0, "focus_distance": 2.0, "sensor": "Full frame"}
    lens |= {"sensor_width": 36.0, "photograph": ""}
    prompt = {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {**picture, "width": 72, "height": 48, "color": 0x405060},
        },
        "2": {"class_type": "EmptyImage", "inputs": picture},
        "3": {"class_type": "EmptyImage", "inputs": {**picture, "color": 0x909090}},
        "4": {
            "class_type": "BokehCarryEdit",
            "inputs": {"original": ["1", 0], "before": ["2", 0], "after": ["3", 0], "smallest_change": 1.0},
        },
        "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "carried"}},
        "6": {"class_type": "BokehDepthOfField", "inputs": {**lens, "circle": 0.0}},
        "7": {"class_type": "PreviewAny", "inputs": {"source": ["6", 0]}},
        "8": {"class_type": "BokehFromCamera", "inputs": {**lens, "image_width": 512}},
        "9": {"class_type": "EmptyImage", "inputs": {**picture, "color": 0x020202}},
        "10": {
            "class_type": "BokehMeRender",
            "inputs": {
                "image": ["2", 0],
                "depth": ["9", 0],
                "depth_kind": "metric (metres)",
                "depth_range": "multiply by scale",
                "depth_scale": 255.0,
                "edges": "as is",
                "k": ["8", 0],
                "k_reference": "512 px",
                "focus_x": 0.5,
                "focus_y": 0.5,
                "model": "layered",
                "transfer": "sRGB",
                "highlight_recovery": 0.0,
                "k_values": "f/1.8, f/8, 0",
            },
        },
        "11": {"class_type": "SaveImage", "inputs": {"images": ["10", 0], "filename_prefix": "stops"}},
    }
    run = comfy_server.run(prompt)
    (saved,) = run.images("5")
    pixels = np.asarray(Image.open(io.BytesIO(comfy_server.view(**saved)))).astype(int)
    assert pixels.shape == (48, 72, 3)
    assert np.abs(pixels - [0x50, 0x60, 0x70]).max() <= 1  # 0x10 brighter, as the edit is
    assert len(run.images("11")) == 3
