"""The adapter itself: its embedding and projections computed by hand, what a fresh one does, what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

from bokeh_ops.adapter.conditions import Conditions
from bokeh_ops.adapter.network import (
    AdapterConfig,
    BokehAdapter,
    FullProjection,
    LayerSpec,
    LowRankProjection,
)
from bokeh_ops.errors import BokehError
from tests import models
from tests.models import one_thread, randn, relative  # noqa: F401
from tests.reference import keys_and_values

K = torch.tensor([0.0, 12.5, 30.0, -30.0])


def small(**settings: object) -> BokehAdapter:
    config = AdapterConfig("sd15", bokeh_hidden_dim=2, bokeh_context_dim=3, **settings)  # type: ignore[arg-type]
    return BokehAdapter(config, {"a.attn2": LayerSpec(4)})


def test_the_embedding_by_hand() -> None:
    made = small()
    first, _, second = made.embedding_layer
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[2.0], [-3.0]]))  # type: ignore[union-attr,operator]
        first.bias.copy_(torch.tensor([0.5, 1.0]))  # type: ignore[union-attr,operator]
        second.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]]))  # type: ignore[union-attr,operator]
        second.bias.copy_(torch.tensor([0.0, 0.0, 10.0]))  # type: ignore[union-attr,operator]
    out = made.embed(Conditions.of_k([15.0, -30.0]))
    # K = 15 is 0.5: hidden (1.5, -0.5) -> (1.5, 0). K = -30 is -1: hidden (-1.5, 4) -> (0, 4).
    assert torch.allclose(out, torch.tensor([[[1.5, 0.0, 11.5]], [[0.0, 4.0, 6.0]]]))


@pytest.mark.parametrize("alpha", [None, 2.0])
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("kind", models.KINDS)
def test_keys_and_values_by_hand(kind: str, tokens: int, alpha: float | None) -> None:
    made = models.adapter(kind, tokens=tokens, lora_alpha=alpha)
    expected = keys_and_values(made, K)
    found = made.project(Conditions.of_k(K))
    assert set(found) == set(expected)
    for layer, (keys, values) in found.items():
        assert values.shape == (4, tokens, made.widths[layer])
        assert relative(values, expected[layer][1]) < 1e-5
        if tokens > 1:  # with one token the keys are inert
            assert relative(keys, expected[layer][0]) < 1e-5


def test_the_tokens_of_a_fresh_adapter_differ_with_k() -> None:
    """With torch's own first weights they hardly do, by 0.07 to 0.08 from one of these to the next."""
    torch.manual_seed(0)
    made = BokehAdapter(AdapterConfig("sd15"), {"a.attn2": LayerSpec(8)})
    with torch.no_grad():
        tokens = made.embedding_layer(torch.tensor([[0.0], [1 / 3], [2 / 3], [1.0]]))
    steps = (tokens[1:] - tokens[:-1]).square().mean(1).sqrt()
    assert float(steps.min()) > 0.3
    assert 0.5 < float(tokens.std()) < 2


def test_every_row_has_its_own_k() -> None:
    made = models.adapter("flux")
    together = made.project(Conditions.of_k(K))
    for row, k in enumerate(K):
        alone = made.project(Conditions.of_k(k[None]))
        assert all(torch.allclose(together[p][1][row], alone[p][1][0], atol=1e-6) for p in together)
    values = together["double_blocks.0"][1]
    assert relative(values[0], values[2]) > 1e-2


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_row_without_k_has_no_bokeh(tokens: int) -> None:
    made = models.adapter("sd15", tokens=tokens)
    found = made.project(Conditions(torch.tensor([[9.0], [7.0]]), torch.tensor([False, True])))
    alone = made.project(Conditions.of_k([7.0]))
    for layer, (keys, values) in found.items():
        assert torch.isfinite(keys).all()
        assert not values[0].any()
        assert relative(values[1], alone[layer][1][0]) < 1e-6


@pytest.mark.parametrize(
    ("k", "message"), [([], "empty"), ([2.0, math.nan], "finite"), ([math.inf], "finite")]
)
def test_a_k_that_is_none(k: list[float], message: str) -> None:
    with pytest.raises(BokehError, match=message):
        Conditions.of_k(k)


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("kind", models.KINDS)
def test_a_fresh_adapter_has_no_values_but_keys_that_can_learn(kind: str, full: bool) -> None:
    made = models.adapter(kind, zero=True, tokens=2, full=full)
    found = made.project(Conditions.of_k(K))
    assert not any(values.any() for _, values in found.values())
    assert all(keys.any() for keys, _ in found.values())
    pairs = list(made.low_rank_pairs())
    assert len(pairs) == 2 * len(made.query_key_layers) > 0
    for _, _, pair in pairs:
        assert not pair(randn(3, pair.down.weight.shape[1])).any()
        assert pair.down.weight.any()


