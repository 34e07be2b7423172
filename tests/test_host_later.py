# ruff: noqa: F811 (fixtures)
"""What later hosts do with a model: threads on clones, other arguments of attention, devices of one's own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bokeh_ops.adapter.conditions import Conditions
from tests import models
from tests.models import one_thread, predict, relative  # noqa: F401
from tests.test_host_chaining import K, adapters, attend, bases, carry, picture, unloaded  # noqa: F401

OVERRIDE = "optimized_attention_override"


@pytest.fixture
def ground(pack: ModuleType) -> Callable[[Any], Any]:
    rows = pack.bokeh_ops.adapter.rows.SweepRows(1, 2)
    return lambda model: pack.bokeh_ops.host.sampling.grounded.ground_model(model, rows, torch.zeros(2), 1)


@pytest.fixture
def prompts(carry: ModuleType) -> Callable[[str], tuple[Any, Any]]:
    """Positive and negative, with K of three rows of which the second is the pivot."""

    def make(kind: str) -> tuple[Any, Any]:
        plans = ([1.0, -1.0, 1.0], [-1.0] * 3)
        made = (carry.with_k(models.conditioning(kind, i), k) for i, k in enumerate((K, [-30.0])))
        return tuple(
            carry.with_conditions(prompt, bokeh_pivot=carry.PivotCondition(torch.tensor(plan)))
            for prompt, plan in zip(made, plans, strict=True)
        )  # type: ignore[return-value]

    return make


# Several devices: conditions run in threads, on clones that may share a network


class Executor:
    """The host's, around its model's own function."""

    def __init__(self, model: Any) -> None:
        self.class_obj = model

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.class_obj._apply_model(*args, **kwargs)


def apply(pack: ModuleType, model: Any, kind: str, seed: int, **conds: Tensor) -> Tensor:
    """One call of a MODEL through the wrapper that is on it, if any."""
    context, settings = models.conditioning(kind, seed)[0]
    more = {"y": settings["pooled_output"], "guidance": torch.tensor([4.096])} if kind == "flux" else {}
    x = models.randn(3, models.LATENT_CHANNELS[kind], 8, 6, seed=seed)
    args = (x, torch.full((3,), models.sigma_of(kind)), None, context.expand(3, -1, -1), None, {})
    more = {name: value.expand(3, *value.shape[1:]) for name, value in more.items()}
    patch = pack.bokeh_ops.host.adapter.patch.patch_of(model)
    executor = Executor(model.model)
    with torch.no_grad():
        return executor(*args, **more) if patch is None else patch(executor, *args, **more, **conds)


def together(module: Any, works: list[Callable[[], Tensor]]) -> list[Tensor]:
    """Every work in a thread of its own, all of them inside the network and out of it at the same time."""
    meet = threading.Barrier(len(works), timeout=20)

    def run(work: Callable[[], Tensor]) -> Tensor:
        try:
            return work()
        except BaseException:
            meet.abort()
            raise

    def wait(*_: Any) -> None:
        meet.wait()

    hooks = [module.register_forward_pre_hook(wait), module.register_forward_hook(wait)]
    try:
        with ThreadPoolExecutor(len(works)) as pool:
            return [future.result() for future in [pool.submit(run, work) for work in works]]
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("kind", models.KINDS)
@pytest.mark.parametrize("foreign", [False, True])
def test_clones_in_threads_do_not_meet(
    pack: ModuleType,
    bases: Any,
    adapters: Any,
    ground: Any,
    kind: str,
    foreign: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each has its own K and pivots, and a clone without anything on it has none, though all share one network."""
    base = bases[kind]
    network = base.model.diffusion_model
    laid = ground(
        pack.bokeh_ops.host.adapter.apply.apply_adapter(base, adapters[kind], query_key_strength=0.0)
    )
    if foreign and kind == "sd15":  # layers that another extension runs, where hooks do more
        for path in (
            "output_blocks.3.1.transformer_blocks.0.attn1",
            "output_blocks.3.1.transformer_blocks.0.attn2",
        ):
            layer = network.get_submodule(path)
            monkeypatch.setattr(layer, "forward", layer.forward)
    pairs = torch.tensor([[0.0, 1.0], [1.0, -1.0], [2.0, 1.0]])

    def work(seed: int) -> Callable[[], Tensor]:
        if seed == 2:
            return lambda: apply(pack, base, kind, seed)
        told = Conditions.of_k(torch.tensor(K) / (1 + seed)).pack()
        return lambda: apply(pack, laid.clone(), kind, seed, bokeh=told, bokeh_pivot=pairs)

    works = [work(seed) for seed in range(3)]
    alone = [one() for one in works]
    assert relative(apply(pack, base, kind, 0), alone[0]) > 1e-2
    module = network.double_blocks[1] if kind == "flux" else network.output_blocks[3][1].transformer_blocks[0]
    for _ in range(3):
        for out, expected in zip(together(module, works), alone, strict=True):
            assert relative(out, expected) < 1e-6
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_what_is_said_once_a_run_is_said_once_by_all_threads(
    pack: ModuleType, bases: Any, adapters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(pack.bokeh_ops.host.adapter.patch, "say", lambda text, _node: said.append(text))
    laid = pack.bokeh_ops.host.adapter.apply.apply_adapter(
        bases["sd15"], adapters["sd15"], query_key_strength=0.0
    )
    module = bases["sd15"].model.diffusion_model.output_blocks[0]
    for runs in (1, 2):
        pack.bokeh_ops.host.adapter.patch.patch_of(laid).begin_run()
        together(module, [lambda: apply(pack, laid.clone(), "sd15", 0)] * 2)
        assert len(said) == runs


@pytest.mark.parametrize("kind", models.KINDS)
def test_a_demo_model_is_loaded_once_more_for_another_device(pack: ModuleType, kind: str) -> None:
    """As hosts with several devices ask for it, each time another network; and once more without comings and goings."""
    model, clip, vae = pack.bokeh_ops.host.small.shipped.load_demo(kind, adapter=False)
    for patcher in (model, clip.patcher, vae.patcher):
        load, args, *_ = patcher.cached_patcher_init
        for again in (load(*args), load(*args, disable_dynamic=True)):
            assert again.model is not patcher.model
            assert models.same_bits(models.snapshot(again), models.snapshot(patcher))
            assert type(again) is type(patcher)


@pytest.mark.parametrize("kind", models.KINDS)
def test_a_clone_for_another_device_obeys_k(pack: ModuleType, kind: str) -> None:
    model = pack.bokeh_ops.host.small.shipped.load_demo(kind)[0]
    if not hasattr(model, "deepclone_multigpu"):
        pytest.skip("this host has no clones for several devices")
    clone = model.deepclone_multigpu()
    assert clone.model is not model.model
    patch_of = pack.bokeh_ops.host.adapter.patch.patch_of
    assert patch_of(clone) is patch_of(model)
    assert clone.patches.keys() == model.patches.keys()


# Attention


def own_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None, attn_precision: Any = None,
    skip_reshape: bool = False, skip_output_reshape: bool = False, scale: float | None = None,
    enable_gqa: bool = False, **_: Any,
) -> Tensor:  # fmt: skip
    """Attention that understands what the host's may be given, on every host."""
    if not skip_reshape:
        features = q.shape[-1] // heads
        q, k, v = (t.unflatten(-1, (-1, features)).transpose(1, 2) for t in (q, k, v))
    if not enable_gqa:
        assert q.shape[1] == k.shape[1] == v.shape[1]
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=enable_gqa)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


