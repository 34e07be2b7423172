"""Beside other extensions: whatever they put on the model, before or after us, does what it did."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import models
from tests.models import one_thread, predict, relative, watched  # noqa: F401
from tests.reference import by_hooks

K = [2.0, 14.0, 30.0]
BOTH = [-30.0] * 3 + K
PLAN = [-1, -1, -1, 4, -1, 4]
"""Row 1 of the positive chunk, which is the second, is the pivot of rows 0 and 2."""
SLOT = ("output", 3, 0)
FLUX_SLOTS = {"flux": [("double_block", 1), ("single_block", 0)]}
Model = Callable[[Any], Any]


@pytest.fixture(scope="module")
def carry(pack: ModuleType) -> ModuleType:
    return pack.bokeh_ops.host.sampling.conditioning


@pytest.fixture(scope="module")
def bases(pack: ModuleType) -> dict[str, Any]:
    return {kind: models.host_model(kind) for kind in models.KINDS}


@pytest.fixture(scope="module")
def adapters(pack: ModuleType) -> dict[str, Any]:
    return {kind: models.adapter(kind, tokens=2) for kind in models.KINDS}


@pytest.fixture(autouse=True)
def unloaded(pack: ModuleType) -> Iterator[None]:
    yield
    models.unload()


def picture(kind: str) -> Tensor:
    return models.randn(3, models.LATENT_CHANNELS[kind], 8, 6, seed=5)


@pytest.fixture
def both_orders(pack: ModuleType, bases: Any, adapters: Any, carry: ModuleType) -> Callable[..., None]:
    """Check that another extension's patch and ours give what the hooks give on the patched model, in any order."""

    def check(kind: str, other: Model, grounded: bool = True, effect: float = 1e-3) -> None:
        base, adapter, x = bases[kind], adapters[kind], picture(kind)
        lay = pack.bokeh_ops.host.adapter.apply.apply_adapter
        prompts = models.conditioning(kind, 0), models.conditioning(kind, 1)
        positive, negative = carry.with_k(prompts[0], K), carry.with_k(prompts[1], [-30.0])
        for conditioning, pivots in ((positive, [1.0, -1.0, 1.0]), (negative, [-1.0] * 3)):
            plan = carry.PivotCondition(torch.tensor(pivots))
            conditioning[:] = (
                carry.with_conditions(conditioning, bokeh_pivot=plan) if grounded else conditioning
            )
        with by_hooks(base, [(adapter, 0.8)], BOTH, PLAN if grounded else None):
            expected = torch.stack(predict(other(base), *prompts, x=x))
            without = torch.stack(predict(base, *prompts, x=x))
        assert relative(expected, without) > effect  # the other one does something
        rows = pack.bokeh_ops.adapter.rows.SweepRows(1, 2)
        for patched in (lay(other(base), adapter, 0.8), other(lay(base, adapter, 0.8))):
            if grounded:
                patched = pack.bokeh_ops.host.sampling.grounded.ground_model(patched, rows, torch.zeros(2), 1)
            assert relative(torch.stack(predict(patched, positive, negative, x=x)), expected) < 1e-5
            models.unload()

    return check


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_an_ip_adapter_keeps_its_contribution(both_orders: Any) -> None:
    """Keys and values of its own, added to the layer's attention, only in the positive chunk."""
    keys, values = models.randn(1, 4, 32, seed=21), models.randn(1, 4, 32, seed=22)
    seen: list[int] = []

    def ip_adapter(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
        seen.append(q.shape[0])
        out = attend(q, k, v, extra["n_heads"])
        chunks = extra["cond_or_uncond"]
        for i, chunk in enumerate(chunks):
            if chunk == 0:
                rows = slice(i * len(q) // len(chunks), (i + 1) * len(q) // len(chunks))
                own = (t.expand(len(q[rows]), -1, -1) for t in (keys, values))
                out[rows] += 0.7 * attend(q[rows], *own, extra["n_heads"])
        return out

    def install(model: Any) -> Any:
        clone = model.clone()
        clone.set_model_attn2_replace(ip_adapter, *SLOT)
        return clone

    both_orders("sd15", install)
    assert set(seen) == {6}


def test_a_replacement_of_a_whole_block_of_layers(both_orders: Any) -> None:
    """Registered without the last index, as older extensions do; the host finds ours first."""

    def install(model: Any) -> Any:
        clone = model.clone()
        clone.set_model_attn2_replace(lambda q, k, v, e: 1.5 * attend(q, k, v, e["n_heads"]), *SLOT[:2])
        return clone

    both_orders("sd15", install)


def scaled(kind: str, base: Any, factor: float) -> Iterator[None]:
    """Output projections that take ``factor`` times the attention: what a scaling replacement amounts to."""
    network = base.model.diffusion_model
    weights: list[tuple[Tensor, slice]] = []
    if kind == "sd15":
        layer = network.output_blocks[3][1].transformer_blocks[0].attn1
        weights = [(layer.to_out[0].weight, slice(None))]
    else:
        for block in network.double_blocks:
            weights += [(block.img_attn.proj.weight, slice(None)), (block.txt_attn.proj.weight, slice(None))]
        weights += [(block.linear2.weight, slice(0, 32)) for block in network.single_blocks]
    with torch.no_grad():
        kept = [weight.clone() for weight, _ in weights]
        for weight, columns in weights:
            weight[:, columns] *= factor
        yield
        for (weight, _), old in zip(weights, kept, strict=True):
            weight.copy_(old)


@pytest.mark.parametrize(("way", "kind"), [("attn1", "sd15"), ("override", "sd15"), ("override", "flux")])
def test_grounding_goes_through_other_attention(
    pack: ModuleType, bases: Any, carry: ModuleType, way: str, kind: str
) -> None:
    """Theirs halves self-attention; grounded, that is the grounded attention halved."""
    base, x = bases[kind], picture(kind)
    calls: list[tuple[int, int]] = []

    def replacement(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
        calls.append((q.shape[1], k.shape[1]))
        return 0.5 * attend(q, k, v, extra["n_heads"])

    def override(func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
        calls.append((q.shape[-2], k.shape[-2]))
        out = func(q, k, v, heads, *args, **kwargs)
        mine = kind == "flux" or kwargs["transformer_options"]["block"] == ("output", 3)
        return 0.5 * out if mine and k.shape[-2] != 5 else out  # 5 tokens: cross-attention

    def install(model: Any) -> Any:
        clone = model.clone()
        if way == "attn1":
            clone.set_model_attn1_replace(replacement, *SLOT)
        else:
            clone.model_options["transformer_options"]["optimized_attention_override"] = override
        return clone

    prompts = models.conditioning(kind, 0), models.conditioning(kind, 1)
    plans = [carry.PivotCondition(torch.tensor(p)) for p in ([1.0, -1.0, 1.0], [-1.0] * 3)]
    pivots = [carry.with_conditions(c, bokeh_pivot=p) for c, p in zip(prompts, plans, strict=True)]
    ground = pack.bokeh_ops.host.sampling.grounded.ground_model
    rows = pack.bokeh_ops.adapter.rows.SweepRows(1, 2)
    outs = [
        torch.stack(predict(model, *pivots, x=x))
        for model in (
            install(ground(base, rows, torch.zeros(2), 1)),
            ground(install(base), rows, torch.zeros(2), 1),
        )
    ]
    assert {keys // queries for queries, keys in calls if keys != 5} == {1, 2}  # whole rows, and doubled keys
    for _ in scaled(kind, base, 0.5):
        with by_hooks(base, pivots=PLAN):
            expected = torch.stack(predict(base, *prompts, x=x))
    for out in outs:
        assert relative(out, expected) < 1e-5
    assert relative(outs[0], torch.stack(predict(ground(base, rows, torch.zeros(2), 1), *pivots, x=x))) > 1e-3


@pytest.mark.parametrize("kind", models.KINDS)
def test_an_attention_override_without_grounding(both_orders: Any, kind: str) -> None:
    seen: list[int] = []

    def override(func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(q.shape[0])
        return 0.7 * func(q, k, v, heads, *args, **kwargs)

    def install(model: Any) -> Any:
        clone = model.clone()
        clone.model_options["transformer_options"]["optimized_attention_override"] = override
        return clone

    both_orders(kind, install, grounded=False)
    assert set(seen) == {6}


def block_replacement(change: Callable[[dict[str, Any], Callable[[Any], Any]], Any]) -> Model:
    def install(model: Any) -> Any:
        clone = model.clone()
        for slot in FLUX_SLOTS["flux"]:
            clone.set_model_patch_replace(
                lambda args, extra: change(args, extra["original_block"]), "dit", *slot
            )
        return clone

    return install


def rescaled(args: dict[str, Any], original: Callable[[Any], Any]) -> Any:
    out = dict(original(args))
    out["img"] = out["img"] * torch.linspace(0.5, 1.5, out["img"].shape[-1])
    return out


def fresh(args: dict[str, Any]) -> dict[str, Any]:
    return {name: t.clone() if isinstance(t, Tensor) else t for name, t in args.items()}


def averaged(args: dict[str, Any], original: Callable[[Any], Any]) -> Any:
    """What an extension does that looks at a block twice: our part must be there both times."""
    one = original(fresh(args))
    two = original({**fresh(args), "img": args["img"] * 1.1})
    return {name: (one[name] + two[name]) / 2 for name in one if isinstance(one[name], Tensor)}


def with_attention_of_its_own(args: dict[str, Any], original: Callable[[Any], Any]) -> Any:
    """Attention after the block's, as an image-prompt adapter does: that is not the block's own."""
    from comfy.ldm.modules.attention import optimized_attention

    options = args.get("transformer_options", {})
    out = dict(original(args))
    img = out["img"]
    out["img"] = img + 0.3 * optimized_attention(img, img, img, 2, transformer_options=options)
    return out


@pytest.mark.parametrize("grounded", [True, False])
@pytest.mark.parametrize("change", [rescaled, averaged, with_attention_of_its_own])
def test_replaced_blocks(both_orders: Any, change: Any, grounded: bool) -> None:
    both_orders("flux", block_replacement(change), grounded)


def test_output_patches(both_orders: Any) -> None:
    def install(model: Any) -> Any:
        clone = model.clone()
        clone.set_model_attn1_output_patch(lambda n, extra: n * 1.2)
        clone.set_model_attn2_output_patch(lambda n, extra: n + 0.1)
        return clone

    both_orders("sd15", install)


def test_patches_of_what_attention_reads(both_orders: Any) -> None:
    def install(model: Any) -> Any:
        clone = model.clone()
        clone.set_model_attn2_patch(lambda n, context, value, extra: (n, context * 1.3, value * 0.8))
        clone.set_model_attn1_patch(lambda n, context, value, extra: (n, context * 1.1, value))
        return clone

    both_orders("sd15", install)


def test_a_wrapper_of_the_model_function(both_orders: Any) -> None:
    """Half the denoised picture: it hands on the keywords it does not know, K among them."""

    def wrapper(apply: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        assert {"bokeh"} <= args["c"].keys() or "bokeh_pivot" not in args["c"]
        return 0.5 * apply(args["input"], args["timestep"], **args["c"])

    def install(model: Any) -> Any:
        clone = model.clone()
        clone.set_model_unet_function_wrapper(wrapper)
        return clone

    for kind in models.KINDS:
        both_orders(kind, install)


def test_another_apply_model_wrapper_that_uses_keywords(both_orders: Any) -> None:
    from comfy.patcher_extension import WrappersMP

    def wrapper(
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any,
        context: Any,
        control: Any,
        options: Any,
        **more: Any,
    ):
        named = {
            "c_concat": c_concat,
            "c_crossattn": context,
            "control": control,
            "transformer_options": options,
        }
        return 0.5 * executor(x, t, **named, **more)

    def install(model: Any) -> Any:
        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "theirs", wrapper)
        return clone

    for kind in models.KINDS:
        both_orders(kind, install)


def test_a_wrapper_that_runs_the_model_twice(both_orders: Any) -> None:
    """With the very same options: nothing of ours may stay on them."""
    from comfy.patcher_extension import WrappersMP

    def wrapper(executor: Any, *args: Any, **more: Any) -> Tensor:
        options = args[5]
        kept = {name: dict(table) for name, table in options.get("patches_replace", {}).items()}
        names = set(options)
        first = executor(*args, **more)
        assert "optimized_attention_override" not in options
        assert options.get("patches_replace", {}) == kept
        assert names <= set(options)
        return 0.25 * (first + executor(*args, **more))

    def install(model: Any) -> Any:
        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "theirs", wrapper)
        return clone

    for kind in models.KINDS:
        both_orders(kind, install)


def control_net() -> Any:
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    config = {k: v for k, v in models.UNET.items() if k not in ("out_channels", "transformer_depth_output")}
    network = comfy.cldm.cldm.ControlNet(**config, hint_channels=3, operations=comfy.ops.disable_weight_init)
    source = models.generator(31)
    with torch.no_grad():
        for weight in network.parameters():
            value = torch.randn(weight.shape, generator=source)
            weight.copy_(value / weight[0].numel() ** 0.5 if weight.ndim > 1 else 0.1 * value)
    return comfy.controlnet.ControlNet(network.eval(), load_device=torch.device("cpu"))


def test_a_control_net(pack: ModuleType, bases: Any, adapters: Any, carry: ModuleType) -> None:
    """Its residuals enter the network as without us, and its own attention is left alone; a hint per picture too."""
    import nodes

    base, x = bases["sd15"], picture("sd15")
    model = pack.bokeh_ops.host.adapter.apply.apply_adapter(base, adapters["sd15"])
    hint = torch.rand(3, 64, 48, 3, generator=models.generator(32))
    apply = nodes.ControlNetApplyAdvanced().apply_controlnet
    prompts = models.conditioning("sd15", 0), models.conditioning("sd15", 1)
    positive, negative = carry.with_k(prompts[0], K), carry.with_k(prompts[1], [-30.0])
    for order in ("K first", "control first"):
        if order == "K first":
            controlled = apply(positive, negative, control_net(), hint, 0.9, 0.0, 1.0)
        else:
            controlled = apply(*prompts, control_net(), hint, 0.9, 0.0, 1.0)
            controlled = carry.with_k(controlled[0], K), carry.with_k(controlled[1], [-30.0])
        plan = carry.PivotCondition(torch.tensor([1.0, -1.0, 1.0]))
        none = carry.PivotCondition(torch.tensor([-1.0] * 3))
        pivots = (
            carry.with_conditions(controlled[0], bokeh_pivot=plan),
            carry.with_conditions(controlled[1], bokeh_pivot=none),
        )
        grounded = pack.bokeh_ops.host.sampling.grounded.ground_model(
            model, pack.bokeh_ops.adapter.rows.SweepRows(1, 2), torch.zeros(2), 1
        )
        with watched(base) as calls:
            out = torch.stack(predict(grounded, *pivots, x=x))
        assert len(calls) == 1
        models.unload()
        with by_hooks(base, [(adapters["sd15"], 1.0)], BOTH, PLAN):
            expected = torch.stack(predict(base, *apply(*prompts, control_net(), hint, 0.9, 0.0, 1.0), x=x))
            uncontrolled = torch.stack(predict(base, *prompts, x=x))
        assert relative(out, expected) < 1e-5
        assert relative(expected, uncontrolled) > 0.02
        models.unload()


# ---- core extensions that change attention ----


def core(name: str, model: Any) -> Any:
    if name == "perturbed-attention guidance":
        from comfy_extras.nodes_pag import PerturbedAttentionGuidance

        return models.call(PerturbedAttentionGuidance, model, 3.0)
    if name == "self-attention guidance":
        from comfy_extras.nodes_sag import SelfAttentionGuidance

        return models.call(SelfAttentionGuidance, model, 0.5, 2.0)
    if name == "HyperTile":
        from comfy_extras.nodes_hypertile import HyperTile

        return models.call(HyperTile, model, 32, 2, 0, False)
    from comfy_extras.nodes_tomesd import TomePatchModel

    return models.call(TomePatchModel, model, 0.3)


@pytest.mark.parametrize("name", ["perturbed-attention guidance", "self-attention guidance"])
def test_guidance_by_attention(
    pack: ModuleType, bases: Any, adapters: Any, carry: ModuleType, name: str
) -> None:
    """The pivot is what it is alone, and so is a target of the pivot's K."""
    lay = pack.bokeh_ops.host.adapter.apply.apply_adapter
    prompts = models.conditioning("sd15", 0), models.conditioning("sd15", 1)
    latent = models.empty_latent("sd15", 1, 16, 16)
    adapter = adapters["sd15"]
    for model in (lay(core(name, bases["sd15"]), adapter), core(name, lay(bases["sd15"], adapter))):
        alone = models.sample(
            model,
            carry.with_k(prompts[0], [14.0]),
            carry.with_k(prompts[1], [-30.0]),
            latent,
            cfg=2.0,
            steps=3,
        )
        pivot, targets = pack.nodes.sampling.GroundedSampler.execute(
            model, *prompts, latent, 7, 3, 2.0, "euler", "normal", 1.0,
            pivot_bokeh=14.0, target_bokeh="14, 2", grounding_steps=3,
            grounded_branches="positive only", rows_per_batch=0,
        ).result  # fmt: skip
        assert relative(pivot["samples"], alone) < 1e-5
        assert relative(targets["samples"][:1], alone) < 1e-5
        assert relative(targets["samples"][1:], alone) > 5e-3
    plain = models.sample(
        lay(bases["sd15"], adapter), carry.with_k(prompts[0], [14.0]), carry.with_k(prompts[1], [-30.0]), latent,
        cfg=2.0, steps=3,
    )  # fmt: skip
    assert relative(alone, plain) > 1e-3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("HyperTile", r"planned for 3 rows but the model's attention has \d+.*HyperTile"),
        ("ToMe", "merges tokens.*ToMe"),
    ],
)
def test_what_tears_rows_or_tokens_apart_is_refused(
    pack: ModuleType, bases: Any, adapters: Any, carry: ModuleType, name: str, message: str
) -> None:
    base = bases["sd15"]
    weights = models.snapshot(base)
    model = core(name, pack.bokeh_ops.host.adapter.apply.apply_adapter(base, adapters["sd15"]))
    prompt = models.conditioning("sd15")
    arguments = {"grounded_branches": "positive only", "rows_per_batch": 0, "pivot_bokeh": 14.0}

    def sample(grounding_steps: int) -> Any:
        return pack.nodes.sampling.GroundedSampler.execute(
            model, prompt, prompt, models.empty_latent("sd15", 1, 16, 16), 7, 2, 1.0, "euler", "normal", 1.0,
            target_bokeh="14, 2", grounding_steps=grounding_steps, **arguments,
        ).result  # fmt: skip

    with pytest.raises(pack.bokeh_ops.errors.BokehError, match=message):
        sample(2)
    assert torch.isfinite(sample(0)[1]["samples"]).all()  # without grounding it goes on
    models.unload()
    assert models.same_bits(models.snapshot(base), weights)
