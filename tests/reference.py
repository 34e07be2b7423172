"""The paper's equations on a host model by module hooks alone: another way to the same numbers.

Nothing of the extension is used: keys and values come from the adapter's tensors, attention is written out, and
the results enter the network at the input of each output projection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def keys_and_values(adapter: Any, k: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Eq. 10's ``K_b`` and ``V_b`` per layer, ``[R, T, C]``, from the tensors of the file, in double precision."""
    w = {name: value.double().to(k.device) for name, value in adapter.state_dict().items()}
    hidden = (k.double() / adapter.config.k_range)[:, None] * w["embedding_layer.0.weight"].T
    hidden = torch.relu(hidden + w["embedding_layer.0.bias"])
    context = hidden @ w["embedding_layer.2.weight"].T + w["embedding_layer.2.bias"]
    context = context.reshape(len(k), adapter.config.tokens, -1)
    alpha = adapter.config.lora_alpha

    def project(layer: str, name: str) -> Tensor:
        if f"{layer}.{name}.weight" in w:
            return context @ w[f"{layer}.{name}.weight"].T
        down, up = w[f"{layer}.{name}.down.weight"], w[f"{layer}.{name}.up.weight"]
        return context @ down.T @ up.T * (1 if alpha is None else alpha / down.shape[0])

    layers = {name.rpartition(".to_v_bokeh")[0] for name in w if ".to_v_bokeh" in name}
    return {layer: (project(layer, "to_k_bokeh"), project(layer, "to_v_bokeh")) for layer in layers}


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``softmax(q k^T / sqrt(D)) v`` for ``[H, L, D]``, in double precision."""
    q, k, v = q.double(), k.double(), v.double()
    return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ v


def heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(-2, -3)


def self_attention(q: Tensor, k: Tensor, v: Tensor, pivots: Sequence[int]) -> Tensor:
    """Eq. 11, row by row; ``[R, H, L, D] -> [R, L, C]``."""
    rows = []
    for row, pivot in enumerate(pivots):
        if pivot < 0:
            rows.append(attend(q[row], k[row], v[row]))
        else:
            rows.append(attend(q[pivot], torch.cat((k[row], k[pivot]), 1), torch.cat((v[row], v[row]), 1)))
    return torch.stack(rows).transpose(1, 2).flatten(2)


@contextmanager
def by_hooks(
    model: Any,
    adapters: Sequence[tuple[Any, float]] = (),
    k: Sequence[float] = (),
    pivots: Sequence[int] | None = None,
    query_key: float = 1.0,
) -> Iterator[None]:
    """Apply ``adapters`` (each with its lambda) and grounding to every call of ``model`` meanwhile.

    Args:
        k: K per row of the batch the network sees, all chunks included.
        pivots: pivot row in that same batch per row, -1 for none; None leaves self-attention to the host. In FLUX
            only blocks that the adapters name are grounded, all where there is no adapter; in the UNet every one is.
        query_key: strength of the query/key adapters.
    """
    network = model.model.diffusion_model
    handles: list[Any] = []
    terms: dict[str, list[tuple[float, Tensor, Tensor]]] = {}
    for adapter, strength in adapters:
        for path, (keys, values) in keys_and_values(adapter, torch.tensor(k)).items():
            terms.setdefault(path, []).append((strength, keys, values))

    def on_input(module: Any, change: Callable[[Tensor], Tensor]) -> None:
        handles.append(module.register_forward_pre_hook(lambda _m, a: (change(a[0]).to(a[0].dtype), *a[1:])))

    def on_output(module: Any, change: Callable[[Any, Any], Any]) -> None:
        handles.append(module.register_forward_hook(lambda _m, a, out: change(a, out)))

    def query_key_changes(path: str, name: str) -> list[tuple[Tensor, float]]:
        found = []
        for adapter, _ in adapters:
            state = adapter.state_dict()
            if f"{path}.{name}.up.weight" not in state:
                continue
            down, up = state[f"{path}.{name}.down.weight"], state[f"{path}.{name}.up.weight"]
            alpha = adapter.config.lora_alpha
            scale = adapter.config.lora_scale * (1 if alpha is None else alpha / down.shape[0])
            found.append((up.double() @ down.double(), scale * query_key))
        return found

    def changed(x: Tensor, path: str, name: str) -> Tensor:
        """``q <- q + s U (D q)``, one adapter after the other."""
        for product, scale in query_key_changes(path, name):
            x = x + scale * (x.double() @ product.T.to(x.device)).to(x.dtype)
        return x

    def with_terms(out: Tensor, q: Tensor, path: str, sources: Sequence[int]) -> Tensor:
        """``out + lambda Attention(Q, K_b, V_b)``; the query of row r is that of row ``sources[r]``."""
        out = out.double().clone()
        for strength, keys, values in terms.get(path, ()):
            for row, source in enumerate(sources):
                pair = (heads(each[row], q.shape[1]).to(q.device) for each in (keys, values))
                term = attend(q[source], *pair)
                out[row] += strength * term.transpose(0, 1).flatten(1)
        return out

    if hasattr(network, "double_blocks"):
        # Whatever the file holds of a block, it is named: its keys are ``double_blocks.N.to_...``.
        named = {
            key.partition(".to_")[0]
            for adapter, _ in adapters
            for key in adapter.state_dict()
            if ".to_" in key
        }
        _flux(network, on_input, on_output, changed, with_terms, pivots, named or None)
    else:
        _unet(network, on_input, on_output, changed, with_terms, pivots)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _unet(
    network: Any, on_input: Any, on_output: Any, changed: Any, with_terms: Any, pivots: Sequence[int] | None
) -> None:
    for path, module in network.named_modules():
        if not path.endswith((".attn1", ".attn2")):
            continue
        seen: dict[str, Tensor] = {}

        def keep(
            name: str, path: str = path, seen: dict[str, Tensor] = seen
        ) -> Callable[[Any, Tensor], Tensor]:
            def hook(_args: Any, out: Tensor) -> Tensor:
                seen[name] = changed(out, path, f"{name}_adp")
                return seen[name]

            return hook

        for name in ("to_q", "to_k", "to_v"):
            on_output(getattr(module, name), keep(name))

        def replace(
            out: Tensor, path: str = path, seen: dict[str, Tensor] = seen, n: int = module.heads
        ) -> Tensor:
            q, k, v = (heads(seen[name], n) for name in ("to_q", "to_k", "to_v"))
            if path.endswith("attn1"):
                return out if pivots is None else self_attention(q, k, v, pivots)
            return with_terms(out, q, path, range(len(q)))

        on_input(module.to_out, replace)


def _flux(
    network: Any,
    on_input: Any,
    on_output: Any,
    changed: Any,
    with_terms: Any,
    pivots: Sequence[int] | None,
    named: set[str] | None,
) -> None:
    from comfy.ldm.flux.math import apply_rope

    shared: dict[str, Tensor] = {}
    on_output(network.pe_embedder, lambda _a, out: shared.update(pe=out))

    def joint(q: Tensor, k: Tensor, v: Tensor, path: str, out: Tensor | None) -> Tensor:
        """Eq. 15 for text and image tokens together; ``out`` is the host's attention where nothing is grounded."""
        q, k = apply_rope(q, k, shared["pe"])
        if pivots is None or (named is not None and path not in named):
            assert out is not None
            return with_terms(out, q, path, range(len(q)))
        sources = [row if pivot < 0 else pivot for row, pivot in enumerate(pivots)]
        return with_terms(self_attention(q, k, v, pivots), q, path, sources)

    def on_projection(module: Any, path: str, width: int) -> None:
        def change(_args: Any, out: Tensor) -> Tensor:
            q, k, rest = out.split((width, width, out.shape[-1] - 2 * width), -1)
            return torch.cat((changed(q, path, "to_q_adp"), changed(k, path, "to_k_adp"), rest), -1)

        on_output(module, change)

    def on_norm(module: Any, seen: dict[str, Any], name: str) -> None:
        on_output(module, lambda args, out: seen.update({name: (*out, args[2])}))

    for i, block in enumerate(network.double_blocks):
        path, seen = f"double_blocks.{i}", {}
        on_projection(block.img_attn.qkv, path, block.hidden_size)
        on_norm(block.img_attn.norm, seen, "img")
        on_norm(block.txt_attn.norm, seen, "txt")

        def project(out: Tensor, part: str, path: str = path, seen: dict[str, Any] = seen) -> Tensor:
            # The host hands out its joint attention in two parts, text tokens first.
            q, k, v = (torch.cat(pair, 2) for pair in zip(seen["txt"], seen["img"], strict=True))
            text = q.shape[2] - out.shape[1] if part == "img" else out.shape[1]
            whole = torch.zeros(len(q), q.shape[2], out.shape[2], device=out.device)
            where = slice(text, None) if part == "img" else slice(text)
            whole[:, where] = out
            return joint(q, k, v, path, whole)[:, where]

        on_input(block.img_attn.proj, lambda out, project=project: project(out, "img"))
        on_input(block.txt_attn.proj, lambda out, project=project: project(out, "txt"))

    for i, block in enumerate(network.single_blocks):
        path, seen = f"single_blocks.{i}", {}
        on_projection(block.linear1, path, block.hidden_dim)
        on_norm(block.norm, seen, "all")

        def single(
            x: Tensor, path: str = path, seen: dict[str, Any] = seen, c: int = block.hidden_dim
        ) -> Tensor:
            return torch.cat((joint(*seen["all"], path, x[..., :c]), x[..., c:].double()), -1)

        on_input(block.linear2, single)
