"""Pictures as further tokens of FLUX ("branches"), each modulated for itself, with a LoRA on them alone.

The tokens go in at the host's ``post_input`` patch, behind those of the picture that is made; the host's own blocks run
over all of them. What is different for them is done where their modules are called: modulation by what is told of them
(timestep 0, guidance 1), low-rank terms on their part of a layer's output, and attention in which they do not see each
other. So weights are never merged, and fp8, GGUF and offloaded models work as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import comfy.utils
import torch
from comfy.ldm.flux.layers import timestep_embedding
from torch import Tensor, nn
from torch.nn import functional

from ...adapter.attention import split_heads
from ...errors import BokehError
from ...genfocus.files import BranchLora
from ...low_rank import Pair
from ..architectures import HostModel, recognise
from ..attention.joint import Run, attending
from ..attention.model_call import check_attention, of_this_call

_MODULATION = {"double_blocks": "img_mod", "single_blocks": "modulation"}
"""What the host calls the module that modulates a picture's tokens, by kind of block."""
Kept = dict[str, tuple[Tensor, Tensor]]
"""Keys and values of the conditions' tokens ``[R, heads, n L, D]``, by block."""


class Change(NamedTuple):
    """A low-rank change of some features that a layer puts out."""

    first: int
    pair: Pair

    def add(self, out: Tensor, x: Tensor, strength: float) -> None:
        """Add it to a layer's output ``[..., outputs]`` for what went in ``[..., inputs]``, in place."""
        down, up = (factor.to(x.device, x.dtype) for factor in self.pair)
        term = functional.linear(functional.linear(x, down), up).to(out.dtype)
        out[..., self.first : self.first + up.shape[0]].add_(term, alpha=strength)


Changes = Mapping[str, Sequence[Change]]
"""By path of the layer inside the diffusion model."""


def changes_of(lora: BranchLora, patcher: Any) -> dict[str, list[Change]]:
    """Where a LoRA acts in a MODEL.

    Raises:
        BokehError: the model is no FLUX, or the LoRA was trained on one of other sizes.
    """
    flux = recognise(patcher)
    if not flux.architecture.branches:
        raise BokehError(
            f"The model is {flux.title}; Genfocus' LoRAs are for FLUX.1-dev. Connect that (fp8 and GGUF work)."
        )
    modules = dict(patcher.model.diffusion_model.named_modules())
    table = comfy.utils.flux_to_diffusers(_sizes(flux, patcher))
    found: dict[str, list[Change]] = {}
    for layer, pair in lora.pairs.items():
        entry = table.get(f"{layer}.weight")
        name, place = entry if isinstance(entry, tuple) else (entry, None)
        path = None if name is None else name.removesuffix(".weight")
        module = modules.get(path)
        if path is None or module is None:
            raise BokehError(
                f"{lora.name} changes {layer}, which {flux.title} does not have. It is for FLUX.1-dev."
            )
        inputs, outputs = (getattr(module, name, None) for name in ("in_features", "out_features"))
        first, outputs = (0, outputs) if place is None else place[1:]
        if (pair.down.shape[1], pair.up.shape[0]) != (inputs, outputs):
            raise BokehError(
                f"{lora.name}: {layer} takes {pair.down.shape[1]} features and gives {pair.up.shape[0]}, but in "
                f"{flux.title} {inputs} and {outputs}. It was trained on another model; Genfocus' LoRAs are for "
                "FLUX.1-dev."
            )
        found.setdefault(path, []).append(Change(first, pair))
    return found


def _sizes(flux: HostModel, patcher: Any) -> dict[str, Any]:
    """Of the network that is there, whatever its file was taken for."""
    network = patcher.model.diffusion_model
    return {
        "depth": len(network.double_blocks),
        "depth_single_blocks": len(network.single_blocks),
        "hidden_size": next(iter(flux.widths.values())),
    }


class Conditions(NamedTuple):
    """What the branches of one model call show.

    Attributes:
        latents: ``[R, n, C, h, w]``, of the size of what is made, in the model's own scale.
        columns: tokens to the right of what is made at which each of the ``n`` lies.
        pooled: the pooled text ``[R, V]`` that their modulation is told; None: none.
    """

    latents: Tensor
    columns: Sequence[int]
    pooled: Tensor | None


