"""Adapters on real host models: what they compute, and that laying on and taking off are exact inverses."""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from bokeh_ops.adapter.conditions import Conditions
from tests import golden, models
from tests.models import one_thread, predict, relative  # noqa: F401
from tests.reference import by_hooks

K = [2.0, 14.0, 30.0]
Lay = Callable[..., Any]


@pytest.fixture(scope="module")
def lay(pack: ModuleType) -> Lay:
    return pack.bokeh_ops.host.adapter.apply.apply_adapter


@pytest.fixture(scope="module", params=models.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def base(pack: ModuleType, kind: str) -> Any:
    return models.host_model(kind)


@pytest.fixture(autouse=True)
def unloaded(pack: ModuleType) -> Iterator[None]:
    yield
    models.unload()


@pytest.fixture(scope="module")
def carry(pack: ModuleType) -> ModuleType:
    return pack.bokeh_ops.host.sampling.conditioning


def picture(kind: str, rows: int = 3, height: int = 8, width: int = 6) -> Tensor:
    return models.randn(rows, models.LATENT_CHANNELS[kind], height, width, seed=5)


def prompts(kind: str) -> tuple[Any, Any]:
    return models.conditioning(kind, 0), models.conditioning(kind, 1, tokens=5)


def run(
    carry: ModuleType, model: Any, kind: str, k: Sequence[float] = K, negative_k: Sequence[float] = (-30.0,)
) -> Tensor:
    """Both predictions, cond and uncond, ``[2, R, ...]``."""
    positive, negative = prompts(kind)
    return torch.stack(
        predict(model, carry.with_k(positive, k), carry.with_k(negative, negative_k), x=picture(kind))
    )


def expected(
    base: Any,
    kind: str,
    adapters: Sequence[tuple[Any, float]],
    k: Sequence[float] = K,
    query_key: float = 1.0,
    pivots: Sequence[int] | None = None,
) -> Tensor:
    models.unload()
    with by_hooks(base, adapters, [-30.0] * 3 + list(k), pivots, query_key):
        return torch.stack(predict(base, *prompts(kind), x=picture(kind)))


def plain(base: Any, kind: str) -> Tensor:
    models.unload()
    return torch.stack(predict(base, *prompts(kind), x=picture(kind)))


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_fresh_adapter_changes_nothing(
    kind: str, base: Any, lay: Lay, carry: ModuleType, tokens: int
) -> None:
    """Random keys, query/key 'down' factors and embedding; zero values and 'up' factors: bit for bit the base."""
    fresh = models.adapter(kind, tokens=tokens, zero=True)
    model = lay(base, fresh)
    assert model.patches
    assert torch.equal(run(carry, model, kind), plain(base, kind))


VARIANTS: dict[str, dict[str, Any]] = {
    "one token": {},
    "three tokens": {"tokens": 3},
    "alpha": {"lora_alpha": 1.5, "full": False},
    "three tokens, alpha": {"tokens": 3, "lora_alpha": 6.0, "full": False},
    "no query/key": {"query_key": False},
    "full matrices": {"full": True},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_it_computes_the_papers_equations(
    kind: str, base: Any, lay: Lay, carry: ModuleType, variant: dict[str, Any]
) -> None:
    adapter = models.adapter(kind, **variant)
    out = run(carry, lay(base, adapter), kind)
    assert relative(out, expected(base, kind, [(adapter, 1.0)])) < 1e-5
    assert relative(out, plain(base, kind)) > 0.02


@pytest.mark.parametrize("blocks", [slice(0, 1), slice(-1, None), slice(1, 3)], ids=str)
def test_some_blocks_only(kind: str, base: Any, lay: Lay, carry: ModuleType, blocks: slice) -> None:
    widths = models.FLUX_WIDTHS if kind == "flux" else models.UNET_WIDTHS
    adapter = models.adapter(kind, blocks=list(widths)[blocks])
    out = run(carry, lay(base, adapter), kind)
    assert relative(out, expected(base, kind, [(adapter, 1.0)])) < 1e-5
    assert relative(out, plain(base, kind)) > 1e-3


@pytest.mark.parametrize(
    ("strength", "query_key"), [(0.5, 1.0), (-1.5, 1.0), (0.0, 1.0), (1.0, 0.0), (1.0, 0.4)]
)
def test_strengths(
    kind: str, base: Any, lay: Lay, carry: ModuleType, strength: float, query_key: float
) -> None:
    adapter = models.adapter(kind)
    out = run(carry, lay(base, adapter, strength, query_key), kind)
    assert relative(out, expected(base, kind, [(adapter, strength)], query_key=query_key)) < 1e-5


def test_strength_zero_is_no_adapter_bit_for_bit(kind: str, base: Any, lay: Lay, carry: ModuleType) -> None:
    model = lay(base, models.adapter(kind), 0.0, 0.0)
    assert not model.patches
    assert not model.wrappers
    assert not model.callbacks
    assert torch.equal(run(carry, model, kind), plain(base, kind))


def test_the_adapters_own_scales(pack: ModuleType, kind: str, base: Any, lay: Lay, carry: ModuleType) -> None:
    from dataclasses import replace

    adapter = models.adapter(kind)
    adapter.config = replace(adapter.config, bokeh_scale=0.5, lora_scale=0.25)
    out = run(carry, lay(base, adapter, 2.0, 2.0), kind)
    again = copy.copy(adapter)
    again.config = replace(adapter.config, lora_scale=0.5)
    assert relative(out, expected(base, kind, [(again, 1.0)])) < 1e-5


def test_a_row_or_branch_without_k_runs_without_the_adapter(
    kind: str, base: Any, lay: Lay, carry: ModuleType
) -> None:
    adapter = models.adapter(kind, query_key=False)
    positive, negative = prompts(kind)
    told = Conditions(torch.tensor([[2.0], [9.0], [30.0]]), torch.tensor([True, False, True]))
    positive = carry.with_conditions(positive, bokeh=carry.ToldCondition(told))
    negative = carry.with_negative_k(negative, K, carry.NEGATIVE_MODES[2])
    out = torch.stack(predict(lay(base, adapter), positive, negative, x=picture(kind)))
    untouched = plain(base, kind)
    assert relative(out[1], untouched[1]) < 1e-6
    assert relative(out[0, 1], untouched[0, 1]) < 1e-6
    assert relative(out[0, 0], untouched[0, 0]) > 0.02


def test_two_adapters_add_up(kind: str, base: Any, lay: Lay, carry: ModuleType) -> None:
    one, other = models.adapter(kind, seed=1), models.adapter(kind, seed=2, tokens=2, lora_alpha=2.0)
    once = lay(base, one, 0.6)
    out = run(carry, lay(once, other, -0.8), kind)
    assert relative(out, expected(base, kind, [(one, 0.6), (other, -0.8)])) < 1e-5
    # The one that the second was laid on still has the first alone.
    assert relative(run(carry, once, kind), expected(base, kind, [(one, 0.6)])) < 1e-5


def test_the_same_adapter_twice_is_twice_its_strength(
    kind: str, base: Any, lay: Lay, carry: ModuleType
) -> None:
    adapter = models.adapter(kind, query_key=False)
    twice = run(carry, lay(lay(base, adapter, 0.5), adapter, 0.5), kind)
    assert relative(twice, run(carry, lay(base, adapter), kind)) < 1e-5


def state_of(model: Any) -> dict[str, Any]:
    """What a MODEL holds besides its weights, deep enough to see any change."""
    return {
        "patches": {key: list(value) for key, value in model.patches.items()},
        "object_patches": dict(model.object_patches),
        "wrappers": copy.deepcopy(model.wrappers),
        "callbacks": copy.deepcopy(model.callbacks),
        "options": copy.deepcopy(model.model_options),
        "attachments": dict(model.attachments),
        "injections": dict(model.injections),
        "additional": dict(model.additional_models),
        "uuid": model.patches_uuid,
    }


def test_the_model_that_came_in_is_not_touched(kind: str, base: Any, lay: Lay, carry: ModuleType) -> None:
    before, weights = state_of(base), models.snapshot(base)
    model = lay(base, models.adapter(kind))
    laid = state_of(model)
    lay(model, models.adapter(kind, seed=2))
    run(carry, model, kind)
    assert state_of(base) == before
    assert state_of(model) == laid
    models.unload()
    assert models.same_bits(models.snapshot(base), weights)
    hooks = [m for m in base.model.diffusion_model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks


def test_weights_are_changed_while_it_is_on_and_bit_identical_after(
    kind: str, base: Any, lay: Lay, carry: ModuleType
) -> None:
    weights = models.snapshot(base)
    run(carry, lay(base, models.adapter(kind)), kind)
    assert not models.same_bits(models.snapshot(base), weights)  # the query/key adapters are patched in
    models.unload()
    assert models.same_bits(models.snapshot(base), weights)


def parameters(kind: str) -> dict[str, list[tuple[str, str, slice]]]:
    """Parameter -> (layer, adapter name, rows) of what the query/key adapters change, from the spec by hand."""
    found: dict[str, list[tuple[str, str, slice]]] = {}
    if kind == "flux":
        for path, width in models.FLUX_WIDTHS.items():
            name = f"{path}.img_attn.qkv" if "double" in path else f"{path}.linear1"
            for part in ("weight", "bias"):
                found[f"diffusion_model.{name}.{part}"] = [
                    (path, "to_q_adp", slice(0, width)),
                    (path, "to_k_adp", slice(width, 2 * width)),
                ]
    else:
        for path, width in models.UNET_WIDTHS.items():
            for x in "qk":
                rows = slice(0, width)
                found[f"diffusion_model.{path}.attn1.to_{x}.weight"] = [
                    (f"{path}.attn1", f"to_{x}_adp", rows)
                ]
    return found


def by_hand(
    adapter: Any, weight: Tensor, changes: Sequence[tuple[str, str, slice]], strength: float, scale: float
) -> Tensor:
    """``(I + s U D) W`` on the named rows, in double precision; the same for a bias."""
    weight = weight.double().clone()
    for path, name, rows in changes:
        pair = adapter.projection(path, name)
        update = pair.up.weight.double() @ pair.down.weight.double()
        identity = torch.eye(len(update), dtype=torch.float64)
        weight[rows] = (identity + strength * scale * update) @ weight[rows]
    return weight


@pytest.mark.parametrize("alpha", [None, 6.0])
def test_query_key_weights_by_hand(
    kind: str, base: Any, lay: Lay, carry: ModuleType, alpha: float | None
) -> None:
    adapter = models.adapter(kind, lora_alpha=alpha)
    before = models.snapshot(base)
    run(carry, lay(base, adapter, 1.0, 0.7), kind)
    after = models.snapshot(base)
    changed = parameters(kind)
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(changed)
    scale = 1.0 if alpha is None else alpha / 3
    for name, changes in changed.items():
        assert relative(after[name], by_hand(adapter, before[name], changes, 0.7, scale)) < 1e-6
        if kind == "flux":  # values (and the MLP's input) are left alone
            assert torch.equal(after[name][64:], before[name][64:])


def test_a_lora_laid_on_before_is_part_of_the_weight(
    kind: str, base: Any, lay: Lay, carry: ModuleType
) -> None:
    adapter = models.adapter(kind)
    name = next(iter(parameters(kind)))
    weight = base.model.state_dict()[name]
    lora = base.clone()
    difference = models.randn(*weight.shape, seed=3) / 8
    assert lora.add_patches({name: ("diff", (difference,))}, 0.5) == [name]
    before = models.snapshot(base)
    run(carry, lay(lora, adapter), kind)
    after = base.model.state_dict()[name]
    want = by_hand(adapter, before[name] + 0.5 * difference, parameters(kind)[name], 1.0, 1.0)
    assert relative(after, want) < 1e-6


def test_offloaded_weights_are_patched_as_they_are_used(
    kind: str, base: Any, lay: Lay, carry: ModuleType
) -> None:
    """Where memory is short the host patches a weight each time it is brought in."""
    adapter = models.adapter(kind)
    usual = run(carry, lay(base, adapter), kind)
    models.unload()
    model = lay(base, adapter)
    weights = models.snapshot(base)
    model.patch_model(torch.device("cpu"), lowvram_model_memory=1)
    assert base.model.model_lowvram
    assert models.same_bits(models.snapshot(base), weights)
    positive, negative = prompts(kind)
    import comfy.sampler_helpers

    prepare = comfy.sampler_helpers.prepare_sampling
    try:
        comfy.sampler_helpers.prepare_sampling = lambda m, shape, conds, options: (m.model, conds, [])
        out = torch.stack(
            predict(model, carry.with_k(positive, K), carry.with_k(negative, [-30.0]), x=picture(kind))
        )
    finally:
        comfy.sampler_helpers.prepare_sampling = prepare
        model.unpatch_model(torch.device("cpu"))
    assert relative(out, usual) < 1e-5
    assert models.same_bits(models.snapshot(base), weights)


@pytest.mark.parametrize("hidden", ["weight", "bias"])
def test_parameters_the_host_does_not_know_are_an_error(pack: ModuleType, lay: Lay, hidden: str) -> None:
    """The host drops unknown keys without a word. Here a projection is wrapped, as quantising packs do."""
    model = models.host_model("flux")
    inner = model.model.diffusion_model.double_blocks[0].img_attn

    class Wrapped(torch.nn.Module):
        def __init__(self, linear: Any) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x)

    if hidden == "weight":
        inner.qkv = Wrapped(inner.qkv)
        with pytest.raises(
            pack.bokeh_ops.errors.BokehError,
            match=r"no parameter for 2 of .* diffusion_model\.double_blocks\.0\.img_attn\.qkv\.weight\. ",
        ):
            lay(model, models.adapter("flux"))
        assert not model.patches
    else:  # a model without bias is a model without bias
        inner.qkv.bias = None
        assert (
            "diffusion_model.double_blocks.0.img_attn.qkv.bias"
            not in lay(model, models.adapter("flux")).patches
        )


@pytest.mark.parametrize("kind_", models.KINDS)
def test_fp8_weights(pack: ModuleType, lay: Lay, carry: ModuleType, kind_: str) -> None:
    """Weights stored in fp8 are rounded anew after patching: relative error of a weight below 2^-4."""
    import comfy.model_base
    import comfy.supported_models

    full = models.host_model(kind_)
    cpu = torch.device("cpu")
    if kind_ == "flux":
        settings = full.model.model_config
        config = {**settings.unet_config, "dtype": torch.float8_e4m3fn}
        config = comfy.supported_models.Flux(config)
        config.manual_cast_dtype = torch.float32
        small = golden.patcher(comfy.model_base.Flux(config, device=cpu), cpu)
    else:
        config = comfy.supported_models.SD15({**models.UNET, "dtype": torch.float8_e4m3fn})
        config.unet_config = {**models.UNET, "dtype": torch.float8_e4m3fn}
        config.manual_cast_dtype = torch.float32
        small = golden.patcher(comfy.model_base.BaseModel(config, device=cpu), cpu)
    with torch.no_grad():
        source = dict(full.model.diffusion_model.named_parameters())
        for name, weight in small.model.diffusion_model.named_parameters():
            weight.copy_(source[name])
        # The full-precision twin holds what fp8 can hold, so that only the patch's rounding is measured.
        for name, weight in small.model.diffusion_model.named_parameters():
            source[name].copy_(weight.float())
    assert small.model.diffusion_model.dtype == torch.float8_e4m3fn
    adapter = models.adapter(kind_)
    before = models.snapshot(small)
    exact = run(carry, lay(full, adapter), kind_)
    models.unload()
    out = run(carry, lay(small, adapter), kind_)
    assert relative(out, exact) < 0.1
    after = models.snapshot(small)
    for name, changes in parameters(kind_).items():
        want = by_hand(adapter, before[name].float(), changes, 1.0, 1.0)
        assert after[name].dtype == torch.float8_e4m3fn
        error = (after[name].double() - want).abs() - want.abs() / 8  # stochastic rounding: at most one step
        assert error.max() < 2**-9
    untouched = torch.stack(predict(full, *prompts(kind_), x=picture(kind_)))
    assert relative(out, exact) < 0.5 * relative(untouched, exact)  # it is the adapter that is seen
    models.unload()
    assert models.same_bits(models.snapshot(small), before)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 0.02), (torch.bfloat16, 0.12)], ids=str)
