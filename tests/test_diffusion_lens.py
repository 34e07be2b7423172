"""The diffusion lens in the host: one step of a tiny SDXL with PISA, any picture, weights from files, refusals."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from tests import models
from tests.golden import adapter_folder
from tests.models import Halves, one_thread, relative  # noqa: F401

LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"


@pytest.fixture(scope="module")
def base(pack: ModuleType) -> Any:
    return models.host_model("sdxl")


@pytest.fixture(autouse=True)
def unloaded(pack: ModuleType) -> Iterator[None]:
    yield
    models.unload()


def parts(pack: ModuleType) -> Any:
    return pack.bokeh_ops.host.diffusion_lens.lens


def lens(pack: ModuleType, base: Any, **settings: Any) -> Any:
    return parts(pack).DiffusionLens(base, Halves(), models.conditioning("sdxl"), **{"side": 64, **settings})


def scene(height: int, width: int, pictures: int = 1) -> tuple[Tensor, Tensor]:
    """Pictures and disparity, smooth."""
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 4, width), indexing="ij")
    image = torch.stack([0.5 + 0.4 * torch.sin(x + i) * torch.cos(y) for i in range(3)])
    return image.expand(pictures, -1, -1, -1), ((x + y) / 7)[None, None].expand(pictures, -1, -1, -1)


def rendered(
    pack: ModuleType, model: Any, image: Tensor, disparity: Tensor, k: Any = 8.0, **more: Any
) -> Tensor:
    render = pack.bokeh_ops.render
    return render.render(image, disparity, render.Lens(k, 0.5), model, **more).image


def one(pack: ModuleType, base: Any, latents: Tensor, light: Any, layers: Any = None) -> Tensor:
    return parts(pack).one_step(base, models.conditioning("sdxl"), latents, light, layers)


def a_light(pack: ModuleType, rows: int, height: int, width: int, **settings: Any) -> Any:
    source = models.generator(3)
    maps = torch.rand(2, rows, 1, height, width, generator=source)
    return pack.bokeh_ops.diffusion_lens.attention.Light(maps[0] * 0.9, 20 * maps[1], **settings)


def watched(attach: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, tuple[int, int]]]:
    """Scene and grid of every call of PISA."""
    seen: list[tuple[Any, tuple[int, int]]] = []
    right = attach.pisa

    def pisa(q: Tensor, k: Tensor, v: Tensor, light: Any, grid: tuple[int, int]) -> Tensor:
        seen.append((light, grid))
        return right(q, k, v, light, grid)

    monkeypatch.setattr(attach, "pisa", pisa)
    return seen


def test_a_step_is_equation_1(pack: ModuleType, base: Any) -> None:
    latents = models.randn(2, 4, 8, 12)
    seen: list[tuple[Tensor, Tensor]] = []
    network = base.model.diffusion_model
    hook = network.register_forward_hook(lambda _m, given, out: seen.append((given[0], out)))
    try:
        made = one(pack, base, latents, None)
    finally:
        hook.remove()
    ((given, noise),) = seen
    alpha_bar = 1 / (1 + float(base.model.model_sampling.sigma(torch.tensor(499.0))) ** 2)
    assert alpha_bar == pytest.approx(0.27767, abs=1e-5)  # of SDXL's schedule at 499
    own = base.model.process_latent_in(latents)
    assert relative(given, own) < 1e-5  # no noise
    expected = (own - (1 - alpha_bar) ** 0.5 * noise) / alpha_bar**0.5
    assert relative(base.model.process_latent_in(made), expected) < 1e-5


def test_pisa_is_where_the_paper_has_it(pack: ModuleType, base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    attach = pack.bokeh_ops.host.diffusion_lens.attach
    assert attach.lens_layers(base) == [f"input_blocks.3.1.transformer_blocks.{i}.attn1" for i in range(2)]
    latents, light = models.randn(2, 4, 8, 12), a_light(pack, 2, 64, 96)
    before = models.snapshot(base)
    seen = watched(attach, monkeypatch)
    with_lens, without = one(pack, base, latents, light), one(pack, base, latents, None)
    assert [grid for _, grid in seen] == [(4, 6)] * 2
    assert relative(with_lens, without) > 1e-2
    assert relative(one(pack, base, latents, a_light(pack, 2, 64, 96, occlusion=False)), with_lens) > 1e-3
    assert relative(one(pack, base, latents, light, layers=[]), without) == 0
    assert models.same_bits(models.snapshot(base), before)
    assert not base.model_options["transformer_options"]


def test_every_row_has_its_own_scene(pack: ModuleType, base: Any) -> None:
    latents, light = models.randn(2, 4, 8, 12), a_light(pack, 2, 64, 96)
    both = one(pack, base, latents, light)
    for row in range(2):
        rows = slice(row, row + 1)
        alone = pack.bokeh_ops.diffusion_lens.attention.Light(light.disparity[rows], light.radius[rows])
        assert relative(both[rows], one(pack, base, latents[rows], alone)) < 1e-5


@pytest.mark.parametrize(("height", "width"), [(64, 64), (100, 70), (40, 150), (24, 20)])
def test_any_size(pack: ModuleType, base: Any, height: int, width: int) -> None:
    said: list[str] = []
    image, disparity = scene(height, width)
    made = rendered(pack, lens(pack, base, notice=said.append), image, disparity)
    assert made.shape == image.shape
    assert torch.isfinite(made).all()
    assert bool(said) == (max(height, width) < 64)
    assert all("rendered enlarged" in text for text in said)


def test_a_batch_grey_and_half_precision(pack: ModuleType, base: Any) -> None:
    image, disparity = scene(64, 96, 2)
    k = torch.tensor([8.0, 0.0])
    made = rendered(pack, lens(pack, base), image, disparity, k)
    assert torch.equal(made[1], image[1])  # K is 0
    assert relative(made[:1], rendered(pack, lens(pack, base), image[:1], disparity[:1])) < 1e-6
    grey = rendered(pack, lens(pack, base), image[:1, :1].half(), disparity[:1])
    assert (grey.shape, grey.dtype) == ((1, 1, 64, 96), torch.float16)


def test_k_is_obeyed_in_pixels_of_the_picture(
    pack: ModuleType, base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watched(pack.bokeh_ops.host.diffusion_lens.attach, monkeypatch)
    image, disparity = scene(64, 64)
    rendered(pack, lens(pack, base), image, disparity, 8.0)
    # 51.2 units are a tile of 64 pixels.
    light = seen[0][0]
    assert torch.allclose(light.radius, (8.0 * (disparity - 0.5)).abs() * 51.2 / 64)
    assert tuple(map(float, light.disparity.aminmax())) == (0, 1)


@pytest.mark.parametrize(("height", "width"), [(64, 200), (150, 200), (97, 64), (64, 64), (70, 90)])
def test_tiles_meet_without_a_seam(pack: ModuleType, height: int, width: int) -> None:
    """However much tiles disagree: where one ends it counts for nothing, and all together count as one."""
    tiles = pack.bokeh_ops.picture.tiles
    several = tiles.tiled(height, width, 64)
    whole = torch.zeros(1, 1, height, width)

    def share(tile: Any) -> Tensor:
        return tiles.from_tiles(whole, several, lambda t: torch.full((1, 1, *t[2:]), float(t == tile)))[0, 0]

    assert torch.allclose(sum(share(tile) for tile in several), torch.ones(height, width))  # type: ignore[arg-type]
    assert (len(several) == 1) == (height * width < 1.5 * 64 * 64)
    for tile in several:
        assert share(tile).count_nonzero() == tile.height * tile.width
        inside = tile.of(share(tile))
        for along, start, size, most in (
            (0, tile.top, tile.height, height),
            (1, tile.left, tile.width, width),
        ):
            if start > 0:
                assert inside.select(along, 0).max() < 1e-3
            if start + size < most:
                assert inside.select(along, size - 1).max() < 1e-3


def test_every_tile_is_told_of_its_own_place(
    pack: ModuleType, base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = parts(pack)
    seen: list[Tensor] = []
    encoded: list[Tensor] = []
    right = Halves.encode
    monkeypatch.setattr(
        Halves, "encode", lambda self, pixels: (encoded.append(pixels), right(self, pixels))[1]
    )
    monkeypatch.setattr(module, "with_hints", lambda positive, channels: (seen.append(channels), positive)[1])
    image, disparity = scene(64, 160)
    rendered(pack, lens(pack, base, told=("layered", "defocus")), image, disparity)
    (first,) = encoded
    assert torch.allclose(first.movedim(-1, 1), rendered(pack, "layered", image, disparity), atol=1e-6)
    assert len(seen) == 3
    last = F.pixel_shuffle(seen[-1], 8)[0]  # the right end of the picture
    assert torch.allclose(last[:3], 2 * image[0, :, :, -64:] - 1, atol=1e-6)
    near = (disparity - disparity.min()) / (disparity.max() - disparity.min())
    assert torch.allclose(last[3], 2 * near[0, 0, :, -64:] - 1, atol=1e-6)
    radius = 8.0 * (disparity[0, 0, :, -64:] - 0.5)
    assert torch.allclose(last[4], 0.5 * radius * 51.2 / 64, atol=1e-5)
    assert float(radius.min()) < 0 < float(radius.max())


def test_a_picture_of_several_tiles(pack: ModuleType, base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []
    module = parts(pack)
    right = module.one_step

    def counted(model: Any, positive: Any, latents: Tensor, *rest: Any) -> Tensor:
        calls.append(tuple(latents.shape[-2:]))
        return right(model, positive, latents, *rest)

    monkeypatch.setattr(module, "one_step", counted)
    image, disparity = scene(64, 160)
    told: list[tuple[int, int]] = []
    rendered(
        pack, lens(pack, base), image, disparity, progress=lambda done, total: told.append((done, total))
    )
    assert calls == [(8, 8)] * 3
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1]

    def stop(done: int, total: int) -> None:
        if done > 1:
            raise KeyboardInterrupt

    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        rendered(pack, lens(pack, base), image, disparity, progress=stop)
    assert len(calls) == 1


def test_through_the_render_node(pack: ModuleType, base: Any) -> None:
    image, disparity = scene(64, 64)
    node = pack.nodes.render.BokehMeRender
    common: dict[str, Any] = {
        "image": image.movedim(1, -1),
        "depth": disparity[:, 0],
        "depth_kind": "disparity",
        "depth_range": "as is",
        "depth_scale": 1.0,
        "edges": "as is",
        "k_reference": "image px",
        "focus_x": 0.5,
        "focus_y": 0.5,
        "model": "layered",
        "transfer": "sRGB",
        "highlight_recovery": 0.0,
    }
    kinds = pack.bokeh_ops.depth.conventions
    common["depth_kind"] = kinds.DepthKind.DISPARITY.value
    common["depth_range"] = kinds.DepthRange.AS_IS.value
    made, defocus, *_ = node.execute(**common, k=8.0, lens=lens(pack, base)).result
    other, same, *_ = node.execute(**common, k=8.0).result
    assert relative(made, other) > 1e-2
    assert torch.equal(defocus, same)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 4}, r"pictures without alpha"),
        ({"gamma": 1.0}, r"not linear \(HDR\) ones"),
        ({"blades": 6}, r"an even round opening only"),
        ({"k": 90.0}, r"The largest blur radius is 45 pixels; .* tiles of 64 pixels and draws 32 at most"),
        ({"nan": True}, r"disparity map has 1 values that are NaN"),
        ({"vae": Halves(16)}, r"latents of 16 channels; the model takes 4"),
    ],
)
def test_what_it_cannot_draw(pack: ModuleType, base: Any, change: dict[str, Any], message: str) -> None:
    render = pack.bokeh_ops.render
    image, disparity = scene(64, 64)
    if "channels" in change:
        image = torch.cat([image, image[:, :1]], 1)
    if "nan" in change:
        disparity = disparity.clone()
        disparity[0, 0, 0, 0] = torch.nan
    asked = render.Lens(
        change.get("k", 8.0),
        0.5,
        gamma=change.get("gamma", 2.2),
        aperture=render.Aperture(blades=change.get("blades", 0)),
    )
    model = parts(pack).DiffusionLens(base, change.get("vae", Halves()), models.conditioning("sdxl"), side=64)
    with pytest.raises(pack.bokeh_ops.errors.BokehError, match=message):
        render.render(image, disparity, asked, model)


def test_models_and_prompts_that_do_not_fit(pack: ModuleType, base: Any) -> None:
    error = pack.bokeh_ops.errors.BokehError
    make = parts(pack).DiffusionLens
    with pytest.raises(error, match=r"a diffusion lens is made of SDXL"):
        make(models.host_model("sd15"), Halves(), models.conditioning("sdxl"))
    with pytest.raises(error, match=r"has 12 features a token and no pooled text"):
        make(base, Halves(), models.conditioning("sd15"))
    bare = copy.deepcopy(models.SDXL)
    bare.update(transformer_depth=[0, 0], transformer_depth_output=[0, 0, 2, 2])
    from tests.golden import sdxl_model

    with pytest.raises(error, match=r"no attention at half the size of its latents"):
        make(sdxl_model(bare, torch.float32, torch.device("cpu")), Halves(), models.conditioning("sdxl"))
    with pytest.raises(error, match=r"has no self-attention 'input_blocks\.9.* it has input_blocks\.3\.1"):
        lens(pack, base, layers=["input_blocks.9.1.transformer_blocks.0.attn1"])
    with pytest.raises(error, match=r"has no self-attention 'a' for the lens"):
        one(pack, base, models.randn(1, 4, 8, 8), a_light(pack, 1, 64, 64), layers=["a"])
    taken = base.clone()
    taken.set_model_attn1_replace(lambda q, k, v, extra: q, "input", 3, 1)
    with pytest.raises(error, match=r"Another extension replaces the self-attention input_blocks\.3\.1"):
        one(pack, taken, models.randn(1, 4, 8, 8), a_light(pack, 1, 64, 64))


def lora(*, rank: int = 3, layer: str = LAYER, width: int = 64, prefix: str = "") -> dict[str, Tensor]:
    return {
        f"{prefix}{layer}.to_q.lora_A.weight": models.randn(rank, width, seed=1),
        f"{prefix}{layer}.to_q.lora_B.weight": models.randn(width, rank, seed=2),
    }


@pytest.mark.parametrize("prefix", ["", "unet.", "base_model.model."])
@pytest.mark.parametrize("alpha", [None, 6])
def test_a_lora_is_added_as_its_file_says(
    pack: ModuleType, base: Any, tmp_path: Path, prefix: str, alpha: int | None
) -> None:
    save_file(lora(prefix=prefix), tmp_path / "a.safetensors")
    if alpha is not None:
        (tmp_path / "config.json").write_text(json.dumps({"lora_alpha": alpha, "lora_rank": 3}))
    with adapter_folder(tmp_path, "bokeh_renderers"):
        made = pack.nodes.diffusion_lens.LoadDiffusionLens.execute(
            "a.safetensors", "none", 0.5, True, base, Halves(), models.conditioning("sdxl")
        ).result[0]
    latents = models.randn(1, 4, 8, 8)
    found = one(pack, made.model, latents, None)
    merged = models.host_model("sdxl")
    layer = merged.model.diffusion_model.get_submodule("input_blocks.3.1.transformer_blocks.0.attn1")
    down, up = lora().values()
    with torch.no_grad():
        layer.to_q.weight += 0.5 * (alpha or 3) / 3 * up @ down
    expected = one(pack, merged, latents, None)
    assert relative(found, expected) < 1e-5
    assert relative(found, one(pack, base, latents, None)) > 1e-3


WRONG_LORAS: dict[str, tuple[dict[str, Tensor], str]] = {
    "of flux": (
        {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(1, 1)},
        r"not the LoRA of a diffusion lens: it has 1 tensors .* It looks like a file for FLUX",
    ),
    "ordinary": (
        {"lora_unet_input_blocks_4_1_proj_in.lora_up.weight": torch.zeros(1, 1)},
        r"load it with Load LoRA, before the lens",
    ),
    "an adapter": ({"output_blocks.3.1.attn2.to_v_bokeh.weight": torch.zeros(1, 1)}, r"Load Bokeh Adapter"),
    "half a pair": (dict(list(lora().items())[:1]), r"lora_A \(3, 64\) and lora_B missing"),
    "two ranks": ({**lora(), f"{LAYER}.to_q.lora_B.weight": torch.zeros(64, 2)}, r"with one rank"),
    "more": ({**lora(), "text_encoder.a.lora_A.weight": torch.zeros(1, 1)}, r"1 of its tensors are something else"),
    "nan": ({**lora(), f"{LAYER}.to_q.lora_B.weight": torch.full((64, 3), torch.nan)}, r"NaN or infinite"),
    "other layers": (lora(layer="down_blocks.3.resnets.0"), r"1 of 1 layers that the model does not have"),
    "other kernels": (
        {
            "down_blocks.0.resnets.0.conv1.lora_A.weight": torch.zeros(2, 32, 1, 1),
            "down_blocks.0.resnets.0.conv1.lora_B.weight": torch.zeros(32, 2, 1, 1),
        },
        r"is \(32, 32, 1, 1\), but that layer of the model is \(32, 32, 3, 3\)",
    ),
    "other sizes": (lora(width=32), r"is \(32, 32\), but that layer of the model is \(64, 64\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_LORAS)
def test_other_loras(pack: ModuleType, base: Any, tmp_path: Path, name: str) -> None:
    tensors, message = WRONG_LORAS[name]
    save_file(tensors, tmp_path / "a.safetensors")
    node = pack.nodes.diffusion_lens.LoadDiffusionLens
    with (
        adapter_folder(tmp_path, "bokeh_renderers"),
        pytest.raises(pack.bokeh_ops.errors.BokehError, match=message),
    ):
        node.execute("a.safetensors", "none", 1.0, True, base, Halves(), models.conditioning("sdxl"))


def test_a_damaged_lora(pack: ModuleType, base: Any, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 40)
    node = pack.nodes.diffusion_lens.LoadDiffusionLens
    with (
        adapter_folder(tmp_path, "bokeh_renderers"),
        pytest.raises(pack.bokeh_ops.errors.BokehError, match=r"a\.safetensors"),
    ):
        node.execute("a.safetensors", "none", 1.0, True, base, Halves(), models.conditioning("sdxl"))


@pytest.mark.parametrize("text", ["{", '{"lora_alpha": 3}', '{"lora_alpha": 3, "lora_rank": 0}', "[1]"])
def test_a_config_that_says_nothing(pack: ModuleType, tmp_path: Path, text: str) -> None:
    save_file(lora(), tmp_path / "a.safetensors")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(pack.bokeh_ops.errors.BokehError, match=r"does not say 'lora_alpha' and 'lora_rank'"):
        pack.bokeh_ops.diffusion_lens.files.read_lora(tmp_path / "a.safetensors")


@pytest.fixture(scope="module")
def vae(pack: ModuleType) -> Any:
    """What the host's VAE has of an encoder, 32 features wide."""
    import comfy.model_patcher
    from comfy.ldm.models.autoencoder import AutoencoderKL

    sizes = {"double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32}
    torch.manual_seed(0)
    stage = AutoencoderKL(
        ddconfig={**sizes, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0},
        embed_dim=4,
    ).eval()
    with torch.no_grad():
        for weight in stage.parameters():  # the host leaves them unset
            weight.normal_()
    cpu = torch.device("cpu")
    return SimpleNamespace(
        first_stage_model=stage,
        patcher=comfy.model_patcher.ModelPatcher(stage, load_device=cpu, offload_device=cpu),
    )


def encoder(vae: Any) -> dict[str, Tensor]:
    """Its layers by diffusers' names, changed."""
    names = {
        "conv_in": "conv_in",
        "norm_out": "conv_norm_out",
        "conv_out": "conv_out",
        "mid.block_1": "mid_block.resnets.0",
        "mid.attn_1.q": "mid_block.attentions.0.to_q",
        "mid.attn_1.proj_out": "mid_block.attentions.0.to_out.0",
    }
    own = vae.first_stage_model.encoder.state_dict()
    return {
        f"{theirs}{name.removeprefix(ours)}": (
            value[:, :, 0, 0] if "attn" in name and value.ndim == 4 else value
        )
        * 1.5
        for ours, theirs in names.items()
        for name, value in own.items()
        if name.startswith(f"{ours}.")
    }


@pytest.mark.parametrize("form", ["flat", "one a module", "with its place"])
def test_an_encoder_takes_the_place_of_the_vaes(
    pack: ModuleType, vae: Any, tmp_path: Path, form: str
) -> None:
    import comfy.model_management as management

    changed = encoder(vae)
    content: dict[str, Any] = changed
    if form == "one a module":
        content = {}
        for name, value in changed.items():
            module, _, rest = name.partition(".")
            content.setdefault(module, {})[rest] = value
    elif form == "with its place":
        content = {f"vae.encoder.{name}": value for name, value in changed.items()}
    torch.save(content, tmp_path / "vae.ckpt")
    before = models.snapshot(SimpleNamespace(model=vae.first_stage_model))
    read = pack.bokeh_ops.diffusion_lens.files.read_encoder(tmp_path / "vae.ckpt")
    other = pack.bokeh_ops.host.diffusion_lens.weights.with_encoder(vae, read)
    management.load_models_gpu([other.patcher])
    state = {name: value.clone() for name, value in vae.first_stage_model.state_dict().items()}
    management.load_models_gpu([vae.patcher])
    assert models.same_bits(models.snapshot(SimpleNamespace(model=vae.first_stage_model)), before)
    differ = {name for name in state if not torch.equal(state[name], before[name])}
    assert len(differ) == len(changed)
    assert all(name.startswith(("encoder.conv", "encoder.mid", "encoder.norm")) for name in differ)
    assert all(torch.allclose(state[name], 1.5 * before[name]) for name in differ)


class Evil:
    def __reduce__(self) -> Any:
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"conv_in.weight": Evil()}, r"print, which has no place among weights and could run code"),
        (
            {"encoder.conv_in.weight": torch.zeros(1), "decoder.conv_in.weight": torch.zeros(1)},
            r"a whole autoencoder",
        ),
        (
            {"encoder.down_blocks.0.resnets.0.conv1.weight": torch.zeros(1)},
            r"not the encoder of a diffusion lens",
        ),
        (lora(), r"not the encoder of a diffusion lens"),
        ({"conv_in.weight": torch.full((1,), torch.nan)}, r"NaN or infinite"),
        (
            {"conv_in.weight": torch.zeros(7, 3, 3, 3)},
            r"encoder.conv_in.weight is \(7, 3, 3, 3\); the VAE has \(32, 3",
        ),
        ({"mid_block.resnets.7.conv1.weight": torch.zeros(1)}, r"the VAE has no such layer"),
    ],
)
def test_other_encoders(
    pack: ModuleType, vae: Any, tmp_path: Path, content: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(content, tmp_path / "vae.ckpt")
    with pytest.raises(pack.bokeh_ops.errors.BokehError, match=message):
        pack.bokeh_ops.host.diffusion_lens.weights.with_encoder(
            vae, pack.bokeh_ops.diffusion_lens.files.read_encoder(tmp_path / "vae.ckpt")
        )
    assert capsys.readouterr().out == ""


def test_the_node_names_what_is_missing(pack: ModuleType, base: Any, tmp_path: Path) -> None:
    node = pack.nodes.diffusion_lens.LoadDiffusionLens
    with adapter_folder(tmp_path, "bokeh_renderers"):
        told = node.validate_inputs("a.safetensors", "none")
        assert "No file 'a.safetensors'. Searched" in told
        assert node.validate_inputs("none", None) is True
        save_file(lora(), tmp_path / "a.safetensors")
        first = node.fingerprint_inputs("a.safetensors", "none")
        with pytest.raises(
            pack.bokeh_ops.errors.BokehError, match=r"^vae, positive are not linked.*Or choose a small lens"
        ):
            node.execute("a.safetensors", "none", 1.0, True, base)
        (tmp_path / "config.json").write_text('{"lora_alpha": 8, "lora_rank": 3}')
        assert node.fingerprint_inputs("a.safetensors", "none") != first
    assert isinstance(base.model.diffusion_model, nn.Module)
