"""What the host promises and what it does behind the scenes: chunks, sizes, regions, prompts, warnings."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import models
from tests.models import one_thread, predict, relative, watched  # noqa: F401
from tests.reference import by_hooks

K = [2.0, 14.0, 30.0]


@pytest.fixture(scope="module", params=models.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def base(pack: ModuleType, kind: str, device: str) -> Any:
    return models.host_model(kind, device=device)


@pytest.fixture(scope="module")
def carry(pack: ModuleType) -> ModuleType:
    return pack.bokeh_ops.host.sampling.conditioning


@pytest.fixture(scope="module")
def adapter(kind: str) -> Any:
    return models.adapter(kind, tokens=2, query_key=False)


@pytest.fixture(scope="module")
def laid(pack: ModuleType, base: Any, adapter: Any) -> Any:
    return pack.bokeh_ops.host.adapter.apply.apply_adapter(base, adapter)


@pytest.fixture(scope="module")
def ground(pack: ModuleType) -> Callable[[Any], Any]:
    """Ground the rows of a model at every noise level above 0."""

    def grounded(model: Any) -> Any:
        rows = pack.bokeh_ops.adapter.rows.SweepRows(1, 2)
        return pack.bokeh_ops.host.sampling.grounded.ground_model(model, rows, torch.zeros(2), 1)

    return grounded


@pytest.fixture(autouse=True)
def unloaded(pack: ModuleType) -> Iterator[None]:
    yield
    models.unload()


@pytest.fixture(scope="module")
def host_nodes(pack: ModuleType) -> ModuleType:
    import nodes  # the host's, which goes ahead of this repository's on sys.path

    return nodes


def picture(kind: str, rows: int = 3, height: int = 8, width: int = 6) -> Tensor:
    return models.randn(rows, models.LATENT_CHANNELS[kind], height, width, seed=5)


def with_pivots(carry: ModuleType, conditioning: Any, pivots: Sequence[float]) -> Any:
    return carry.with_conditions(
        conditioning, bokeh_pivot=carry.PivotCondition(torch.tensor(list(pivots), dtype=torch.float32))
    )


# ---- chunks of classifier-free guidance ----


def both_prompts(carry: ModuleType, kind: str, tokens: int = 5, negative_tokens: int = 5) -> tuple[Any, Any]:
    """Prompts with K and row 1 as the pivot of rows 0 and 2, in both branches."""
    positive = carry.with_k(models.conditioning(kind, 0, tokens=tokens), K)
    negative = carry.with_k(models.conditioning(kind, 1, tokens=negative_tokens), [-30.0])
    return with_pivots(carry, positive, [1, -1, 1]), with_pivots(carry, negative, [1, -1, 1])


def test_the_negative_chunk_comes_first(
    kind: str, base: Any, laid: Any, adapter: Any, carry: ModuleType, ground: Any
) -> None:
    """K and pivots differ between the chunks, so taking one for the other would show."""
    x = picture(kind)
    positive, negative = both_prompts(carry, kind)
    with watched(base) as calls:
        out = predict(ground(laid), positive, with_pivots(carry, negative, [-1, -1, 1]), x=x)
    assert [chunks for _, chunks in calls] == [[1, 0]]
    with by_hooks(base, [(adapter, 1.0)], [-30.0] * 3 + K, [-1, -1, 1, 4, -1, 4]):
        expected = predict(base, positive, negative, x=x)
    assert relative(out[0], expected[0]) < 1e-5
    assert relative(out[1], expected[1]) < 1e-5


@pytest.mark.parametrize("why", ["memory", "tokens", "K on one side"])
def test_chunks_run_apart_are_as_together(
    kind: str, base: Any, laid: Any, carry: ModuleType, ground: Any, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    x = picture(kind)
    model = ground(laid)
    positive, negative = both_prompts(carry, kind)
    if why == "memory":
        together = predict(model, positive, negative, x=x)
        monkeypatch.setattr(base.model, "memory_required", lambda *_a, **_k: 1e30)
    elif why == "tokens":
        # UNet: 5 and 30 tokens are too far apart for the host to pad; FLUX: it never does.
        positive, negative = both_prompts(carry, kind, 5, 30)
        together = [predict(model, positive, x=x)[0], predict(model, negative, x=x)[0]]
    else:
        together = predict(model, positive, negative, x=x)
        negative[0][1]["model_conds"].pop("bokeh")  # as where a prompt by-passes BokehCondition
        without = [[t, {**s, "model_conds": dict(s["model_conds"])}] for t, s in negative]
        untouched = predict(ground(base), without, x=x)[0]
        together[1] = untouched
    with watched(base) as calls:
        apart = predict(model, positive, negative, x=x)
    assert sorted(chunks for _, chunks in calls) == [[0], [1]]
    assert relative(apart[0], together[0]) < 1e-5
    assert relative(apart[1], together[1]) < 1e-5


@pytest.mark.parametrize(("tokens", "negative_tokens"), [(77, 231), (231, 77)])
def test_one_and_three_chunks_of_prompt_tokens(
    kind: str,
    base: Any,
    laid: Any,
    adapter: Any,
    carry: ModuleType,
    ground: Any,
    tokens: int,
    negative_tokens: int,
) -> None:
    x = picture(kind)
    positive, negative = both_prompts(carry, kind, tokens, negative_tokens)
    with watched(base) as calls:
        out = predict(ground(laid), positive, negative, x=x)
    assert len(calls) == (1 if kind == "sd15" else 2)  # the UNet's shorter prompt is repeated, FLUX's is not
    for prompt, k, found in ((positive, K, out[0]), (negative, [-30.0] * 3, out[1])):
        with by_hooks(base, [(adapter, 1.0)], k, [1, -1, 1]):
            assert relative(found, predict(base, prompt, x=x)[0]) < 1e-5


def test_guidance_of_one_leaves_the_negative_out(
    pack: ModuleType, kind: str, base: Any, laid: Any, carry: ModuleType
) -> None:
    positive, negative = carry.with_k(models.conditioning(kind), [14.0]), models.conditioning(kind, 1)
    latent = models.empty_latent(kind)
    with watched(base) as calls:
        one = models.sample(laid, positive, carry.with_k(negative, [-30.0]), latent, cfg=1.0, steps=2)
    assert [chunks for _, chunks in calls] == [[0], [0]]
    assert torch.equal(one, models.sample(laid, positive, negative, latent, cfg=1.0, steps=2))
    two = models.sample(laid, positive, carry.with_k(negative, [-30.0]), latent, cfg=2.0, steps=2)
    assert relative(two, one) > 1e-2


# ---- rows and sizes ----


def test_every_picture_of_a_batch_gets_its_k(kind: str, laid: Any, carry: ModuleType) -> None:
    prompt = models.conditioning(kind)
    batch = {**models.empty_latent(kind, 3), "batch_index": [4, 4, 4]}
    together = models.sample(laid, carry.with_k(prompt, K), prompt, batch, steps=3, scheduler="simple")
    for row, k in enumerate(K):
        one = {**models.empty_latent(kind), "batch_index": [4]}
        alone = models.sample(laid, carry.with_k(prompt, [k]), prompt, one, steps=3, scheduler="simple")
        assert relative(together[row : row + 1], alone) < 1e-5
    assert relative(together[:1], together[2:]) > 1e-2


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_list_of_k_of_the_wrong_length(
    pack: ModuleType, kind: str, laid: Any, carry: ModuleType, count: int
) -> None:
    prompt = carry.with_k(models.conditioning(kind), [4.0] * count)
    before = models.snapshot(laid)
    with (
        pytest.raises(
            pack.bokeh_ops.errors.BokehError,
            match=rf"{count} K values for a latent batch of 4.*one for all, or one per picture \(4\)",
        )
        if 4 % count
        else pytest.MonkeyPatch.context()
    ):
        predict(laid, prompt, x=picture(kind, 4))
    assert models.same_bits(models.snapshot(laid), before)


@pytest.mark.parametrize(("height", "width"), [(5, 5), (7, 12), (9, 3), (16, 6), (2, 31)])
def test_any_size(
    kind: str, base: Any, laid: Any, adapter: Any, carry: ModuleType, ground: Any, height: int, width: int
) -> None:
    x = picture(kind, 3, height, width)
    positive, negative = both_prompts(carry, kind)
    out = predict(ground(laid), positive, negative, x=x)
    with by_hooks(base, [(adapter, 1.0)], [-30.0] * 3 + K, [1, -1, 1, 4, -1, 4]):
        expected = predict(base, positive, negative, x=x)
    assert out[0].shape == x.shape
    assert relative(torch.stack(out), torch.stack(expected)) < 1e-5


# ---- what other nodes do to a prompt ----


def k_of(conditioning: Any) -> list[list[float]]:
    return [entry[1]["model_conds"]["bokeh"].cond[:, 0].tolist() for entry in conditioning]


PROMPT_NODES: dict[str, tuple[Callable[[ModuleType, Any, Any], Any], list[list[float]]]] = {
    "Combine": (lambda n, a, b: n.ConditioningCombine().combine(a, b)[0], [[2.0], [28.0]]),
    "Average": (lambda n, a, b: n.ConditioningAverage().addWeighted(a, b, 0.5)[0], [[2.0]]),
    "Concat": (lambda n, a, b: n.ConditioningConcat().concat(a, b)[0], [[2.0]]),
    "SetArea": (lambda n, a, b: n.ConditioningSetArea().append(a, 64, 64, 0, 0, 1.0)[0], [[2.0]]),
    "SetAreaPercentage": (
        lambda n, a, b: n.ConditioningSetAreaPercentage().append(a, 0.5, 1.0, 0, 0, 1.0)[0],
        [[2.0]],
    ),
    "SetAreaStrength": (lambda n, a, b: n.ConditioningSetAreaStrength().append(a, 0.5)[0], [[2.0]]),
    "SetMask": (
        lambda n, a, b: n.ConditioningSetMask().append(a, torch.ones(8, 6), "default", 1.0)[0],
        [[2.0]],
    ),
    "ZeroOut": (lambda n, a, b: n.ConditioningZeroOut().zero_out(a)[0], [[2.0]]),
    "SetTimestepRange": (lambda n, a, b: n.ConditioningSetTimestepRange().set_range(a, 0.0, 0.5)[0], [[2.0]]),
    "FluxGuidance": (lambda n, a, b: flux_guidance(a), [[2.0]]),
}


def flux_guidance(conditioning: Any) -> Any:
    from comfy_extras.nodes_flux import FluxGuidance

    return models.call(FluxGuidance, conditioning, 2.5)


@pytest.mark.parametrize("name", PROMPT_NODES)
def test_k_survives(host_nodes: ModuleType, kind: str, carry: ModuleType, name: str) -> None:
    one, two = models.conditioning(kind, 0), models.conditioning(kind, 1)
    apply, expected = PROMPT_NODES[name]
    out = apply(host_nodes, carry.with_k(one, [2.0]), carry.with_k(two, [28.0]))
    assert k_of(out) == expected
    assert carry.has_k(out)
    assert not carry.has_k(one)  # the prompt that came in is not changed


def test_prompts_that_come_in_are_not_changed(kind: str, carry: ModuleType) -> None:
    prompt = models.conditioning(kind)
    settings = prompt[0][1]
    kept = dict(settings)
    settings["model_conds"] = {"theirs": 1}
    out = carry.with_k(prompt, [2.0])
    assert settings == {**kept, "model_conds": {"theirs": 1}}
    assert out[0][0] is prompt[0][0]
    assert set(out[0][1]["model_conds"]) == {"theirs", "bokeh"}


def test_masked_regions_have_their_own_k(
    host_nodes: ModuleType, kind: str, laid: Any, carry: ModuleType
) -> None:
    x = picture(kind)
    one, two = (
        carry.with_k(models.conditioning(kind, 0), [2.0]),
        carry.with_k(models.conditioning(kind, 1), [28.0]),
    )
    mask = torch.zeros(8, 6)
    mask[:, :2] = 1
    mask[3, 3] = 0.25
    node = host_nodes.ConditioningSetMask()
    regions = node.append(one, mask, "default", 1.0)[0] + node.append(two, 1 - mask, "default", 1.0)[0]
    out = predict(laid, regions, x=x)[0]
    left, right = predict(laid, one, x=x)[0], predict(laid, two, x=x)[0]
    assert relative(out, left * mask + right * (1 - mask)) < 1e-5


def test_areas_have_their_own_k(host_nodes: ModuleType, kind: str, laid: Any, carry: ModuleType) -> None:
    x = picture(kind, height=8, width=16)
    one, two = (
        carry.with_k(models.conditioning(kind, 0), [2.0]),
        carry.with_k(models.conditioning(kind, 1), [28.0]),
    )
    node = host_nodes.ConditioningSetArea()
    areas = node.append(one, 64, 64, 0, 0, 1.0)[0] + node.append(two, 64, 64, 64, 0, 1.0)[0]
    out = predict(laid, areas, carry.with_k(models.conditioning(kind, 2), [-30.0]), x=x)[0]
    assert relative(out[..., :8], predict(laid, one, x=x[..., :8])[0]) < 1e-5
    assert relative(out[..., 8:], predict(laid, two, x=x[..., 8:])[0]) < 1e-5


def test_grounding_inside_an_area(
    host_nodes: ModuleType, kind: str, base: Any, laid: Any, adapter: Any, carry: ModuleType, ground: Any
) -> None:
    x = picture(kind, height=8, width=16)
    positive, negative = both_prompts(carry, kind)
    area = host_nodes.ConditioningSetArea().append(positive, 64, 64, 64, 0, 1.0)[0]
    # The host gives the negative prompt the same area besides the whole picture.
    out = predict(ground(laid), area + positive, negative, x=x)
    with by_hooks(base, [(adapter, 1.0)], K, [1, -1, 1]):
        whole = predict(base, positive, x=x)[0]
        crop = predict(base, positive, x=x[..., 8:])[0]
    weight = torch.minimum(
        torch.arange(1.0, 9) / 2, torch.tensor(1.0)
    )  # the host fades an area in from its edge
    assert relative(out[0][..., :8], whole[..., :8]) < 1e-5
    assert relative(out[0][..., 8:], (whole[..., 8:] + weight * crop) / (1 + weight)) < 1e-5
    with by_hooks(base, [(adapter, 1.0)], [-30.0] * 3, [1, -1, 1]):
        assert relative(out[1][..., :8], predict(base, negative, x=x)[0][..., :8]) < 1e-5


def test_ranges_of_timesteps_have_their_own_k(
    host_nodes: ModuleType, kind: str, laid: Any, carry: ModuleType
) -> None:
    x = picture(kind)
    prompt = models.conditioning(kind)
    node = host_nodes.ConditioningSetTimestepRange()
    early, late = carry.with_k(prompt, [2.0]), carry.with_k(prompt, [28.0])
    both = node.set_range(early, 0.0, 0.5)[0] + node.set_range(late, 0.5, 1.0)[0]
    sampling = laid.model.model_sampling
    for percent, expected in ((0.2, early), (0.8, late)):
        sigma = float(sampling.percent_to_sigma(percent))
        out = predict(laid, both, x=x, sigma=sigma)[0]
        assert torch.equal(out, predict(laid, expected, x=x, sigma=sigma)[0])


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_what_the_negative_is_told(
    pack: ModuleType, kind: str, laid: Any, base: Any, adapter: Any, mode: int
) -> None:
    node = pack.nodes.adapter.BokehCondition
    carry = pack.bokeh_ops.host.sampling.conditioning
    x = picture(kind)
    prompt = models.conditioning(kind), models.conditioning(kind, 1)
    positive, negative = node.execute(*prompt, 15.0, carry.NEGATIVE_MODES[mode], "2, 14, 30").result
    assert k_of(positive) == [K]
    with watched(base) as calls:
        out = predict(laid, positive, negative, x=x)
    assert len(calls) == 1
    with by_hooks(base, [(adapter, 1.0)], [[-30.0] * 3, K, [0.0] * 3][mode] + K):
        expected = predict(base, *prompt, x=x)
    if mode == 2:
        expected[1] = predict(base, prompt[1], x=x)[0]
    assert relative(out[0], expected[0]) < 1e-5
    assert relative(out[1], expected[1]) < 1e-5


def test_a_negative_mode_that_is_none(pack: ModuleType) -> None:
    with pytest.raises(
        pack.bokeh_ops.errors.BokehError, match="negative mode is 'off'; expected one of released"
    ):
        pack.nodes.adapter.BokehCondition.execute([], [], 15.0, "off", "")


# ---- what is said ----


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.WARNING, "bokeh"):
        yield lambda: [r.message for r in caplog.records if r.name.startswith("bokeh")]


def test_an_adapter_without_k_warns_once_a_run(kind: str, laid: Any, base: Any, said: Any) -> None:
    prompt = models.conditioning(kind)
    latent = models.empty_latent(kind)
    out = models.sample(laid, prompt, prompt, latent, steps=3, cfg=2.0)
    assert [("has no K" in text, "BokehCondition" in text) for text in said()] == [(True, True)]
    models.sample(laid, prompt, prompt, latent, steps=3, cfg=2.0)
    assert len(said()) == 2
    assert torch.equal(out, models.sample(base, prompt, prompt, latent, steps=3, cfg=2.0))


def test_an_adapter_with_k_does_not_warn(kind: str, laid: Any, carry: ModuleType, said: Any) -> None:
    prompt = carry.with_k(models.conditioning(kind), [4.0])
    models.sample(laid, prompt, prompt, models.empty_latent(kind), steps=2, cfg=2.0)
    assert said() == []


GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x"}},
    "2": {"class_type": "LoadBokehAdapter", "inputs": {"model": ["1", 0], "adapter": "y", "strength": 1.0}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a"}},
    "4": {"class_type": "BokehCondition", "inputs": {"positive": ["3", 0], "negative": ["3", 0], "bokeh": 8}},
    "5": {
        "class_type": "KSampler",
        "inputs": {"model": ["2", 0], "positive": ["4", 0], "negative": ["4", 1]},
    },
    "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
}


@pytest.mark.parametrize(
    ("change", "warns"),
    [
        ({}, False),
        ({"5": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "positive": ["4", 0]}}}, True),
        # The adapter feeds another sampler, not the one that gets K.
        (
            {
                "5": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "positive": ["4", 0]}},
                "7": {"class_type": "KSampler", "inputs": {"model": ["2", 0], "positive": ["3", 0]}},
            },
            True,
        ),
        ({"5": {"class_type": "PreviewAny", "inputs": {}}}, False),  # nothing uses K yet
    ],
)
def test_k_without_an_adapter_is_said(
    pack: ModuleType, said: Any, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], warns: bool
) -> None:
    node = pack.nodes.adapter.BokehCondition
    from comfy_api.latest import io
    from comfy_api.latest._io import HiddenHolder

    hidden = {io.Hidden.unique_id: "4", io.Hidden.prompt: {**GRAPH, **change}}
    monkeypatch.setattr(node, "hidden", HiddenHolder.from_dict(hidden))
    node.execute([], [], 8.0, pack.bokeh_ops.host.sampling.conditioning.NEGATIVE_MODES[0], "")
    assert any("no LoadBokehAdapter feeds the sampler" in text for text in said()) == warns


@pytest.mark.parametrize(
    ("prompt", "node"),
    [(None, "4"), ({}, "4"), (GRAPH, None), (GRAPH, "99"), ({"4": {"class_type": "X"}}, "4")],
)
def test_a_graph_that_is_not_known_raises_no_alarm(pack: ModuleType, prompt: Any, node: str | None) -> None:
    assert pack.bokeh_ops.host.graph.samplers_without_adapter(prompt, node) == []


@pytest.mark.parametrize("k", [-5.0, 30.5])
def test_k_outside_the_trained_range_is_used_and_said(pack: ModuleType, said: Any, k: float) -> None:
    prompt = models.conditioning("sd15")
    out = pack.nodes.adapter.BokehCondition.execute(prompt, prompt, k, "released (-30)", "").result
    assert k_of(out[0]) == [[k]]
    assert len(said()) == 1
    assert "is outside 0 to 30" in said()[0]


def test_the_host_checks_the_other_inputs(pack: ModuleType, node_classes: dict[str, Any]) -> None:
    """Naming an input in validate_inputs lifts the host's own check of it; of no other."""
    import inspect

    for name, free in {"BokehCondition": "bokeh", "GroundedSampler": "pivot_bokeh"}.items():
        spec = inspect.getfullargspec(node_classes[name].validate_inputs)
        assert spec.args == ["cls", free]
        assert spec.varkw is None
        assert node_classes[name].validate_inputs(math.pi) is True