def on_top(change: Callable[..., Any], inside: bool = True) -> Callable[[Any], Any]:
    """An extension that puts ``change(previous)`` on top of the override that it finds.

    Args:
        inside: as the network is called, so above ours; else as sampling begins, before ours is there.
    """

    def install(model: Any) -> Any:
        from comfy.patcher_extension import WrappersMP

        def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
            if not inside:
                options = executor.class_obj.model_options["transformer_options"]
                options[OVERRIDE] = change(options.get(OVERRIDE))
                return executor(*args, **kwargs)
            place = next(
                i for i, each in enumerate(args) if isinstance(each, dict) and "cond_or_uncond" in each
            )
            options = {**args[place], OVERRIDE: change(args[place].get(OVERRIDE))}
            return executor(*args[:place], options, *args[place + 1 :], **kwargs)

        clone = model.clone()
        at = WrappersMP.DIFFUSION_MODEL if inside else WrappersMP.OUTER_SAMPLE
        clone.add_wrapper_with_key(at, "theirs", wrapper)
        return clone

    return install


def asks(previous: Any, way: str) -> Callable[..., Any]:
    """An override that asks the one below in ``way``, with attention that understands it."""

    def override(
        _func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any
    ) -> Tensor:
        kwargs.update(zip(("mask", "attn_precision", "skip_reshape"), args, strict=False))
        args = ()
        if way == "scale":  # twice the queries and half the scale are the same attention
            q, kwargs["scale"] = 2 * q, 0.5 * (q.shape[-1] if q.ndim == 4 else q.shape[-1] // heads) ** -0.5
        elif way in ("one head", "one head, spread"):
            k, v = k[:, :1], v[:, :1]
            if way == "one head":
                kwargs["enable_gqa"] = True
            else:
                k, v = (t.expand(-1, heads, -1, -1) for t in (k, v))
        elif way == "positional":
            args = (kwargs.pop("mask", None), kwargs.pop("attn_precision", None), kwargs.pop("skip_reshape"))
        elif way == "flat":  # tokens with all heads behind one another
            kwargs["skip_reshape"] = False
            q, k, v = (t.transpose(1, 2).flatten(2) for t in (q, k, v))
        elif way == "flat, one head":
            kwargs.update(skip_reshape=False, enable_gqa=True)
            q, k, v = (t.transpose(1, 2).flatten(2) for t in (q, k[:, :1], v[:, :1]))
        if previous is None:
            return own_attention(q, k, v, heads, *args, **kwargs)
        return previous(own_attention, q, k, v, heads, *args, **kwargs)

    return override


@pytest.mark.parametrize(
    ("way", "same_as"),
    [
        ("scale", "plain"),
        ("one head", "one head, spread"),
        ("flat, one head", "one head, spread"),
        ("positional", "plain"),
        ("flat", "plain"),
    ],
)
def test_arguments_of_attention_reach_it(
    pack: ModuleType, bases: Any, adapters: Any, ground: Any, prompts: Any, way: str, same_as: str
) -> None:
    """Grounded and not, with an adapter whose terms read the queries."""
    laid = pack.bokeh_ops.host.adapter.apply.apply_adapter(
        bases["flux"], adapters["flux"], 0.8, query_key_strength=0.0
    )
    for model in (laid, ground(laid)):
        outs = {
            each: torch.stack(
                predict(
                    on_top(lambda below, each=each: asks(below, each))(model),
                    *prompts("flux"),
                    x=picture("flux"),
                )
            )
            for each in (way, same_as)
        }
        assert relative(outs[way], outs[same_as]) < 1e-5


@pytest.mark.parametrize("kind", models.KINDS)
@pytest.mark.parametrize("inside", [False, True])
def test_an_override_put_on_top_while_sampling(
    pack: ModuleType, bases: Any, adapters: Any, ground: Any, prompts: Any, kind: str, inside: bool
) -> None:
    """Theirs and ours act both, in any order of the graph."""
    below: set[bool] = set()

    def scaled(previous: Any) -> Callable[..., Any]:
        def override(func: Any, *args: Any, **kwargs: Any) -> Tensor:
            below.add(previous is not None)
            return 0.7 * (func(*args, **kwargs) if previous is None else previous(func, *args, **kwargs))

        return override

    def run(model: Any) -> Tensor:
        latent = models.empty_latent(kind, 3)
        out = models.sample(model, *prompts(kind), latent, steps=2, cfg=2.0)
        models.unload()
        return out

    def lay(model: Any) -> Any:
        return ground(pack.bokeh_ops.host.adapter.apply.apply_adapter(model, adapters[kind], 0.8))

    base, install = bases[kind], on_top(scaled, inside)
    both = run(install(lay(base)))
    assert relative(both, run(lay(install(base)))) < 1e-5
    assert below == {inside and kind == "flux"}  # of the UNet, ours is no override
    assert relative(both, run(lay(base))) > 1e-3
    assert relative(both, run(install(base))) > 1e-3


def test_attention_in_containers(pack: ModuleType, bases: Any) -> None:
    """Hosts that hand tensors over for good unwrap them for an override that does not say it takes them."""
    import comfy.ldm.modules.attention as host

    if not hasattr(host, "AttentionTensorContainer"):
        pytest.skip("this host has no containers")
    q = models.randn(3, 2, 7, 16)
    call = pack.bokeh_ops.host.attention.model_call.ModelCall({}, None)
    described = pack.bokeh_ops.host.architectures.recognise(bases["flux"])
    network = bases["flux"].model.diffusion_model
    previous = SimpleNamespace(calls=0)

    def theirs(func: Any, *args: Any, **kwargs: Any) -> Tensor:
        previous.calls += 1
        return func(*args, **kwargs)

    theirs.container_function = lambda *_args, **_kwargs: pytest.fail("went past ours")  # type: ignore[attr-defined]
    with pack.bokeh_ops.host.attention.joint.attach(
        {OVERRIDE: theirs}, call, described.widths, network, picture("flux")
    ) as options:
        parts = [host.AttentionTensorContainer(t) for t in (q, q, q)]
        out = host.optimized_attention(*parts, 2, skip_reshape=True, transformer_options=options)
    assert previous.calls == 1
    flat = q.transpose(1, 2).flatten(2)
    assert relative(out, attend(flat, flat, flat, 2)) < 1e-5
