"""The bokeh adapter: an embedding of K, and per layer the projections that turn it into keys and values.

Source: Fortes et al., "Bokeh Diffusion" (SIGGRAPH Asia 2025), sec. 3.3 and eq. 10.

The tree of sub-modules follows the paths of the diffusion model (``output_blocks.3.1.transformer_blocks.0.attn2``,
``double_blocks.4``), so ``BokehAdapter.state_dict()`` has exactly the tensor names of this project's file layout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BokehError
from .conditions import FIELDS, Conditions, K

CROSS = ("to_k_bokeh", "to_v_bokeh")
QUERY_KEY = ("to_q_adp", "to_k_adp")
PROJECTED: Mapping[str, Literal["q", "k"]] = {"to_q_adp": "q", "to_k_adp": "k"}
"""What each of them acts on."""


@dataclass(frozen=True)
class LayerSpec:
    """One layer of a host model that an adapter may attach to.

    Attributes:
        width: features of the layer's attention (heads x features per head).
        rank: rank of its projections; None makes ``to_k_bokeh``/``to_v_bokeh`` full matrices.
    """

    width: int
    rank: int | None = None


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter is, apart from its weights.

    Attributes:
        base: name of the architecture that it is for.
        bokeh_hidden_dim: width of the embedding's hidden layer (64 as released).
        bokeh_context_dim: features of one bokeh token (768 as released).
        tokens: number of bokeh tokens (1 as released).
        fields: what it is told of every picture, by the names of :data:`.conditions.FIELDS`.
        k_range: K that the embedding sees as 1 (30); of other fields it is their ``most``.
        lora_alpha: if set, every low-rank pair is scaled by ``lora_alpha / rank``.
        lora_scale: further factor on the query/key adapters.
        bokeh_scale: factor on the bokeh term that the adapter was made with; multiplies the user's strength.
        extra: anything else that training recorded, kept verbatim (JSON values).
    """

    base: str
    bokeh_hidden_dim: int = 64
    bokeh_context_dim: int = 768
    tokens: int = 1
    fields: tuple[str, ...] = (K.name,)
    k_range: float = K.most
    lora_alpha: float | None = None
    lora_scale: float = 1.0
    bokeh_scale: float = 1.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.base, str) or not self.base:
            raise BokehError(f"The adapter's base is {self.base!r}; it must be the name of an architecture.")
        known = [field.name for field in FIELDS]
        strange = [name for name in self.fields if name not in known]
        if strange or not self.fields or len(set(self.fields)) < len(self.fields):
            raise BokehError(
                f"The adapter is told {', '.join(map(str, self.fields)) or 'nothing'} of every picture; this version "
                f"knows {', '.join(known)}. Update the extension."
            )
        for name in ("bokeh_hidden_dim", "bokeh_context_dim", "tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BokehError(
                    f"The adapter's {name} is {value!r}; it must be a whole number of at least 1."
                )
        for name in ("k_range", "lora_alpha", "lora_scale", "bokeh_scale"):
            value = getattr(self, name)
            if value is None and name == "lora_alpha":
                continue
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
                raise BokehError(f"The adapter's {name} is {value!r}; it must be a finite number.")
        if not self.k_range > 0:
            raise BokehError(f"The adapter's k_range is {self.k_range!r}; it must be above 0.")


class FullProjection(nn.Module):
    """``x W^T`` with ``weight [out, in]``, no bias; zero at the start."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_features, in_features))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class _Factor(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


class LowRankProjection(nn.Module):
    """``s (x D^T) U^T`` with ``down.weight [rank, in]`` and ``up.weight [out, rank]``; zero at the start.

    ``s`` is 1, or ``alpha / rank`` where the adapter has a ``lora_alpha``.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, alpha: float | None = None) -> None:
        super().__init__()
        self.down = _Factor(torch.randn(rank, in_features) / rank)
        self.up = _Factor(torch.zeros(out_features, rank))
        self.scale = 1.0 if alpha is None else alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(x, self.down.weight.to(x.dtype))
        out = F.linear(low, self.up.weight.to(x.dtype))
        return out if self.scale == 1.0 else out * self.scale


Projection = FullProjection | LowRankProjection


def _spread(embedding: nn.Sequential) -> None:
    """First weights of the embedding of K: tokens of about size 1, kinks spread from K = -30 (the negative) to 30.

    With torch's own, tokens are four times smaller and differ less with K. Values start at 0, so how fast they learn
    to follow K goes with how much the tokens do.
    """
    first, _, last = embedding
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    shape = (hidden, _) = first.weight.shape
    with torch.no_grad():
        first.weight.copy_(2.0 * (torch.randint(2, shape) * 2 - 1))
        first.bias.copy_(-(first.weight * (torch.rand(shape) * 2 - 1)).sum(1))
        last.weight.normal_(std=hidden**-0.5)
        last.bias.zero_()