@contextmanager
def branches(
    options: dict[str, Any],
    network: nn.Module,
    conditions: Conditions,
    changes: Changes,
    strength: float = 1.0,
    kept: Kept | None = None,
) -> Iterator[dict[str, Any]]:
    """While this is open, FLUX sees conditions as further tokens.

    Args:
        options: the host's ``transformer_options``, which are not changed.
        network: FLUX that is about to run.
        conditions: what it sees.
        changes: of layers, for their tokens.
        strength: of the changes.
        kept: keys and values of their tokens. Where it is empty, they are put there; else they are taken from there
            and the tokens themselves are left out.

    Returns:
        A copy of the options to give to the network.

    Raises:
        BokehError: another extension runs FLUX's forward in its own way, so that they are not seen.
    """
    paths = [
        f"{kind}.{i}"
        for kind in ("double_blocks", "single_blocks")
        for i in range(len(getattr(network, kind)))
    ]
    if kept:
        with attending(options, network, paths, _attend_to_kept(kept)) as options:
            yield options
        return
    tokens = _Tokens(network, conditions, changes, strength)
    options = options.copy()
    patches = {**options.get("patches", {})}
    patches["post_input"] = [*patches.get("post_input", []), tokens.append]
    options["patches"] = patches
    with ExitStack() as stack:
        for handle in tokens.hooks():
            stack.callback(handle.remove)
        attend = _attend_apart(tokens, len(conditions.columns), kept)
        yield stack.enter_context(attending(options, network, paths, attend))
    tokens.check()


class _Tokens:
    """The further tokens of one model call.

    Attributes:
        total: how many, once they are there.
    """

    def __init__(self, network: Any, conditions: Conditions, changes: Changes, strength: float) -> None:
        self.network, self.conditions, self.changes, self.strength = network, conditions, changes, strength
        self.total = 0
        self._lengths: dict[str, int] = {}  # tokens that are modulated in a kind of block
        self._told: Tensor | None = None

    def check(self) -> Tensor:
        """What modulation is told of them, ``[R, 1, C]``.

        Raises:
            BokehError: they are not there.
        """
        if self._told is None:
            raise BokehError(
                "Another extension runs FLUX's forward in its own way and leaves out ComfyUI's patches, so the "
                "photograph does not reach the model. Remove that extension from this model."
            )
        return self._told

    def append(self, given: dict[str, Any]) -> dict[str, Any]:
        """The host's ``post_input`` patch."""
        img, ids = given["img"], given["img_ids"]
        rows, count = self.conditions.latents.shape[:2]
        check_attention(rows, img.shape[0])
        latents = self.conditions.latents.to(img)
        packed = self.network.process_img(latents.flatten(0, 1))[0]
        each = packed.shape[1]
        packed = packed.reshape(rows, count * each, -1)
        own = self.network.img_in(packed)
        self._change("img_in", own, packed)
        places = []
        for columns in self.conditions.columns:
            place = ids[:, :each].clone()
            place[..., 2] += columns
            places.append(place)
        self.total = count * each
        img = torch.cat([img, own], 1)
        length = img.shape[1]
        self._lengths = {"double_blocks": length, "single_blocks": length + given["txt"].shape[1]}
        self._told = functional.silu(self._vector(img))[:, None]
        return {**given, "img": img, "img_ids": torch.cat([ids, *places], 1)}

    def _vector(self, like: Tensor) -> Tensor:
        """What modulation is told of conditions: timestep 0, guidance 1, the text."""
        net, rows = self.network, like.shape[0]

        def embedded(value: float) -> Tensor:
            return timestep_embedding(torch.full((rows,), value, device=like.device), 256).to(like.dtype)

        vector = net.time_in(embedded(0.0))
        if net.params.guidance_embed:
            vector = vector + net.guidance_in(embedded(1.0))
        if net.vector_in is not None:
            pooled = self.conditions.pooled
            if pooled is None:
                pooled = like.new_zeros(rows, net.params.vec_in_dim)
            vector = vector + net.vector_in(pooled.to(like)[:, : net.params.vec_in_dim])
        return vector

    def _change(self, path: str, out: Tensor, x: Tensor) -> None:
        for change in self.changes.get(path, ()) if self.strength else ():
            change.add(out, x, self.strength)

    def hooks(self) -> Iterator[Any]:
        elsewhere = {"img_in"}
        for kind, name in _MODULATION.items():
            for i, block in enumerate(getattr(self.network, kind)):
                path = f"{kind}.{i}.{name}.lin"
                elsewhere.add(path)
                hook = of_this_call(self._modulation(path, kind))
                yield getattr(block, name).register_forward_hook(hook)
        for path in self.changes:
            if path not in elsewhere:
                yield self.network.get_submodule(path).register_forward_hook(of_this_call(self._layer(path)))

    def _layer(self, path: str) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            self.check()
            self._change(path, out[:, -self.total :], args[0][:, -self.total :])
            return out

        return hook

    def _modulation(self, path: str, kind: str) -> Callable[..., Any]:
        def hook(module: Any, _args: Any, out: tuple[Any, ...]) -> tuple[Any, ...]:
            told = self.check()
            made = module.lin(told)
            self._change(path, made, told)
            parts = iter(made.chunk(module.multiplier, -1))
            return tuple(
                None
                if each is None
                else _Apart(
                    each, type(each)(*(next(parts) for _ in range(3))), self._lengths[kind], self.total
                )
                for each in out
            )

        return hook


