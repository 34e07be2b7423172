"""Genfocus in FLUX: conditions as further tokens, against the same computed stream by stream; what is beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests import golden, models, parity
from tests.branches import Streams, lora_tensors, pairs_of
from tests.models import conditioning, one_thread, predict, randn, relative  # noqa: F401
from tests.sampling import unloaded  # noqa: F401

SIGMA = 0.7


@pytest.fixture(scope="module")
def base(pack: ModuleType) -> Any:
    return models.host_model("flux")


@pytest.fixture(scope="module")
def lora(pack: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("loras") / "bokehNet.safetensors"
    save_file(lora_tensors(), path)
    return pack.bokeh_ops.genfocus.files.read_branch_lora(path)


def patched(pack: ModuleType, model: Any, lora: Any, shown: Tensor, **more: Any) -> tuple[Any, Any]:
    """``shown``: conditions in the model's own scale, ``[R, n, C, h, w]``."""
    patching = pack.bokeh_ops.host.genfocus.patch
    outside = model.model.process_latent_out(shown)
    positive = more.pop("positive", conditioning("flux"))
    seeing = patching.with_branches(model, lora, shown.shape[1], **more)
    return seeing, patching.with_pictures(model, positive, outside)


def once(model: Any, positive: Any, x: Tensor) -> Tensor:
    (out,) = predict(model, positive, x=x, sigma=SIGMA)
    return out


def velocity(denoised: Tensor, x: Tensor) -> Tensor:
    """What the network said of it: the host gives the picture, ``x - sigma v``."""
    return (x - denoised) / SIGMA


def by_hand(
    model: Any,
    x: Tensor,
    shown: Tensor,
    columns: Sequence[int] | None,
    tensors: Any,
    control: Tensor | None = None,
) -> Tensor:
    ((context, told),) = conditioning("flux")
    rows = len(x)
    with torch.no_grad():
        return Streams(model.model.diffusion_model, pairs_of(tensors))(
            x,
            list(shown.unbind(1)),
            context.expand(rows, -1, -1),
            told["pooled_output"].expand(rows, -1),
            torch.full((rows,), SIGMA),
            told["guidance"],
            columns,
            control,
        )