class BokehAdapter(nn.Module):
    """MLP embedding of K and, per adapted layer, ``W'_k`` and ``W'_v`` and optional query/key adapters.

    A freshly made adapter changes nothing: every value projection and every query/key adapter starts at zero.

    Args:
        config: dimensions and scales.
        cross: layers that get bokeh keys and values, by path inside the diffusion model.
        query_key: layers that get low-rank query/key adapters; their ``rank`` must be set.
        query_key_names: which of the two every such layer has.

    Raises:
        BokehError: no layer at all, or a query/key layer without rank.
    """

    def __init__(
        self,
        config: AdapterConfig,
        cross: Mapping[str, LayerSpec],
        query_key: Mapping[str, LayerSpec] | None = None,
        query_key_names: tuple[str, ...] = QUERY_KEY,
    ) -> None:
        super().__init__()
        query_key = query_key or {}
        if not cross and not query_key:
            raise BokehError("An adapter needs at least one layer; none was given.")
        self.config = config
        self.cross_layers = tuple(cross)
        self.query_key_layers: tuple[str, ...] = tuple(query_key)
        self.query_key_names = query_key_names
        self.widths: dict[str, int] = {}
        hidden, context = config.bokeh_hidden_dim, config.bokeh_context_dim
        self.embedding_layer = nn.Sequential(
            nn.Linear(len(config.fields), hidden), nn.ReLU(), nn.Linear(hidden, context * config.tokens)
        )
        _spread(self.embedding_layer)
        for path, spec in cross.items():
            self.widths[path] = spec.width
            self._plant(f"{path}.to_k_bokeh", self._cross_projection(spec, nonzero=True))
            self._plant(f"{path}.to_v_bokeh", self._cross_projection(spec, nonzero=False))
        for path, spec in query_key.items():
            if spec.rank is None:
                raise BokehError(f"The query/key adapter of {path} has no rank; it must be low-rank.")
            self.widths[path] = spec.width
            for name in query_key_names:
                self._plant(
                    f"{path}.{name}", LowRankProjection(spec.width, spec.width, spec.rank, config.lora_alpha)
                )

    def _cross_projection(self, spec: LayerSpec, nonzero: bool) -> Projection:
        context = self.config.bokeh_context_dim
        if spec.rank is None:
            projection: Projection = FullProjection(context, spec.width)
            if nonzero:  # keys may start anywhere: with zero values they change nothing, and they must learn
                nn.init.normal_(projection.weight, std=context**-0.5)
            return projection
        projection = LowRankProjection(context, spec.width, spec.rank, self.config.lora_alpha)
        if nonzero:
            nn.init.normal_(projection.up.weight, std=spec.rank**-0.5)
        return projection

    def _plant(self, path: str, module: nn.Module) -> None:
        *parents, name = path.split(".")
        node: nn.Module = self
        for part in parents:
            child = node._modules.get(part)
            if child is None:
                child = nn.Module()
                node.add_module(part, child)
            node = child
        node.add_module(name, module)

    def projection(self, path: str, name: str) -> Projection:
        """The projection ``name`` (of :data:`CROSS` or :data:`QUERY_KEY`) of the layer at ``path``."""
        module = self.get_submodule(f"{path}.{name}")
        assert isinstance(module, (FullProjection, LowRankProjection))
        return module

    def low_rank_pairs(self) -> Iterator[tuple[str, str, LowRankProjection]]:
        """``(layer path, name, projection)`` of every query/key adapter."""
        for path in self.query_key_layers:
            for name in self.query_key_names:
                projection = self.projection(path, name)
                assert isinstance(projection, LowRankProjection)
                yield path, name, projection

    def embed(self, conditions: Conditions) -> Tensor:
        """``c_b = MLP(K / 30)``.

        Returns:
            Bokeh tokens ``[R, T, context]``, fp32 unless the weights are fp64.
        """
        first = self.embedding_layer[0]
        assert isinstance(first, nn.Linear)
        dtype = torch.float64 if first.weight.dtype == torch.float64 else torch.float32
        values = conditions.of(self.config.fields).to(device=first.weight.device, dtype=dtype)
        x = values / torch.tensor([self._range(name) for name in self.config.fields]).to(values)
        for layer in self.embedding_layer:
            linear = isinstance(layer, nn.Linear)
            x = F.linear(x, layer.weight.to(dtype), layer.bias.to(dtype)) if linear else layer(x)
        return x.reshape(len(values), self.config.tokens, self.config.bokeh_context_dim)

    def _range(self, name: str) -> float:
        return self.config.k_range if name == K.name else next(f.most for f in FIELDS if f.name == name)

    def project(self, conditions: Conditions) -> dict[str, tuple[Tensor, Tensor]]:
        """``K_b`` and ``V_b`` of eq. 10 for every adapted layer.

        Args:
            conditions: of the rows. The values of one that is not active are zero.

        Returns:
            By layer path, ``(K_b, V_b)``, each ``[R, T, C]``.
        """
        context = self.embed(conditions)
        off = ~conditions.active.to(context.device)[:, None, None]
        result: dict[str, tuple[Tensor, Tensor]] = {}
        for path in self.cross_layers:
            values = self.projection(path, "to_v_bokeh")(context)
            values = torch.where(off, torch.zeros_like(values), values)
            # With one token the softmax is over one key and K_b is inert (see bokeh_attention).
            keys = values if self.config.tokens == 1 else self.projection(path, "to_k_bokeh")(context)
            result[path] = (keys, values)
        return result

    def extra_repr(self) -> str:
        return (
            f"base={self.config.base}, tokens={self.config.tokens}, cross={len(self.cross_layers)}, "
            f"query_key={len(self.query_key_layers)}"
        )