@pytest.mark.parametrize("tokens", [1, 3])
def test_half_precision_models(
    kind: str, base: Any, lay: Lay, carry: ModuleType, tokens: int, dtype: torch.dtype, bound: float
) -> None:
    adapter = models.adapter(kind, tokens=tokens)
    half = models.host_model(kind, dtype)
    change = run(carry, lay(half, adapter), kind) - run(carry, half, kind)
    models.unload()
    exact = run(carry, lay(base, adapter), kind) - plain(base, kind)
    # What the adapter changes, against the same in single precision; the network's own rounding is part of it.
    assert relative(change, exact) < bound


def test_clones_share_the_adapter(pack: ModuleType, kind: str, base: Any, lay: Lay) -> None:
    patch_of = pack.bokeh_ops.host.adapter.patch.patch_of
    adapter = models.adapter(kind)
    model = lay(base, adapter)
    mine = {p.data_ptr() for p in adapter.parameters()}
    gc.collect()
    alive = [t for t in gc.get_objects() if isinstance(t, Tensor)]
    count = len(alive)
    clones = [model]
    for _ in range(10):
        clones.append(clones[-1].clone())
    copied = copy.deepcopy(clones[-1].model_options)
    gc.collect()
    assert sum(isinstance(t, Tensor) for t in gc.get_objects()) <= count + 5
    for clone in clones:
        patch = patch_of(clone)
        assert patch is patch_of(model)
        assert copy.deepcopy(patch) is patch
        assert {p.data_ptr() for p in patch.adapters[0].adapter.parameters()} == mine
        factors = [
            weight for lists in clone.patches.values() for entry in lists for weight in entry[1].weights[:2]
        ]
        assert factors
        assert {f.data_ptr() for f in factors} <= mine
    assert copied is not clones[-1].model_options