@pytest.mark.parametrize("kind", models.KINDS)
def test_a_fresh_adapter_learns(kind: str) -> None:
    made = models.adapter(kind, zero=True, tokens=2).requires_grad_(True)
    sum((keys + values).sum() for keys, values in made.project(Conditions.of_k(K[1:])).values()).backward()  # type: ignore[union-attr]
    for layer in made.cross_layers:
        name = "weight" if kind == "sd15" else "up.weight"
        gradient = made.get_parameter(f"{layer}.to_v_bokeh.{name}").grad
        assert gradient is not None
        assert gradient.any()
    assert made.embedding_layer[0].weight.grad.any()


def test_alpha_scales_low_rank_pairs_only() -> None:
    pair = LowRankProjection(4, 5, 3, alpha=6.0)
    with torch.no_grad():
        pair.up.weight.copy_(randn(5, 3))
    x = randn(2, 4, seed=2)
    assert relative(pair(x), 2 * x @ pair.down.weight.T @ pair.up.weight.T) < 1e-6
    assert LowRankProjection(4, 5, 3).scale == 1
    full = FullProjection(4, 5)
    with torch.no_grad():
        full.weight.copy_(randn(5, 4))
    assert relative(full(x), x @ full.weight.T) < 1e-6


def test_the_trained_range_scales_k() -> None:
    torch.manual_seed(0)
    one = small(k_range=30.0)
    other = small(k_range=60.0)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.embed(Conditions.of_k([10.0])), other.embed(Conditions.of_k([20.0])))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_weights_are_computed_in_single(dtype: torch.dtype) -> None:
    made = models.adapter("flux", tokens=2).to(dtype)
    values = made.project(Conditions.of_k(K))["single_blocks.1"][1]
    assert values.dtype == torch.float32
    assert relative(values, keys_and_values(made, K)["single_blocks.1"][1]) < 1e-5


def test_double_precision_stays() -> None:
    made = models.adapter("sd15", tokens=2).double()
    keys, values = next(iter(made.project(Conditions.of_k(K)).values()))
    assert keys.dtype == values.dtype == torch.float64
    expected = keys_and_values(made, K)[made.cross_layers[0]]
    assert relative(values, expected[1]) < 1e-14


def test_tensor_names_are_those_of_the_file() -> None:
    names = set(models.adapter("sd15", blocks=["output_blocks.3.1.transformer_blocks.0"]).state_dict())
    layer = "output_blocks.3.1.transformer_blocks.0"
    assert names == {
        *(f"embedding_layer.{i}.{n}" for i in (0, 2) for n in ("weight", "bias")),
        f"{layer}.attn2.to_k_bokeh.weight",
        f"{layer}.attn2.to_v_bokeh.weight",
        *(f"{layer}.attn1.to_{x}_adp.{n}.weight" for x in "qk" for n in ("down", "up")),
    }


def test_what_it_says_of_itself() -> None:
    assert "base=flux, tokens=1, cross=4, query_key=4" in repr(models.adapter("flux"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": ""}, "base is ''; it must be the name of an architecture"),
        ({"base": 15}, "base is 15; it must be the name"),
        ({"tokens": 0}, "tokens is 0; it must be a whole number"),
        ({"tokens": 1.5}, "tokens is 1.5; it must be a whole number"),
        ({"bokeh_hidden_dim": True}, "bokeh_hidden_dim is True"),
        ({"bokeh_context_dim": "768"}, "bokeh_context_dim is '768'"),
        ({"k_range": 0.0}, "k_range is 0.0; it must be above 0"),
        ({"k_range": "thirty"}, "k_range is 'thirty'; it must be a finite number"),
        ({"k_range": None}, "k_range is None"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'"),
        ({"lora_scale": math.nan}, "lora_scale is nan"),
        ({"bokeh_scale": [1]}, r"bokeh_scale is \[1\]"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(BokehError, match=message):
        AdapterConfig(**{"base": "flux", **settings})  # type: ignore[arg-type]


def test_layers_that_cannot_be() -> None:
    config = AdapterConfig("sd15")
    with pytest.raises(BokehError, match="at least one layer"):
        BokehAdapter(config, {})
    with pytest.raises(BokehError, match=r"query/key adapter of x\.attn1 has no rank"):
        BokehAdapter(config, {}, {"x.attn1": LayerSpec(8)})
