"""BokehMe: the networks' shapes, what they are told, how their answers are mixed, and unsafe files."""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bokeh_ops.errors import BokehError
from bokeh_ops.render import Lens, check_inputs, render
from bokeh_ops.render import checkpoint as checkpoint_module
from bokeh_ops.render.bokehme import BokehMe, blur_reach, load_bokehme
from bokeh_ops.render.checkpoint import fill, load_weights
from bokeh_ops.render.networks import ARNet, IUNet

NAMES = [
    f"{layer}.conv.{kind}"
    for layer in ("conv0", *(f"block_stack.blocks.{i}.{j}" for i in range(3) for j in range(2)), "conv1")
    for kind in ("weight", "bias")
]


def scene(height: int = 37, width: int = 45, channels: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(1, channels, height, width, generator=generator)
    disparity = torch.linspace(0, 1, width).expand(1, 1, height, width).clone()
    disparity[..., 10:25, 8:20] = 0.9
    return image, disparity


def small_model(error: float | None = None) -> BokehMe:
    """Random networks; with ``error`` the error map is this logit everywhere."""
    torch.manual_seed(1)
    arnet, iunet = ARNet(8), IUNet(8)
    if error is not None:
        last = arnet.conv1[0]
        assert isinstance(last, torch.nn.Conv2d)
        assert last.bias is not None
        with torch.no_grad():
            last.weight[12:] = 0
            last.bias[12:] = error
    return BokehMe(arnet, iunet)


def test_the_published_numbers_of_parameters_and_the_released_names() -> None:
    assert sum(p.numel() for p in ARNet().parameters()) == 923_664
    assert sum(p.numel() for p in IUNet().parameters()) == 240_076
    assert list(ARNet().state_dict()) == NAMES
    assert list(IUNet().state_dict()) == NAMES


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 2), (5, 4), (12, 17)])
@torch.no_grad()
def test_networks_take_any_size(size: tuple[int, int]) -> None:
    image, defocus = torch.rand(2, 3, *size), torch.rand(2, 1, *size)
    bokeh, error = ARNet(8)(image, defocus, 0.75)
    assert bokeh.shape == image.shape
    assert error.shape == defocus.shape
    assert float(error.min()) > 0
    assert float(error.max()) < 1
    coarse = torch.rand(2, 3, 4, 4)
    assert IUNet(8)(image, defocus, coarse, torch.tensor([0.0, 1.0])).shape == image.shape