def test_taking_it_off_again(pack: ModuleType, kind: str, base: Any, lay: Lay, carry: ModuleType) -> None:
    """A user takes an adapter off by wiring the model from before: nothing of it stays."""
    before = plain(base, kind)
    model = lay(base, models.adapter(kind))
    run(carry, model, kind)
    assert torch.equal(plain(base, kind), before)
    assert torch.equal(torch.stack(predict(base.clone(), *prompts(kind), x=picture(kind))), before)


def test_terms_follow_weights_that_change(kind: str, base: Any, lay: Lay, carry: ModuleType) -> None:
    """A trainer evaluates, trains on, and evaluates again, without gradients and with the same K."""
    adapter = models.adapter(kind, query_key=False)
    model = lay(base, adapter)
    first = run(carry, model, kind)
    with torch.no_grad():
        for weight in adapter.parameters():
            weight.mul_(1.2)
    second = run(carry, model, kind)
    assert relative(second, first) > 1e-3
    assert relative(second, expected(base, kind, [(adapter, 1.0)])) < 1e-5
    other = models.adapter(kind, query_key=False, seed=9)
    adapter.load_state_dict(other.state_dict(), assign=True)
    assert relative(run(carry, model, kind), expected(base, kind, [(other, 1.0)])) < 1e-5