def test_what_the_authors_computed(
    shared: Path, pack: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parity.main([str(shared / "golden" / "genfocus_official")]) == 0
    tried = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert tried == ["out_base", "out_conditions_no_lora", "out_lora", "out_lora_one_condition"]


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp8"])
def test_what_the_authors_computed_in_half_precision(shared: Path, pack: ModuleType, dtype: str) -> None:
    assert parity.main([str(shared / "golden" / "genfocus_official"), "--dtype", dtype]) == 0


@pytest.mark.parametrize(("name", "count", "guidance"), [("deblurNet", 1, 3.5), ("bokehNet", 3, 1.0)])
def test_another_directory_of_the_format(
    pack: ModuleType, tmp_path: Path, name: str, count: int, guidance: float
) -> None:
    """Other ranks, sizes, conditions and guidance, computed stream by stream."""
    network = models.host_model("flux").model.diffusion_model
    lora = lora_tensors(rank=5)
    given = {
        "latent": randn(1, 16, 6, 10, seed=1),
        "context": randn(1, 5, 12, seed=2),
        "y": randn(1, 8, seed=3),
        "timestep": torch.tensor([0.4]),
        "guidance": torch.tensor([guidance]),
    }
    shown = [randn(1, 16, 6, 10, seed=10 + i) for i in range(count)]
    told = (given["context"], given["y"], given["timestep"], guidance)
    with torch.no_grad():
        expected = {
            "out_base": Streams(network, {})(given["latent"], [], *told),
            "out_conditions_no_lora": Streams(network, {})(given["latent"], shown, *told),
            "out_lora": Streams(network, pairs_of(lora))(given["latent"], shown, *told),
        }
    names = {f"condition_{i}": each for i, each in enumerate(shown)}
    save_file({**given, **names, **expected}, tmp_path / "io.safetensors")
    save_file(lora, tmp_path / f"{name}.safetensors")
    published = {
        key.replace("norm.weight", "norm.scale"): value for key, value in network.state_dict().items()
    }
    save_file(published, tmp_path / "base.safetensors")
    (tmp_path / "flux_config.json").write_text(json.dumps(models.FLUX))
    for dtype in parity.DTYPES:
        assert parity.main([str(tmp_path), "--dtype", dtype]) == 0


@pytest.mark.parametrize(
    ("count", "size", "rows", "columns"),
    [(1, (8, 8), 1, None), (2, (4, 12), 2, None), (3, (12, 6), 1, None), (2, (6, 8), 1, (32, 0))],
)
def test_streams(
    pack: ModuleType,
    base: Any,
    lora: Any,
    count: int,
    size: tuple[int, int],
    rows: int,
    columns: Sequence[int] | None,
) -> None:
    x, shown = randn(rows, 16, *size, seed=1), randn(rows, count, 16, *size, seed=2)
    before = models.snapshot(base)
    model, positive = patched(pack, base, lora, shown, columns=columns)
    out = velocity(once(model, positive, x), x)
    assert relative(out, by_hand(base, x, shown, columns, lora_tensors())) < 1e-5
    models.unload()
    assert models.same_bits(models.snapshot(base), before)
    for module in base.model.diffusion_model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert (
        relative(once(base, conditioning("flux"), x), once(model, conditioning("flux"), x)) == 0
    )  # a prompt that shows nothing


@pytest.mark.parametrize("part", ["x_embedder", "norm1", "to_k", "to_out", "ff.net", "norm.linear", "proj_"])
def test_every_part_of_the_lora_acts(pack: ModuleType, base: Any, lora: Any, part: str) -> None:
    x, shown = randn(1, 16, 4, 4, seed=1), randn(1, 2, 16, 4, 4, seed=2)
    some = {name: value for name, value in lora_tensors().items() if part not in name}
    assert len(some) < len(lora_tensors())
    out = velocity(once(*patched(pack, base, lora, shown), x), x)
    assert relative(out, by_hand(base, x, shown, None, some)) > 1e-4


def test_the_strength_scales_the_lora(pack: ModuleType, base: Any, lora: Any) -> None:
    from dataclasses import replace

    x, shown = randn(1, 16, 4, 4, seed=1), randn(1, 2, 16, 4, 4, seed=2)
    half = {name: value * (0.5 if "lora_B" in name else 1.0) for name, value in lora_tensors().items()}
    for strength, tensors in ((0.5, half), (0.0, {})):
        out = velocity(once(*patched(pack, base, replace(lora, strength=strength), shown), x), x)
        assert relative(out, by_hand(base, x, shown, None, tensors)) < 1e-5


def test_rows_have_their_own_pictures(pack: ModuleType, base: Any, lora: Any) -> None:
    x, shown = randn(2, 16, 4, 6, seed=1), randn(2, 2, 16, 4, 6, seed=2)
    both = once(*patched(pack, base, lora, shown), x)
    for row in range(2):
        alone = once(*patched(pack, base, lora, shown[row : row + 1]), x[row : row + 1])
        assert relative(both[row : row + 1], alone) < 1e-5
    with pytest.raises(pack.bokeh_ops.errors.BokehError, match="3 pictures for a latent batch of 2"):
        once(*patched(pack, base, lora, randn(3, 2, 16, 4, 6)), x)


def test_keys_that_are_kept_serve_the_same_call(pack: ModuleType, base: Any, lora: Any) -> None:
    x, shown = randn(1, 16, 4, 6, seed=1), randn(1, 2, 16, 4, 6, seed=2)
    exact = once(*patched(pack, base, lora, shown), x)
    model, positive = patched(pack, base, lora, shown, keep=True)
    tokens: list[int] = []

    def look(_module: Any, args: Any, kwargs: Any) -> None:
        tokens.append(kwargs.get("img", args[0] if args else None).shape[1])

    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, positive)
    guider.set_cfg(1.0)
    hook = base.model.diffusion_model.double_blocks[0].register_forward_pre_hook(look, with_kwargs=True)
    outs: list[Tensor] = []

    class Twice(comfy.samplers.Sampler):
        """Asks the model the same thing twice."""

        def sample(self, model_wrap: Any, sigmas: Tensor, extra_args: Any, *_: Any, **__: Any) -> Tensor:
            outs.extend(model_wrap(x, torch.tensor([SIGMA]), **extra_args) for _ in range(2))
            return outs[-1]

    try:
        guider.sample(torch.zeros_like(x), torch.zeros_like(x), Twice(), torch.tensor([SIGMA, 0.0]), seed=0)
    finally:
        hook.remove()
    assert tokens == [3 * 6, 6]
    assert relative(outs[0], exact) < 1e-6
    assert relative(outs[1], exact) < 1e-5
    patch = model.wrappers["apply_model"]["genfocus"][0]
    assert not patch._kept  # nothing is left after a run