def test_a_network_equals_its_description() -> None:
    """Folding written out pixel by pixel, and the layers by hand."""
    torch.manual_seed(0)
    net = IUNet(8).double()
    image, defocus = torch.rand(1, 3, 6, 8).double(), torch.rand(1, 1, 6, 8).double()
    coarse = torch.rand(1, 3, 3, 4).double()
    picture = torch.cat([image, defocus], 1)
    folded = torch.empty(1, 21 - 1, 3, 4).double()
    for c in range(4):
        for y in range(2):
            for x in range(2):
                folded[:, 4 * c + 2 * y + x] = picture[:, c, y::2, x::2]
    folded[:, 16:19], folded[:, 19:] = coarse, 0.3
    w = net.state_dict()

    def layer(x: Tensor, name: str) -> Tensor:
        return torch.nn.functional.conv2d(x, w[f"{name}.conv.weight"], w[f"{name}.conv.bias"], padding=1)

    def elu(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, x.exp() - 1)

    x = elu(layer(folded, "conv0"))
    for i in range(3):
        block = f"block_stack.blocks.{i}"
        x = x + elu(layer(elu(layer(x, f"{block}.0")), f"{block}.1"))
    x = layer(x, "conv1")
    expected = torch.empty(1, 3, 6, 8).double()
    for c in range(3):
        for dy in range(2):
            for dx in range(2):
                expected[:, c, dy::2, dx::2] = x[:, 4 * c + 2 * dy + dx]
    assert torch.allclose(net(image, defocus, coarse, 0.3), expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_no_error_is_the_classical_picture_and_all_error_the_neural_one(channels: int) -> None:
    image, disparity = scene(channels=channels)
    lens = Lens(25.0, 0.4, 2.2)
    classical = render(image, disparity, lens, "classical")
    out = small_model(error=-200.0)(image, disparity, lens)
    assert torch.equal(out.image, classical.image)
    assert torch.equal(out.defocus, classical.defocus)
    model = small_model(error=200.0)
    out = model(image, disparity, lens)
    with torch.no_grad():
        neural, error = model.neural(image[:, :3].expand(-1, 3, -1, -1), classical.defocus, lens)
    assert float(error.min()) > 1 - 1e-6
    neural = neural.mean(1, keepdim=True) if channels == 1 else neural
    assert torch.allclose(out.image[:, :3], neural, atol=1e-6)
    assert torch.equal(out.image[:, 3:], classical.image[:, 3:])


def test_k_zero_gives_the_same_bits_and_rows_have_their_own_scale() -> None:
    image, disparity = scene()
    model = small_model()
    assert torch.equal(model(image, disparity, Lens(0.0, 0.4)).image, image)
    both = model(image.repeat(3, 1, 1, 1), disparity.repeat(3, 1, 1, 1), Lens(torch.tensor([5.0, 0.0, 40.0])))
    for row, k in enumerate([5.0, 0.0, 40.0]):
        alone = model(image, disparity, Lens(k))
        assert torch.allclose(both.image[row], alone.image[0], atol=1e-6)


def test_what_the_networks_are_told() -> None:
    """Scales, units and gamma, by networks that write down what they are given."""

    class Wrote:
        def __init__(self, out: int) -> None:
            self.out, self.notes = out, []

        def to(self, _: torch.device) -> Wrote:
            return self

        def eval(self) -> Wrote:
            return self

        def __call__(self, image: Tensor, defocus: Tensor, *rest: Any) -> Any:
            self.notes.append((tuple(image.shape[-2:]), float(defocus.abs().max()), rest[-1]))
            picture = torch.zeros_like(image)
            return (picture, torch.zeros_like(defocus)) if self.out == 2 else picture

    arnet, iunet = Wrote(2), Wrote(1)
    model = BokehMe(arnet, iunet)  # type: ignore[arg-type]
    image, disparity = torch.rand(1, 3, 90, 120), torch.linspace(0, 1, 120).expand(1, 1, 90, 120)
    model(image, disparity, Lens(50.0, 0.0, 3.0))  # s = 5: two doublings, then to fit
    (size, defocus, gamma), *more = arnet.notes
    assert (size, gamma) == ((18, 24), 0.5)
    assert defocus == pytest.approx(1)
    assert not more
    assert [note[0] for note in iunet.notes] == [(36, 48), (72, 96), (90, 120)]
    assert [note[1] for note in iunet.notes] == [1.0, 1.0, 1.0]
    arnet.notes.clear()
    iunet.notes.clear()
    model(image, disparity, Lens(6.0, 0.0, 1.0))  # nothing over 10 pixels: at full size
    assert [note[0] for note in arnet.notes] == [(90, 120)]
    assert arnet.notes[0][1] == pytest.approx(0.6)
    assert [note[0] for note in iunet.notes] == [(90, 120)]


def test_the_largest_defocus_that_reaches_a_pixel() -> None:
    """Against a loop over all pairs; a blurred picture's is worked out coarsely, and close."""
    rng = np.random.default_rng(0)
    defocus = np.round(rng.random((14, 17)) * 12 - 7, 1)
    expected = np.trunc(defocus)
    y, x = np.mgrid[:14, :17]
    for v in range(14):
        for u in range(17):
            covered = np.hypot(y - v, x - u) <= abs(defocus[v, u])
            expected[covered] = np.maximum(expected[covered], np.trunc(defocus[v, u]))
    got = blur_reach(torch.tensor(defocus)[None, None])[0, 0].numpy()
    assert np.array_equal(got, expected)
    wide = torch.zeros(1, 1, 200, 200)
    wide[..., 100, 100] = 60.0
    reached = blur_reach(wide)[0, 0] == 60
    assert float(reached.sum()) == pytest.approx(math.pi * 60**2, rel=0.15)


def test_alpha_highlights_progress_and_types() -> None:
    image, disparity = scene()
    seen: list[tuple[int, int]] = []
    out = small_model()(
        image.half(), disparity, Lens(20.0, 0.3), lambda done, total: seen.append((done, total))
    )
    assert out.image.dtype == torch.float16
    assert bool(torch.isfinite(out.image).all())
    assert seen == sorted(seen)
    assert seen[-1] == (1000, 1000)
    bright = torch.full_like(image, 0.95)
    plain, boosted = (
        small_model(error=200.0)(bright, disparity, Lens(20.0, 0.3, highlight_boost=boost)).image
        for boost in (0.0, 2.0)
    )
    assert float((plain - boosted).abs().max()) > 1e-3

    class Stop(Exception):
        pass

    def stop(*_: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        small_model()(image, disparity, Lens(20.0, 0.3), stop)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (6, 2)])