def test_gradients_reach_the_adapter(kind: str, base: Any, lay: Lay, carry: ModuleType) -> None:
    """The trainer runs this same code with gradients on."""
    adapter = models.adapter(kind, tokens=2, query_key=False).requires_grad_(True)
    patch = lay(base, adapter).wrappers["apply_model"]["bokeh"][0]
    call = patch.prepare(picture(kind), torch.ones(3), Conditions.of_k(K).pack(), None)
    total = sum(
        float(1) * values.pow(2).sum() + keys.sum() for pairs in call.terms.values() for keys, values in pairs
    )
    total.backward()
    assert all(p.grad is not None and p.grad.any() for p in adapter.parameters())


def test_inference_mode(kind: str, base: Any, lay: Lay, carry: ModuleType) -> None:
    """The host runs nodes in inference mode."""
    adapter = models.adapter(kind, tokens=2)
    usual = run(carry, lay(base, adapter), kind)
    models.unload()
    with torch.inference_mode():
        inside = models.adapter(kind, tokens=2)
        out = run(carry, lay(models.host_model(kind), inside), kind)
        models.unload()
    assert torch.equal(out, usual)


# ---- through the node ----


@pytest.fixture
def bokeh_folder(pack: ModuleType, tmp_path: Path) -> Iterator[Path]:
    with golden.adapter_folder(tmp_path):
        yield tmp_path