class Whole:
    """The host's executor, of a network that says something smooth of each place: what it is given, by itself."""

    class Model:
        class diffusion_model:
            patch_size = 2

    class_obj = Model

    def __init__(self) -> None:
        self.sizes: list[tuple[int, ...]] = []

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.sizes.append(tuple(x.shape[-2:]))
        return (
            torch.sin(x)
            + kwargs["more"]
            - args[3]["output"][0]
            .mean(-1)
            .unflatten(1, [s // 2 for s in x.shape[-2:]])
            .repeat_interleave(2, 1)
            .repeat_interleave(2, 2)[:, None]
        )


@pytest.mark.parametrize("size", [(64, 96), (100, 132), (48, 300), (64, 64)])
def test_tiles_agree_where_they_meet(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    """On a smooth field, whatever the tiles: also a ControlNet's tokens and maps over the picture are cut rightly."""
    from contextlib import nullcontext

    patching = pack.bokeh_ops.host.genfocus.patch
    monkeypatch.setattr(patching, "branches", lambda options, *_: nullcontext(options))
    y, x = torch.meshgrid(torch.linspace(0, 3, size[0]), torch.linspace(0, 2, size[1]), indexing="ij")
    field = (x * y + y)[None, None].expand(1, 16, -1, -1)
    control = {"output": [torch.cos(field[:, :, ::2, ::2]).flatten(2).movedim(1, -1)], "input": [None]}
    outs = []
    for side in (None, 32, 24, 16):
        patch = patching.GenfocusPatch(patching._Factors({}, torch.float32), 1.0, [0], side, False)
        executor = Whole()
        given = (field, torch.tensor([0.5]), None, torch.zeros(1, 5, 12), control, {})
        outs.append(patch(executor, *given, genfocus=field[:, None], more=field.square()))
        assert len(set(executor.sizes)) == 1
    assert len(executor.sizes) > 1
    assert max(executor.sizes[0]) == 32
    for out in outs[1:]:
        assert float((out - outs[0]).abs().max()) < 1e-5


def test_tiles_in_the_real_network(pack: ModuleType, base: Any, lora: Any) -> None:
    """Each tile is what the network says of it alone, at the places of a picture of its size."""
    x, shown = randn(1, 16, 8, 32, seed=1), randn(1, 2, 16, 8, 32, seed=2)
    tiled = once(*patched(pack, base, lora, shown, side=4, columns=(5, 0)), x)
    # Where the first and the last tile are alone.
    for column, part in ((0, slice(8)), (31, slice(24, 32))):
        alone = once(*patched(pack, base, lora, shown[..., part]), x[..., part])
        assert relative(tiled[..., column], alone[..., column - part.start if part.start else column]) < 1e-5
    assert relative(tiled, once(*patched(pack, base, lora, shown), x)) > 1e-3


def test_fp8_weights(pack: ModuleType, base: Any, lora: Any) -> None:
    """Weights in fp8 are computed with as they are; nothing is rounded anew, as nothing is merged."""
    import comfy.model_base
    import comfy.supported_models

    cpu = torch.device("cpu")
    full = models.host_model("flux", seed=3)
    config = comfy.supported_models.Flux(
        {**full.model.model_config.unet_config, "dtype": torch.float8_e4m3fn}
    )
    config.manual_cast_dtype = torch.float32
    small = golden.patcher(comfy.model_base.Flux(config, device=cpu), cpu)
    source = dict(full.model.diffusion_model.named_parameters())
    with torch.no_grad():
        for name, weight in small.model.diffusion_model.named_parameters():
            weight.copy_(source[name])
            source[name].copy_(weight.float())
    x, shown = randn(1, 16, 4, 6, seed=1), randn(1, 2, 16, 4, 6, seed=2)
    exact = once(*patched(pack, full, lora, shown), x)
    assert relative(once(*patched(pack, small, lora, shown), x), exact) < 1e-5


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_beside_a_bokeh_adapter(pack: ModuleType, base: Any, lora: Any, strength: float) -> None:
    """K acts on what is made, and is nothing at strength 0; the photographs' own tokens have none of it."""
    x, shown = randn(1, 16, 4, 6, seed=1), randn(1, 2, 16, 4, 6, seed=2)
    adapter = models.adapter("flux", query_key=False)
    adapted = pack.bokeh_ops.host.adapter.apply.apply_adapter(base, adapter, strength)
    with_k = pack.bokeh_ops.host.sampling.conditioning.with_k(conditioning("flux"), [20.0])
    out = once(*patched(pack, adapted, lora, shown, positive=with_k), x)
    without = once(*patched(pack, base, lora, shown), x)
    assert (relative(out, without) > 1e-3) == bool(strength)
    alone, plain = once(adapted, with_k, x), once(base, conditioning("flux"), x)
    assert relative(out, alone) > 1e-3
    assert (relative(alone, plain) > 1e-3) == bool(strength)


def test_beside_a_lora_and_a_mask_of_attention(pack: ModuleType, base: Any, lora: Any) -> None:
    """A LoRA on the model acts on all tokens; a mask that others give holds for what they know of."""
    x, shown = randn(1, 16, 4, 6, seed=1), randn(1, 2, 16, 4, 6, seed=2)
    changed = base.clone()
    key = "diffusion_model.single_blocks.0.linear2.weight"
    delta = randn(32, 160, seed=9) / 10
    assert changed.add_patches({key: ("diff", (delta,))}, 1.0)
    out = velocity(once(*patched(pack, changed, lora, shown), x), x)
    twin = models.host_model("flux")
    with torch.no_grad():
        twin.model.diffusion_model.single_blocks[0].linear2.weight.add_(delta)
    assert relative(out, by_hand(twin, x, shown, None, lora_tensors())) < 1e-5

    from comfy.conds import CONDRegular

    with_conditions = pack.bokeh_ops.host.sampling.conditioning.with_conditions
    nothing = torch.zeros(1, 5 + 6, 5 + 6)  # added, as Apply Style Model gives it
    blind = nothing.clone()
    blind[:, 5:, :5] = -1e9  # the picture does not see the text
    outs = [
        once(
            *patched(
                pack,
                base,
                lora,
                shown,
                positive=with_conditions(conditioning("flux"), attention_mask=CONDRegular(mask)),
            ),
            x,
        )
        for mask in (nothing, blind)
    ]
    assert relative(outs[0], once(*patched(pack, base, lora, shown), x)) < 1e-5
    assert relative(outs[1], outs[0]) > 1e-3

    # In tiles each has its part of the mask; this one hides the text from the left half.
    wide, long = randn(1, 16, 4, 16, seed=1), randn(1, 2, 16, 4, 16, seed=2)
    places = torch.arange(2 * 8).unflatten(0, (2, 8))
    half = torch.zeros(1, 5 + 16, 5 + 16)
    half[:, 5 + places[:, :4].flatten(), :5] = -1e9
    told = with_conditions(conditioning("flux"), attention_mask=CONDRegular(half))
    tiled = once(*patched(pack, base, lora, long, side=2, positive=told), wide)
    left = torch.zeros(1, 5 + 4, 5 + 4)
    left[:, 5:, :5] = -1e9
    for column, part, mask in ((0, slice(4), left), (15, slice(12, 16), None)):
        more = {} if mask is None else {"attention_mask": CONDRegular(mask)}
        alone = once(
            *patched(
                pack, base, lora, long[..., part], positive=with_conditions(conditioning("flux"), **more)
            ),
            wide[..., part],
        )
        assert relative(tiled[..., column], alone[..., column - part.start if part.start else column]) < 1e-5


def test_beside_a_controlnet(pack: ModuleType, base: Any, lora: Any) -> None:
    """It acts on what is made alone."""
    import comfy.controlnet

    x, shown = randn(1, 16, 4, 6, seed=1), randn(1, 2, 16, 4, 6, seed=2)
    added = randn(1, 6, 32, seed=11)

    class Net(comfy.controlnet.ControlBase):
        def get_control(self, *_: Any, **__: Any) -> dict[str, list[Any]]:
            return {"input": [added.clone()], "output": []}

        def copy(self) -> Any:
            return self

    ((context, told),) = conditioning("flux")
    positive = [[context, {**told, "control": Net(), "control_apply_to_uncond": False}]]
    out = velocity(once(*patched(pack, base, lora, shown, positive=positive), x), x)
    assert relative(out, by_hand(base, x, shown, None, lora_tensors(), added)) < 1e-5
    assert relative(out, by_hand(base, x, shown, None, lora_tensors())) > 1e-3


def test_another_forward_is_told(pack: ModuleType, base: Any, lora: Any) -> None:
    from comfy.patcher_extension import WrappersMP

    x, shown = randn(1, 16, 4, 6, seed=1), randn(1, 2, 16, 4, 6, seed=2)

    def without_patches(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        (options,) = (each for each in args if isinstance(each, dict) and "patches" in each)
        options["patches"].pop("post_input")
        return executor(*args, **kwargs)

    # Has a forward of its own that leaves ComfyUI's patches out; or the blocks, too.
    for wrapper in (without_patches, lambda executor, x, *_, **__: x):
        other = base.clone()
        other.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "other", wrapper)
        with pytest.raises(pack.bokeh_ops.errors.BokehError, match="runs FLUX's forward in its own way"):
            once(*patched(pack, other, lora, shown), x)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_other_models_are_told(pack: ModuleType, lora: Any, kind: str) -> None:
    model = models.host_model(kind)
    with pytest.raises(pack.bokeh_ops.errors.BokehError, match=r"Genfocus' LoRAs are for FLUX\.1-dev"):
        patched(pack, model, lora, torch.zeros(1, 1, 4, 4, 4), positive=conditioning(kind))


def test_a_lora_of_other_sizes_is_told(pack: ModuleType, base: Any, tmp_path: Path) -> None:
    read = pack.bokeh_ops.genfocus.files.read_branch_lora
    wide = tmp_path / "bokehNet.safetensors"
    save_file(lora_tensors(width=48), wide)
    with pytest.raises(
        pack.bokeh_ops.errors.BokehError, match=r"takes 48 features and gives 48, .* 32 and 32"
    ):
        patched(pack, base, read(wide), torch.zeros(1, 1, 16, 4, 4))
    deep = {name.replace("blocks.1.", "blocks.7."): value for name, value in lora_tensors().items()}
    save_file(deep, wide)
    with pytest.raises(pack.bokeh_ops.errors.BokehError, match=r"blocks\.7.* does not have"):
        patched(pack, base, read(wide), torch.zeros(1, 1, 16, 4, 4))
