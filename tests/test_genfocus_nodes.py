"""Genfocus' nodes on a tiny FLUX: photographs of any size in, photographs out; units, refusals, files."""
# ruff: noqa: F811 (the fixture `said` is imported)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests import models
from tests.branches import lora_tensors
from tests.golden import adapter_folder
from tests.models import Halves, conditioning, one_thread, randn, relative  # noqa: F401
from tests.sampling import said, unloaded  # noqa: F401

SETTINGS = {
    "seed": 3,
    "steps": 2,
    "guidance": 1.0,
    "sampler_name": "euler",
    "scheduler": "simple",
    "denoise": 1.0,
    "tile": 0,
    "reuse": False,
}


@pytest.fixture(scope="module")
def base(pack: ModuleType) -> Any:
    return models.host_model("flux")


@pytest.fixture(scope="module")
def loras(pack: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("loras")
    found = {}
    for name in ("deblurNet", "bokehNet", "deblurNet_with_pre_deblur", "mine"):
        save_file(lora_tensors(), folder / f"{name}.safetensors")
        with adapter_folder(folder, "loras"):
            found[name] = pack.nodes.genfocus.LoadGenfocus.execute(f"{name}.safetensors", 1.0).result[0]
    return found


def photograph(height: int = 32, width: int = 48, pictures: int = 1, seed: int = 4) -> Tensor:
    small = torch.rand(pictures, 3, height // 4, width // 4, generator=models.generator(seed))
    return torch.nn.functional.interpolate(small, (height, width), mode="bilinear").movedim(1, -1)


def a_depth(pack: ModuleType, height: int = 32, width: int = 48, focal: float | None = 60.0) -> Any:
    depths = pack.bokeh_ops.depth.conventions
    plane = torch.linspace(0.2, 1.0, width).expand(1, 1, height, -1)
    return depths.DepthMap(plane, depths.DepthUnit.DIOPTRES, focal)


def deblur(pack: ModuleType, base: Any, lora: Any, image: Tensor, **more: Any) -> Tensor:
    given = {**SETTINGS, "model": base, "vae": Halves(16), "positive": conditioning("flux"), "genfocus": lora}
    return pack.nodes.genfocus.DeblurPhotograph.execute(image, **{**given, **more}).result[0]


def refocus(
    pack: ModuleType, base: Any, lora: Any, image: Tensor, depth: Any, strength: float, unit: str, **more: Any
) -> tuple[Tensor, Tensor]:
    given = {**SETTINGS, "model": base, "vae": Halves(16), "positive": conditioning("flux"), "genfocus": lora}
    return pack.nodes.genfocus.RefocusPhotograph.execute(
        image, depth, strength, unit, **{**given, **more}
    ).result


def seen_by(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The latents of conditions, as each photograph's sampling gets them."""
    sample = pack.bokeh_ops.host.genfocus.sample
    right, seen = sample.with_pictures, []

    def with_pictures(model: Any, positive: Any, latents: Tensor) -> Any:
        seen.append(latents)
        return right(model, positive, latents)

    monkeypatch.setattr(sample, "with_pictures", with_pictures)
    return seen


@pytest.mark.parametrize(("height", "width"), [(32, 48), (37, 50), (5, 20)])
def test_any_size(
    pack: ModuleType, base: Any, loras: Any, said: Callable[[], list[str]], height: int, width: int
) -> None:
    image = photograph(height if height > 5 else 8, width)[:, :height]
    out = deblur(pack, base, loras["deblurNet"], image)
    assert out.shape == image.shape
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1
    assert any("multiple of 16" in text for text in said()) == bool(height % 16 or width % 16)


def test_the_photograph_is_what_the_model_sees(
    pack: ModuleType, base: Any, loras: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = seen_by(pack, monkeypatch)
    image = photograph(pictures=2)
    out = deblur(pack, base, loras["deblurNet"], image)
    assert len(seen) == 2
    for row, latents in enumerate(seen):
        assert torch.equal(latents, Halves(16).encode(image[row : row + 1])[None])
    assert relative(out[1], out[0]) > 1e-2
    assert torch.equal(deblur(pack, base, loras["deblurNet"], image), out)  # the same seed
    assert relative(deblur(pack, base, loras["deblurNet"], image, seed=4), out) > 1e-3
    # As in the host, the first of a batch has the noise that it has alone.
    assert relative(deblur(pack, base, loras["deblurNet"], image[:1]), out[:1]) < 1e-6


def test_denoise_and_mask(pack: ModuleType, base: Any, loras: Any) -> None:
    image, lora = photograph(), loras["deblurNet"]
    kept = deblur(pack, base, lora, image, denoise=0.0)
    assert torch.equal(kept, image)
    whole, little = (deblur(pack, base, lora, image, denoise=share, steps=4) for share in (1.0, 0.25))
    roundtrip = Halves(16).decode(Halves(16).encode(image))
    off = [float((out - roundtrip).abs().mean()) for out in (little, whole)]
    assert off[0] < 0.8 * off[1]
    mask = torch.zeros(1, 32, 48)
    mask[:, :, 24:] = 1
    masked = deblur(pack, base, lora, image, mask=mask)
    assert torch.equal(masked[:, :, :24], image[:, :, :24])
    assert relative(masked[:, :, 24:], image[:, :, 24:]) > 1e-2
    assert relative(masked[:, :, 24:], whole[:, :, 24:]) > 1e-3  # what is kept is seen while sampling


def test_it_is_what_the_hosts_sampler_gives(pack: ModuleType, base: Any, loras: Any) -> None:
    """Any of the host's samplers and schedulers, on a model that sees the photograph."""
    image, lora, vae = photograph(), loras["deblurNet"], Halves(16)
    latent = vae.encode(image)
    ((context, told),) = conditioning("flux")
    positive = [[context, {**told, "guidance": 1.0}]]
    patching = pack.bokeh_ops.host.genfocus.patch
    model = patching.with_branches(base, lora, 1)
    positive = patching.with_pictures(base, positive, latent[:, None])
    for sampler, scheduler in (("dpmpp_2m", "karras"), ("euler_ancestral", "beta")):
        expected = models.sample(
            model,
            positive,
            positive,
            {"samples": latent},
            seed=3,
            steps=3,
            sampler=sampler,
            scheduler=scheduler,
        )
        out = deblur(pack, base, lora, image, steps=3, sampler_name=sampler, scheduler=scheduler)
        assert relative(out, vae.decode(expected)) < 1e-5


def test_progress_and_interrupts(
    pack: ModuleType, base: Any, loras: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management
    import comfy.utils

    told: list[tuple[int, int]] = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda at, total, *_, **__: told.append((at, total))
    )
    deblur(pack, base, loras["deblurNet"], photograph(pictures=2))
    assert told[-1] == (4, 4)
    assert [at for at, _ in told] == sorted(at for at, _ in told)
    calls = 0

    def stop(*_: Any, **__: Any) -> None:
        nonlocal calls
        calls += 1
        comfy.model_management.interrupt_current_processing()
        comfy.model_management.throw_exception_if_processing_interrupted()  # as the server's does

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", stop)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        deblur(pack, base, loras["deblurNet"], photograph(), steps=20)
    assert calls < 4
    monkeypatch.undo()
    deblur(pack, base, loras["deblurNet"], photograph())  # and the next run goes


@pytest.mark.parametrize(
    ("strength", "unit", "inputs"),
    [
        (9.0, "K at 512 px", {"k": 9.0}),
        (9.0, "K at image px", {"k": 9.0, "k_reference": "image px"}),
        (1.4, "f-number", {"k": 1.0, "f_number": 1.4}),
    ],
)
def test_strength_is_that_of_the_other_lenses(
    pack: ModuleType,
    base: Any,
    loras: Any,
    monkeypatch: pytest.MonkeyPatch,
    strength: float,
    unit: str,
    inputs: dict[str, Any],
) -> None:
    """The signed defocus is that of Lens Blur from Depth; a hundredth is shown, upwards of the VAE's middle."""
    seen = seen_by(pack, monkeypatch)
    image, depth = photograph(), a_depth(pack)
    focus = pack.bokeh_ops.depth.focus.Focus(x=0.25, y=0.5)
    _, defocus = refocus(pack, base, loras["bokehNet"], image, depth, strength, unit, focus=focus)
    given = {
        "depth_kind": "disparity (near is bright)",
        "depth_range": "as is",
        "depth_scale": 1.0,
        "edges": "as is",
        "k_reference": "512 px",
        "focus_x": 0.25,
        "focus_y": 0.5,
        "model": "classical",
        "transfer": "display (gamma 2.2)",
        "highlight_recovery": 0.0,
    }
    names = pack.nodes.render.TRANSFERS
    given["transfer"] = next(iter(names))
    _, expected, *_ = pack.nodes.render.BokehMeRender.execute(image, depth, **{**given, **inputs}).result
    assert float(expected.abs().max()) > 0.1
    assert relative(defocus, expected) < 1e-5
    ((picture, blur),) = (latents[0].unbind(0) for latents in seen)
    assert torch.equal(picture, Halves(16).encode(image)[0])
    shown = (1 + (expected[..., None].abs() / 100).clamp(0, 1)) / 2
    assert relative(blur, Halves(16).encode(shown.expand(-1, -1, -1, 3))[0]) < 1e-5


def test_the_largest_radius_needs_no_metres(
    pack: ModuleType, base: Any, loras: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    grey = torch.linspace(0, 0.5, 48).expand(1, 32, -1)
    focus = pack.bokeh_ops.depth.focus
    image = photograph()
    at_left = focus.Focus(x=0.0, y=0.5)
    _, defocus = refocus(
        pack, base, loras["bokehNet"], image, grey, 20.0, "largest radius in px", focus=at_left
    )
    assert float(defocus.abs().max()) == pytest.approx(20.0)
    assert abs(float(defocus[0, 16, 0])) < 1
    pull = focus.Focus(focus.FocusMode.DISPARITY, values=(0.0, 1.0))
    out, defocus = refocus(
        pack, base, loras["bokehNet"], image, grey, 20.0, "largest radius in px", focus=pull
    )
    assert len(out) == len(defocus) == 2
    assert float(defocus[0, 0, -1]) == pytest.approx(20.0)
    assert float(defocus[1, 0, 0]) == pytest.approx(-20.0)
    assert relative(out[1], out[0]) > 1e-3


def test_a_picture_deblurred_before(
    pack: ModuleType, base: Any, loras: Any, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    seen = seen_by(pack, monkeypatch)
    image, before = photograph(), photograph(seed=8)
    out = deblur(pack, base, loras["deblurNet_with_pre_deblur"], image, pre_deblurred=before)
    assert torch.equal(seen[-1], Halves(16).encode(torch.cat([before, image]))[None])
    assert not said()
    black = deblur(pack, base, loras["deblurNet_with_pre_deblur"], image)
    assert any("shown black" in text for text in said())
    assert relative(black, out) > 1e-3


def test_tiles_and_kept_keys(pack: ModuleType, base: Any, loras: Any) -> None:
    image, lora = photograph(48, 160), loras["deblurNet"]
    whole = deblur(pack, base, lora, image)
    tiled = deblur(pack, base, lora, image, tile=48)
    assert relative(tiled, whole) > 1e-3
    kept = deblur(pack, base, lora, image, tile=48, reuse=True, steps=1)
    assert relative(kept, deblur(pack, base, lora, image, tile=48, steps=1)) < 1e-6
    kept = deblur(pack, base, lora, image, tile=48, reuse=True)
    assert 0 < relative(kept, tiled) < 0.5


def test_a_compiled_model_runs_uncompiled(
    pack: ModuleType, base: Any, loras: Any, said: Callable[[], list[str]]
) -> None:
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    compiled = base.clone()
    set_torch_compile_wrapper(compiled, backend="eager")
    image, lora = photograph(), loras["deblurNet"]
    exact = deblur(pack, base, lora, image)
    assert not said()
    assert torch.equal(deblur(pack, compiled, lora, image), exact)
    assert any("runs uncompiled" in text for text in said())


def test_where_memory_runs_out(
    pack: ModuleType, base: Any, loras: Any, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    """Nothing is lost: it goes on without keys that are kept, then in tiles, and at last says what to do."""
    sample = pack.bokeh_ops.host.genfocus.sample
    right, fits = sample.Sampling._sampled, [0, False]

    def sampled(way: Any, *given: Any) -> Tensor:
        if [way.side, way.keep] != fits:
            raise torch.cuda.OutOfMemoryError("out of memory: 9 GB")
        return right(way, *given)

    image, lora = photograph(), loras["deblurNet"]
    exact = deblur(pack, base, lora, image)
    monkeypatch.setattr(sample.Sampling, "_sampled", sampled)
    assert torch.equal(deblur(pack, base, lora, image, reuse=True), exact)
    assert any("without reusing them" in text for text in said())
    fits[0] = sample.LEAST_TILE
    deblur(pack, base, lora, image, reuse=True)
    tiles = [text for text in said() if "going on in tiles of" in text]
    assert [text.split()[-2] for text in tiles] == ["512", "256"]
    fits[0] = 1
    with pytest.raises(
        pack.bokeh_ops.errors.BokehError, match=r"Tiles of 256 pixels do not fit .*fp8 or as GGUF"
    ):
        deblur(pack, base, lora, image)


def test_kinds_are_told_apart(
    pack: ModuleType, base: Any, loras: Any, tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    error = pack.bokeh_ops.errors.BokehError
    with pytest.raises(error, match="deblurNet, which takes blur away; here bokehNet is needed"):
        refocus(pack, base, loras["deblurNet"], photograph(), a_depth(pack), 9.0, "K at 512 px")
    with pytest.raises(error, match="bokehNet, which makes blur; here deblurNet is needed"):
        deblur(pack, base, loras["bokehNet"], photograph())
    deblur(pack, base, loras["mine"], photograph())
    assert any("does not tell by its name" in text for text in said())
    deblur(pack, base, replace(loras["deblurNet"], strength=0.0), photograph())
    assert any("strength of Genfocus' LoRA is 0" in text for text in said())
    save_file(lora_tensors(), tmp_path / "mine.safetensors")
    save_file(lora_tensors(), tmp_path / "bokehNet.safetensors")
    load = pack.nodes.genfocus.LoadGenfocus
    with adapter_folder(tmp_path, "loras"):
        told = load.execute("mine.safetensors", 1.0, "bokehNet").result[0]
        assert told.kind is pack.bokeh_ops.genfocus.Kind.BOKEH
        with pytest.raises(error, match="told to be deblurNet, but its name says bokehNet"):
            load.execute("bokehNet.safetensors", 1.0, "deblurNet")
        assert "No LoRA 'other.safetensors'" in load.validate_inputs("other.safetensors")
        assert load.validate_inputs("mine.safetensors") is True
        assert load.fingerprint_inputs("mine.safetensors") == load.fingerprint_inputs("bokehNet.safetensors")


def changed(**names: Tensor | None) -> dict[str, Tensor]:
    """The LoRA with tensors put in or left out (None); ``__`` for a dot."""
    found = dict(lora_tensors())
    for name, value in names.items():
        key = name.replace("__", ".")
        found.pop(key, None)
        if value is not None:
            found[key] = value
    return found


_Q = "transformer__transformer_blocks__0__attn__to_q"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (changed(transformer__transformer_blocks__0__attn__add_q_proj__lora_A__weight=torch.zeros(3, 32),
                 transformer__transformer_blocks__0__attn__add_q_proj__lora_B__weight=torch.zeros(32, 3)),
         "ordinary LoRA of FLUX: it changes layers of the text too"),
        ({"lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": torch.zeros(1, 1)},
         "not a LoRA of Genfocus: .* ordinary LoRA: load it with Load LoRA, before Genfocus"),
        ({"adapter_modules.0.to_v_bokeh.up.weight": torch.zeros(1, 1)}, "a bokeh adapter, for Load Bokeh Adapter"),
        ({"unet.down_blocks.1.attentions.0.to_q.lora_A.weight": torch.zeros(1, 1)}, "for SDXL or SD1.5"),
        (changed(**{f"{_Q}__lora_B__weight": None}), "lora_B missing"),
        (changed(**{f"{_Q}__lora_B__weight": torch.zeros(32, 5)}), r"lora_A \(3, 32\) and lora_B \(32, 5\)"),
        (changed(**{f"{_Q}__lora_B__weight": torch.full((32, 3), torch.nan)}), "NaN or infinite"),
        ({"double_blocks.0.img_attn.qkv.weight": torch.zeros(1, 1)}, "not a LoRA of Genfocus"),
    ],
)  # fmt: skip
def test_other_files(pack: ModuleType, tmp_path: Path, tensors: dict[str, Tensor], message: str) -> None:
    save_file(tensors, tmp_path / "bokehNet.safetensors")
    with pytest.raises(pack.bokeh_ops.errors.BokehError, match=message):
        pack.bokeh_ops.genfocus.files.read_branch_lora(tmp_path / "bokehNet.safetensors")


def test_alpha_in_a_file_is_not_looked_at(pack: ModuleType, tmp_path: Path) -> None:
    tensors = {**lora_tensors(), "transformer.x_embedder.alpha": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "bokehNet.safetensors")
    read = pack.bokeh_ops.genfocus.files.read_branch_lora(tmp_path / "bokehNet.safetensors")
    assert len(read.pairs) == len(lora_tensors()) // 2


def test_pictures_and_depth_that_do_not_do(pack: ModuleType, base: Any, loras: Any) -> None:
    error = pack.bokeh_ops.errors.BokehError
    bokeh, image, depth = loras["bokehNet"], photograph(), a_depth(pack)
    grey = torch.linspace(0, 1, 48).expand(1, 32, -1)
    depths = pack.bokeh_ops.depth.conventions
    bare = replace(depth, unit=depths.DepthUnit.RELATIVE)
    for given, unit in ((grey, "K at 512 px"), (bare, "K at image px"), (grey, "f-number")):
        with pytest.raises(error, match=r"has no unit.*largest radius"):
            refocus(pack, base, bokeh, image, given, 9.0, unit)
    with pytest.raises(error, match="focal length"):
        refocus(pack, base, bokeh, image, a_depth(pack, focal=None), 2.8, "f-number")
    flat = replace(depth, disparity=torch.ones(1, 1, 32, 48))
    with pytest.raises(error, match="depth is the same everywhere"):
        refocus(pack, base, bokeh, image, flat, 9.0, "largest radius in px")
    for strength in (0.0, -1.0, float("nan"), float("inf")):
        for unit in ("K at 512 px", "f-number", "largest radius in px"):
            with pytest.raises(error, match=r"strength is|f-number is"):
                refocus(pack, base, bokeh, image, depth, strength, unit)
    with pytest.raises(error, match="NaN or infinite"):
        refocus(pack, base, bokeh, image, torch.full((1, 32, 48), torch.nan), 9.0, "largest radius in px")
    with pytest.raises(error, match="on a background"):
        deblur(pack, base, loras["deblurNet"], torch.rand(1, 32, 48, 4))
    with pytest.raises(error, match="at least one"):
        deblur(pack, base, loras["deblurNet"], torch.rand(0, 32, 48, 3))
    with pytest.raises(error, match="The photograph has values that are NaN"):
        deblur(pack, base, loras["deblurNet"], torch.full((1, 32, 48, 3), torch.nan))
    with pytest.raises(error, match=r"mask is .* for 1 pictures"):
        deblur(pack, base, loras["deblurNet"], image, mask=torch.ones(3, 32, 48))
    with pytest.raises(error, match="Connect the VAE of FLUX"):
        deblur(pack, base, loras["deblurNet"], image, vae=Halves(4))
    for wrong in ([], [[torch.zeros(1, 5, 7), {}]]):
        with pytest.raises(
            error, match=r"prompt (is empty|has 7 features a token).*FLUX's own text encoders"
        ):
            deblur(pack, base, loras["deblurNet"], image, positive=wrong)
    with pytest.raises(error, match=r"Genfocus' LoRAs are for FLUX\.1-dev"):
        deblur(pack, models.host_model("sdxl"), loras["deblurNet"], image)  # whatever the VAE is
    with pytest.raises(error, match="the photograph is"):
        deblur(pack, base, loras["deblurNet"], image, pre_deblurred=photograph(16, 16))