def load(pack: ModuleType, model: Any, name: str, strength: float = 1.0, query_key: float = 1.0) -> Any:
    return pack.nodes.adapter.LoadBokehAdapter.execute(model, name, strength, query_key).result[0]


def test_the_node_loads_both_layouts(
    pack: ModuleType, kind: str, base: Any, carry: ModuleType, bokeh_folder: Path
) -> None:
    adapter = models.adapter(kind, lora_alpha=1.5, full=False, ops=pack.bokeh_ops.adapter.network)
    pack.bokeh_ops.adapter.files.write_adapter(adapter, bokeh_folder / "sub" / "mine.safetensors")
    out = run(carry, load(pack, base, "sub/mine.safetensors", 0.5), kind)
    assert relative(out, expected(base, kind, [(adapter, 0.5)])) < 1e-5
    if kind == "flux":
        pack.bokeh_ops.adapter.files.write_released(adapter, bokeh_folder / "released", double_blocks=2)
        again = run(carry, load(pack, base, "released/model.safetensors", 0.5), kind)
        assert torch.equal(again, out)


def test_the_node_lists_safetensors_only(
    pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In models/bokeh and in the folders of the user's extra model paths, which accept every ending at first."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    folder_paths.add_model_folder_path("bokeh", str(tmp_path / "extra"))
    for name in (
        "models/bokeh/a.safetensors",
        "models/bokeh/b.ckpt",
        "extra/c.pt",
        "extra/sub/d.safetensors",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    library = pack.bokeh_ops.host.folders.adapters
    for _ in range(2):
        names = library.FOLDER.names()
        assert sorted(name.replace("\\", "/") for name in names) == ["a.safetensors", "sub/d.safetensors"]
    assert folder_paths.get_folder_paths("bokeh") == [
        str(tmp_path / "models" / "bokeh"),
        str(tmp_path / "extra"),
    ]
    assert library.adapter_path("sub/d.safetensors") == tmp_path / "extra" / "sub" / "d.safetensors"
    (tmp_path / "models" / "bokeh" / "new.safetensors").write_bytes(b"")
    folder_paths.filename_list_cache.clear()  # what the refresh key does
    assert len(library.FOLDER.names()) == 3


def test_the_nodes_hash_follows_file_and_config(pack: ModuleType, bokeh_folder: Path) -> None:
    node = pack.nodes.adapter.LoadBokehAdapter
    ops = pack.bokeh_ops.adapter.network
    path = pack.bokeh_ops.adapter.files.write_released(
        models.adapter("flux", ops=ops), bokeh_folder, double_blocks=2
    )
    seen = [node.fingerprint_inputs("model.safetensors", strength=1.0)]
    seen.append(node.fingerprint_inputs("model.safetensors", strength=0.5))
    assert seen[0] == seen[1]  # other inputs are the host's to compare
    pack.bokeh_ops.adapter.files.write_released(
        models.adapter("flux", seed=2, ops=ops), bokeh_folder, double_blocks=2
    )
    seen.append(node.fingerprint_inputs(path.name))
    config = bokeh_folder / "config.json"
    config.write_text(config.read_text().replace("null", "4.0"))
    seen.append(node.fingerprint_inputs(path.name))
    assert len(set(seen)) == 3


@pytest.mark.parametrize(
    ("strength", "query_key", "has_query_key", "says"),
    [(0.0, 0.0, True, True), (0.0, 1.0, False, True), (0.0, 1.0, True, False), (1.0, 0.0, True, False)],
)
def test_the_node_says_when_it_does_nothing(
    pack: ModuleType,
    kind: str,
    base: Any,
    bokeh_folder: Path,
    caplog: pytest.LogCaptureFixture,
    strength: float,
    query_key: float,
    has_query_key: bool,
    says: bool,
) -> None:
    pack.bokeh_ops.adapter.files.write_adapter(
        models.adapter(kind, query_key=has_query_key), bokeh_folder / "a.safetensors"
    )
    with caplog.at_level(logging.WARNING, "bokeh"):
        load(pack, base, "a.safetensors", strength, query_key)
    assert ("strength is 0, so the adapter does nothing" in caplog.text) == says
