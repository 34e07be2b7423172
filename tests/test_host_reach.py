# ruff: noqa: F811 (fixtures)
"""Networks, blocks and layers that other extensions run by themselves: K and grounding reach them, or it is said."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import models
from tests.models import one_thread, predict, relative  # noqa: F401
from tests.reference import by_hooks
from tests.test_host_chaining import (  # noqa: F401
    FLUX_SLOTS,
    K,
    Model,
    adapters,
    attend,
    bases,
    both_orders,
    carry,
    picture,
    unloaded,
)


def block_of(model: Any, slot: tuple[str, int]) -> Any:
    network = model.model.diffusion_model
    return getattr(network, f"{slot[0]}s")[slot[1]]


def run_by_themselves(keep_options: bool | None) -> Model:
    """Blocks of FLUX that another extension calls itself, as those that cache or speed them up do.

    Args:
        keep_options: give the block options of its own, or none; None calls it through the host, without options.
    """

    def install(model: Any) -> Any:
        clone = model.clone()
        for slot in FLUX_SLOTS["flux"]:
            block = block_of(model, slot)

            def run(args: dict[str, Any], extra: dict[str, Any], block: Any = block) -> Any:
                if keep_options is None:
                    out = extra["original_block"]({**args, "transformer_options": {}})
                    return {**out, "img": 1.1 * out["img"]}
                own = {name: args[name] for name in ("vec", "pe")}
                if keep_options:
                    own["transformer_options"] = {"theirs": 1}
                if "txt" not in args:
                    return {"img": 1.1 * block(args["img"], **own)}
                img, txt = block(img=args["img"], txt=args["txt"], **own)
                return {"img": 1.1 * img, "txt": txt}

            clone.set_model_patch_replace(run, "dit", *slot)
        return clone

    return install


@pytest.mark.parametrize("grounded", [True, False])
@pytest.mark.parametrize("keep_options", [True, False, None])
def test_blocks_that_another_extension_runs(
    both_orders: Any, keep_options: bool | None, grounded: bool
) -> None:
    both_orders("flux", run_by_themselves(keep_options), grounded)


def test_a_whole_network_that_another_extension_runs(both_orders: Any) -> None:
    """It does not look into the host's slots and hands no options to the blocks."""

    def install(model: Any) -> Any:
        network = model.model.diffusion_model
        clone = model.clone()

        plain = type(network).forward_orig
        signature = inspect.signature(plain)

        def forward_orig(*args: Any, **kwargs: Any) -> Tensor:
            given = signature.bind(network, *args, **kwargs).arguments
            return 1.1 * plain(**{**given, "transformer_options": {}})

        clone.add_object_patch("diffusion_model.forward_orig", forward_orig)
        return clone

    both_orders("flux", install)


def loses_k(model: Any, way: str) -> Any:
    """Another extension in whose hands the attention of one block never sees what is laid on it."""
    clone = model.clone()
    network = model.model.diffusion_model
    if way == "an override of its own":

        def run(args: dict[str, Any], extra: dict[str, Any]) -> Any:
            own = {"optimized_attention_override": lambda func, *a, **k: func(*a, **k)}
            return extra["original_block"]({**args, "transformer_options": own})

        clone.set_model_patch_replace(run, "dit", "double_block", 1)
    elif way == "a block with attention of its own":
        block = network.single_blocks[0]
        clone.add_object_patch(
            "diffusion_model.single_blocks.0.forward", lambda x, vec, pe, attn_mask=None: x * 1.01
        )
        clone.set_model_patch_replace(
            lambda args, extra: {"img": block(args["img"], vec=args["vec"], pe=args["pe"])},
            "dit",
            "single_block",
            0,
        )
    else:
        block = network.output_blocks[3][1].transformer_blocks[0]

        def forward(x: Tensor, context: Any = None, transformer_options: Any = None) -> Tensor:
            return type(block).forward(block, x, context=context)

        clone.add_object_patch("diffusion_model.output_blocks.3.1.transformer_blocks.0.forward", forward)
    return clone


@pytest.mark.parametrize(
    ("kind", "way", "where"),
    [
        ("flux", "an override of its own", "double_blocks.1"),
        ("flux", "a block with attention of its own", "single_blocks.0"),
        ("sd15", "a transformer block without options", "output_blocks.3.1.transformer_blocks.0.attn2"),
    ],
)
def test_what_cannot_be_reached_is_said(
    pack: ModuleType, bases: Any, adapters: Any, carry: ModuleType, kind: str, way: str, where: str
) -> None:
    model = loses_k(pack.bokeh_ops.host.adapter.apply.apply_adapter(bases[kind], adapters[kind]), way)
    positive = carry.with_k(models.conditioning(kind), K)
    with pytest.raises(
        pack.bokeh_ops.errors.BokehError, match=f"Another extension runs {where}.*Remove that"
    ):
        predict(model, positive, x=picture(kind))
    network = bases[kind].model.diffusion_model
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_blocks_that_are_left_out_are_no_fault(both_orders: Any) -> None:
    """As skip-layer guidance does, and caches that hand on what a block gave before."""

    def install(model: Any) -> Any:
        clone = model.clone()
        clone.set_model_patch_replace(lambda args, extra: args, "dit", "double_block", 1)
        clone.set_model_patch_replace(
            lambda args, extra: {"img": args["img"] * 1.1}, "dit", "single_block", 0
        )
        return clone

    both_orders("flux", install)