def test_tiny_pictures(size: tuple[int, int]) -> None:
    image, disparity = torch.rand(1, 3, *size), torch.rand(1, 1, *size) + 1
    check_inputs(image, disparity)
    out = small_model()(image, disparity, Lens(80.0, 0.0))
    assert out.image.shape == image.shape
    assert bool(torch.isfinite(out.image).all())


def test_gammas_the_networks_do_not_know_are_refused() -> None:
    for gamma in (0.5, 8.0, "srgb"):
        with pytest.raises(BokehError, match="1 to 5"):
            small_model()(*scene(), Lens(5.0, gamma=gamma))


# Files


def released(path: Path, module: torch.nn.Module, **beside: Any) -> Path:
    """A checkpoint as the authors' training saves it: the weights, an optimizer, NumPy arrays."""
    names = {"global_step": 12, "model": module.state_dict(), "loss": np.arange(3.0), **beside}
    optimizer = torch.optim.Adam(module.parameters())
    torch.save({**names, "optimizer": optimizer.state_dict(), "step": np.float64(0.5)}, path)
    return path


def test_released_checkpoints_load(tmp_path: Path) -> None:
    arnet, iunet = ARNet(), IUNet()
    first, second = released(tmp_path / "arnet.pth", arnet), released(tmp_path / "iunet.pth", iunet)
    model = load_bokehme(first, second)
    assert isinstance(model, BokehMe)
    for loaded, saved in ((model.arnet, arnet), (model.iunet, iunet)):
        for name, tensor in saved.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor)
    image, disparity = scene(16, 20)
    assert model(image, disparity, Lens(4.0, 0.2)).image.shape == image.shape


def test_safetensors_and_bare_state_dicts_load(tmp_path: Path) -> None:
    iunet = IUNet(8)
    save_file(iunet.state_dict(), tmp_path / "a.safetensors")
    torch.save(iunet.state_dict(), tmp_path / "b.pth")
    torch.save({"state_dict": {k: v.half() for k, v in iunet.state_dict().items()}}, tmp_path / "c.pth")
    torch.save(
        {"model": {name: torch.nn.Parameter(p) for name, p in iunet.state_dict().items()}}, tmp_path / "d.pt"
    )
    for name in ("a.safetensors", "b.pth", "c.pth", "d.pt"):
        weights = load_weights(tmp_path / name)
        assert set(weights) == set(NAMES)
        for key, tensor in weights.items():
            assert torch.allclose(tensor.float(), iunet.state_dict()[key], atol=1e-3)


def test_views_of_a_shared_storage_load(tmp_path: Path) -> None:
    base = torch.arange(24.0)
    torch.save(
        {"a": base.view(4, 6)[1:3, ::2], "b": base.view(4, 6).T, "c": torch.empty(0)}, tmp_path / "x.pth"
    )
    weights = load_weights(tmp_path / "x.pth")
    assert torch.equal(weights["a"], base.view(4, 6)[1:3, ::2])
    assert torch.equal(weights["b"], base.view(4, 6).T)
    assert weights["c"].numel() == 0