class _Apart:
    """The host's ``ModulationOut`` in which the last tokens have numbers of their own, made where they are asked for.

    Args:
        own: of the others ``[R, 1, C]``.
        last: of the last tokens.
        length: of all tokens.
        count: of the last.
    """

    def __init__(self, own: Any, last: Any, length: int, count: int) -> None:
        self._parts = ((own, length - count), (last, count))

    def __getattr__(self, name: str) -> Tensor:
        return torch.cat([getattr(part, name).expand(-1, length, -1) for part, length in self._parts], 1)


def _attend_apart(tokens: _Tokens, count: int, kept: Kept | None) -> Any:
    """Joint attention in which each condition sees text, the picture that is made, and itself."""

    def attend(
        path: str, q: Tensor, k: Tensor, v: Tensor, heads: int, run: Run, keywords: dict[str, Any], _: bool
    ) -> Tensor:
        q, k, v, finish = _by_heads(q, k, v, heads, keywords)
        each, before = tokens.total // count, q.shape[2] - tokens.total
        if kept is not None:
            kept[path] = (k[:, :, before:].clone(), v[:, :, before:].clone())
        mask = keywords.pop("mask", None)
        # First, as extensions that act in attention themselves act in the first of a block: on what is made.
        outs = [run(q[:, :, :before], k, v, **keywords, mask=_longer(mask, tokens.total))]
        del mask
        for start in range(before, q.shape[2], each):
            own = slice(start, start + each)
            if count == 1:
                outs.append(run(q[:, :, own], k, v, **keywords, mask=None))
                continue
            seen = (torch.cat([side[:, :, :before], side[:, :, own]], 2) for side in (k, v))
            outs.append(run(q[:, :, own], *seen, **keywords, mask=None))
        return finish(torch.cat(outs, 1))

    return attend


def _attend_to_kept(kept: Kept) -> Any:
    def attend(
        path: str, q: Tensor, k: Tensor, v: Tensor, heads: int, run: Run, keywords: dict[str, Any], _: bool
    ) -> Tensor:
        q, k, v, finish = _by_heads(q, k, v, heads, keywords)
        if path not in kept:
            raise BokehError(
                f"{path} of FLUX was skipped in the first step, so it has no keys to go on with. Another extension "
                "skips blocks; remove it, or do not reuse the photograph's keys."
            )
        keys, values = kept[path]
        mask = _longer(keywords.pop("mask", None), keys.shape[2])
        k, v = (torch.cat([side, more], 2) for side, more in ((k, keys), (v, values)))
        return finish(run(q, k, v, **keywords, mask=mask))

    return attend


def _by_heads(
    q: Tensor, k: Tensor, v: Tensor, heads: int, keywords: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """q, k and v ``[R, heads, L, D]``, and what brings ``[R, L, C]`` into the form that is wanted."""
    if not keywords.get("skip_reshape"):
        q, k, v = (split_heads(each, heads) for each in (q, k, v))
    wanted = bool(keywords.get("skip_output_reshape"))
    keywords.update(skip_reshape=True, skip_output_reshape=False)
    if k.shape[2] != q.shape[2]:
        raise BokehError(
            "Another extension adds keys to FLUX's attention (grounding does), which does not go together with "
            "Genfocus. Give it a model without that."
        )
    return q, k, v, (lambda out: split_heads(out, heads)) if wanted else (lambda out: out)


def _longer(mask: Tensor | None, tokens: int) -> Tensor | None:
    """A mask of attention ``[..., L, L]`` for so many keys more, which all are seen."""
    if mask is None:
        return None
    return functional.pad(mask, (0, tokens), value=True if mask.dtype == torch.bool else 0.0)