@pytest.mark.parametrize(
    ("layer", "way", "grounded"),
    [
        ("attn1", "calls on", True),
        ("attn1", "its own projections", False),
        ("attn2", "calls on", True),
        ("attn2", "its own projections", False),
    ],
)
def test_a_patched_attention_module(both_orders: Any, layer: str, way: str, grounded: bool) -> None:
    """An object patch on ``forward``, which the host leaves out as soon as something is in its slot."""
    path = f"output_blocks.3.1.transformer_blocks.0.{layer}"
    calls: list[int] = []

    def install(model: Any) -> Any:
        clone = model.clone()
        module = model.model.diffusion_model.get_submodule(path)

        def forward(
            x: Tensor, context: Any = None, value: Any = None, mask: Any = None, **options: Any
        ) -> Tensor:
            calls.append(len(x))
            if way == "calls on":
                return 1.3 * type(module).forward(module, x, context, value, mask, **options) + 0.1
            context = x if context is None else context
            value = context if value is None else value
            out = attend(module.to_q(x), 1.2 * module.to_k(context), module.to_v(value), module.heads)
            return module.to_out(out)

        clone.add_object_patch(f"diffusion_model.{path}.forward", forward)
        return clone

    both_orders("sd15", install, grounded)
    assert calls


def test_a_patched_attention_module_past_its_projection(
    pack: ModuleType, bases: Any, adapters: Any, carry: ModuleType
) -> None:
    """A ``forward`` with a projection of its own: the term is added to what it gives."""
    path = "output_blocks.3.1.transformer_blocks.0.attn2"
    base, x = bases["sd15"], picture("sd15")
    positive = carry.with_k(models.conditioning("sd15"), K)
    module = base.model.diffusion_model.get_submodule(path)
    weight, bias = module.to_out[0].weight, module.to_out[0].bias

    def forward(x: Tensor, context: Tensor, value: Any = None, mask: Any = None, **_: Any) -> Tensor:
        out = attend(module.to_q(x), module.to_k(context), module.to_v(context), module.heads)
        return torch.nn.functional.linear(out, weight, bias)

    model = pack.bokeh_ops.host.adapter.apply.apply_adapter(base, adapters["sd15"])
    (expected,) = predict(model, positive, x=x)
    patched = model.clone()
    patched.add_object_patch(f"diffusion_model.{path}.forward", forward)
    assert relative(predict(patched, positive, x=x)[0], expected) < 1e-5


def test_regional_prompts_by_rows(
    pack: ModuleType, bases: Any, adapters: Any, carry: ModuleType, both_orders: Any
) -> None:
    """As Attention Couple does: cross-attention runs once per region, in more rows, and is put together behind."""
    other_prompt = models.randn(1, 5, models.CONTEXT, seed=71)

    def couple(n: Tensor, context: Tensor, value: Tensor, extra: dict[str, Any]) -> tuple[Tensor, ...]:
        second = other_prompt.expand(len(context), -1, -1)
        return torch.cat([n, n]), torch.cat([context, second]), torch.cat([value, second])

    def put_together(n: Tensor, extra: dict[str, Any]) -> Tensor:
        one, two = n.chunk(2)
        height, width = extra["activations_shape"][-2:]
        left = (torch.arange(width) < width / 2).repeat(height)[None, :, None].to(n)
        return left * one + (1 - left) * two

    def install(model: Any) -> Any:
        clone = model.clone()
        clone.set_model_attn2_patch(couple)
        clone.set_model_attn2_output_patch(put_together)
        return clone

    base, adapter, x = bases["sd15"], adapters["sd15"], picture("sd15")
    lay = pack.bokeh_ops.host.adapter.apply.apply_adapter
    prompt = models.conditioning("sd15")
    positive = carry.with_conditions(
        carry.with_k(prompt, K), bokeh_pivot=carry.PivotCondition(torch.tensor([1.0, -1, 1]))
    )
    with by_hooks(base, [(adapter, 0.8)], K * 2, [1, -1, 1]):
        (expected,) = predict(install(base), prompt, x=x)
    rows = pack.bokeh_ops.adapter.rows.SweepRows(1, 2)
    for model in (lay(install(base), adapter, 0.8), install(lay(base, adapter, 0.8))):
        grounded = pack.bokeh_ops.host.sampling.grounded.ground_model(model, rows, torch.zeros(2), 1)
        assert relative(predict(grounded, positive, x=x)[0], expected) < 1e-5
        models.unload()