def archive(path: Path, program: bytes, **more: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("archive/data.pkl", program)
        for name, content in more.items():
            made.writestr(f"archive/{name.replace('__', '/')}", content)
    return path


class _Runs:
    """Unpickling this calls something."""

    def __init__(self, function: Any, *given: Any) -> None:
        self.call = function, given

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_checkpoint_that_would_run_something_is_refused_and_runs_nothing(
    tmp_path: Path, protocol: int
) -> None:
    touched = tmp_path / "touched"
    import os
    import subprocess

    attacks: list[Any] = [
        _Runs(os.system, f"touch {touched}"),
        _Runs(subprocess.call, ["touch", str(touched)]),
        _Runs(eval, f"open({str(touched)!r}, 'w')"),
        _Runs(getattr, "x", "upper"),
        _Runs(torch.load, str(touched)),
        _Runs(np.fromfile, str(touched)),
        _Runs(io.open, str(touched), "w"),
    ]
    for attack in attacks:
        path = archive(tmp_path / "bad.pth", pickle.dumps({"model": {}, "x": attack}, protocol))
        with pytest.raises(BokehError, match=r"could run code"):
            load_weights(path)
    assert not touched.exists()


def test_stand_ins_cannot_be_changed_for_the_next_file(tmp_path: Path) -> None:
    """BUILD on what the reader hands out: classes and functions keep their attributes."""
    for name in (
        b"ccollections\nOrderedDict\n",
        b"cnumpy\nndarray\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
    ):
        program = b"\x80\x02" + name + b"N}X\x05\x00\x00\x00probeK\x01s\x86b."
        before = set(dir(checkpoint_module._Dict)), set(dir(checkpoint_module._Nothing))
        with pytest.raises(BokehError):
            load_weights(archive(tmp_path / "odd.pth", program))
        assert before == (set(dir(checkpoint_module._Dict)), set(dir(checkpoint_module._Nothing)))


def test_damaged_files_are_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = released(tmp_path / "whole.pth", IUNet(8)).read_bytes()
    cases = {
        "truncated.pth": whole[: len(whole) // 2],
        "noise.pth": bytes(range(256)) * 20,
        "empty.pth": b"",
        "noise.safetensors": struct.pack("<Q", 2**60) + b"{}",
        "old.pth": pickle.dumps({"model": 1}),
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BokehError, match=name):
            load_weights(tmp_path / name)
    with pytest.raises(BokehError, match="no file"):
        load_weights(tmp_path / "none.pth")
    programs = {
        "number": pickle.dumps(3),
        "without tensors": pickle.dumps({"model": {"a": 1}}),
        "memo": b"\x80\x02}r\xff\xff\xff\x7f.",
        "stack": b"\x80\x02R.",
        "cut": b"\x80\x02}q",
        "storage": b"\x80\x02(X\x01\x00\x00\x00qtQ.",
    }
    for name, program in programs.items():
        with pytest.raises(BokehError):
            load_weights(archive(tmp_path / f"{name}.pth", program))
    # A tensor larger than its storage, and a storage whose record is cut.
    torch.save({"a": torch.arange(6.0)}, tmp_path / "t.pth")
    with zipfile.ZipFile(tmp_path / "t.pth") as made:
        parts = {name.split("/", 1)[1]: made.read(name) for name in made.namelist()}
    short = archive(tmp_path / "short.pth", parts["data.pkl"], data__0=parts["data/0"][:8])
    with pytest.raises(BokehError, match="damaged"):
        load_weights(short)
    assert b"K\x06\x85" in parts["data.pkl"]  # the size (6,)
    long = archive(
        tmp_path / "long.pth", parts["data.pkl"].replace(b"K\x06\x85", b"K\x07\x85"), data__0=parts["data/0"]
    )
    with pytest.raises(BokehError, match="larger than its storage"):
        load_weights(long)
    big = archive(tmp_path / "big.pth", parts["data.pkl"], byteorder=b"big", data__0=parts["data/0"])
    with pytest.raises(BokehError, match="byte order"):
        load_weights(big)
    monkeypatch.setattr(checkpoint_module, "LARGEST", 100)
    with pytest.raises(BokehError, match="at most"):
        load_weights(tmp_path / "t.pth")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    arnet = ARNet().state_dict()
    with pytest.raises(BokehError, match=r"conv0\.conv\.weight"):
        fill(IUNet(), arnet, "arnet.pth")
    with pytest.raises(BokehError, match="missing"):
        fill(ARNet(), {k: v for k, v in arnet.items() if "conv1" not in k}, "x.pth")
    with pytest.raises(BokehError, match="not known"):
        fill(ARNet(), {**arnet, "more": torch.zeros(1)}, "x.pth")
    with pytest.raises(BokehError, match="NaN"):
        fill(ARNet(), {**arnet, "conv1.conv.bias": torch.full((16,), math.nan)}, "x.pth")
