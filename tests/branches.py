"""Genfocus' branches by themselves: FLUX computed stream by stream, from its weights alone, and LoRAs for it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tests import models

Pairs = Mapping[str, tuple[Tensor, Tensor]]


class Stream(NamedTuple):
    """Tokens, what modulates them, the angles of their places, and whether the LoRA acts on them."""

    x: Tensor
    told: Tensor
    angles: Tensor
    changed: bool


def lora_tensors(rank: int = 3, seed: int = 5, width: int = 32) -> dict[str, Tensor]:
    """A LoRA in Genfocus' layout for the tiny FLUX, large enough to be seen."""
    shapes = {"x_embedder": (64, width)}
    for i in range(2):
        block = f"transformer_blocks.{i}"
        shapes[f"{block}.norm1.linear"] = (width, 6 * width)
        shapes |= {f"{block}.attn.to_{name}": (width, width) for name in ("q", "k", "v", "out.0")}
        shapes[f"{block}.ff.net.2"] = (4 * width, width)
        single = f"single_transformer_blocks.{i}"
        shapes[f"{single}.norm.linear"] = (width, 3 * width)
        shapes |= {f"{single}.attn.to_{name}": (width, width) for name in "qkv"}
        shapes[f"{single}.proj_mlp"] = (width, 4 * width)
        shapes[f"{single}.proj_out"] = (5 * width, width)
    source = models.generator(seed)
    found = {}
    for name, (inputs, outputs) in shapes.items():
        found[f"transformer.{name}.lora_A.weight"] = torch.randn(rank, inputs, generator=source) / inputs**0.5
        found[f"transformer.{name}.lora_B.weight"] = torch.randn(outputs, rank, generator=source) / rank**0.5
    return found


def pairs_of(tensors: Mapping[str, Tensor]) -> Pairs:
    names = {re.sub(r"\.lora_[AB]\.weight$", "", name) for name in tensors}
    return {
        name.removeprefix("transformer."): (
            tensors[f"{name}.lora_A.weight"],
            tensors[f"{name}.lora_B.weight"],
        )
        for name in names
    }


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    one, other = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([one * cos - other * sin, one * sin + other * cos], -1).flatten(-2)


def angles_of(places: Tensor, sizes: Sequence[int]) -> Tensor:
    """Of places ``[L, 3]``, ``[L, D / 2]``."""
    found = []
    for axis, size in enumerate(sizes):
        rates = 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        found.append(places[:, axis, None].double() * rates)
    return torch.cat(found, 1).float()


def sines(value: Tensor) -> Tensor:
    rates = torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(128) / 128)
    angles = 1000 * value[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], 1)


class Streams:
    """The tiny FLUX, and a LoRA on the streams of conditions."""

    def __init__(self, network: Any, pairs: Pairs) -> None:
        self.net, self.pairs = network, pairs

    def linear(self, module: Any, x: Tensor, changed: bool, *names: str) -> Tensor:
        """A layer whose output is that of diffusers' layers ``names``, one after another, the last one the rest."""
        out = module(x)
        for place, name in enumerate(names if changed else ()):
            if name in self.pairs:
                down, up = self.pairs[name]
                part = torch.zeros_like(out)
                first = place * self.net.hidden_size
                part[..., first : first + len(up)] = x @ down.T @ up.T
                out = out + part
        return out

    def vector(self, timestep: Tensor, guidance: Tensor, pooled: Tensor) -> Tensor:
        net = self.net
        return net.time_in(sines(timestep)) + net.guidance_in(sines(guidance)) + net.vector_in(pooled)

    def __call__(
        self,
        latent: Tensor,
        conditions: Sequence[Tensor],
        context: Tensor,
        pooled: Tensor,
        timestep: Tensor,
        guidance: float,
        columns: Sequence[int] | None = None,
        control: Tensor | None = None,
    ) -> Tensor:
        """What the network predicts for latents ``[R, C, h, w]`` of even sides; ``control`` as a ControlNet's first."""
        net, rows = self.net, len(latent)
        tall, wide = (side // 2 for side in latent.shape[-2:])
        grid = torch.cartesian_prod(torch.arange(tall), torch.arange(wide))
        places = torch.cat([torch.zeros(len(grid), 1), grid], 1)
        axes = net.params.axes_dim
        main = self.vector(timestep, torch.full((rows,), guidance), pooled)
        told = self.vector(torch.zeros(rows), torch.ones(rows), pooled)
        text = Stream(net.txt_in(context), main, angles_of(torch.zeros(context.shape[1], 3), axes), False)
        streams = []
        for index, picture in enumerate((latent, *conditions)):
            shift = torch.tensor([0.0, 0.0, (columns or [0] * len(conditions))[index - 1] if index else 0])
            packed = F.pixel_unshuffle(picture, 2).flatten(2).movedim(1, -1)
            x = self.linear(net.img_in, packed, index > 0, "x_embedder")
            streams.append(Stream(x, told if index else main, angles_of(places + shift, axes), index > 0))
        for number, block in enumerate(net.double_blocks):
            text, streams = self.double(f"transformer_blocks.{number}", block, text, streams)
            if number == 0 and control is not None:
                streams[0] = streams[0]._replace(x=streams[0].x + control)
        together = [text, *streams]
        for number, block in enumerate(net.single_blocks):
            together = self.single(f"single_transformer_blocks.{number}", block, together)
        shift, scale = net.final_layer.adaLN_modulation(main)[:, None].chunk(2, -1)
        out = net.final_layer.linear(net.final_layer.norm_final(together[1].x) * (1 + scale) + shift)
        return F.pixel_shuffle(out.movedim(-1, 1).unflatten(2, (tall, wide)), 2)

    def attention(self, made: Sequence[tuple[Tensor, Tensor, Tensor]]) -> list[Tensor]:
        """Streams ``q, k, v [R, H, L, D]``, the text and the picture first: conditions do not see each other."""
        outs = []
        for i, (q, _, _) in enumerate(made):
            seen = [j for j in range(len(made)) if i < 2 or j < 2 or i == j]
            k, v = (torch.cat([made[j][side] for j in seen], 2) for side in (1, 2))
            weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
            outs.append((weights @ v).movedim(1, 2).flatten(2))
        return outs

    def heads(self, qkv: Tensor, norm: Any, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = qkv.unflatten(-1, (3, self.net.num_heads, -1)).movedim(1, 3).unbind(1)
        q, k = norm(q, k, v)
        return rotated(q, angles), rotated(k, angles), v

    def double(
        self, name: str, block: Any, text: Stream, streams: list[Stream]
    ) -> tuple[Stream, list[Stream]]:
        everyone = [(text, "txt"), *((stream, "img") for stream in streams)]
        mods, made = [], []
        for stream, side in everyone:
            told = F.silu(stream.told)[:, None]
            mod = self.linear(
                getattr(block, f"{side}_mod").lin, told, stream.changed, f"{name}.norm1.linear"
            ).chunk(6, -1)
            attn = getattr(block, f"{side}_attn")
            x = getattr(block, f"{side}_norm1")(stream.x) * (1 + mod[1]) + mod[0]
            names = [f"{name}.attn.to_{each}" for each in "qkv"]
            made.append(
                self.heads(self.linear(attn.qkv, x, stream.changed, *names), attn.norm, stream.angles)
            )
            mods.append(mod)
        outs = []
        for (stream, side), mod, seen in zip(everyone, mods, self.attention(made), strict=True):
            x = stream.x + mod[2] * self.linear(
                getattr(block, f"{side}_attn").proj, seen, stream.changed, f"{name}.attn.to_out.0"
            )
            mlp = getattr(block, f"{side}_mlp")
            hidden = mlp[1](mlp[0](getattr(block, f"{side}_norm2")(x) * (1 + mod[4]) + mod[3]))
            x = x + mod[5] * self.linear(mlp[2], hidden, stream.changed, f"{name}.ff.net.2")
            outs.append(stream._replace(x=x))
        return outs[0], outs[1:]

    def single(self, name: str, block: Any, streams: list[Stream]) -> list[Stream]:
        mods, made, rest = [], [], []
        width = self.net.hidden_size
        for stream in streams:
            told = F.silu(stream.told)[:, None]
            mod = self.linear(block.modulation.lin, told, stream.changed, f"{name}.norm.linear").chunk(3, -1)
            x = block.pre_norm(stream.x) * (1 + mod[1]) + mod[0]
            names = [*(f"{name}.attn.to_{each}" for each in "qkv"), f"{name}.proj_mlp"]
            qkv, hidden = self.linear(block.linear1, x, stream.changed, *names).split(
                [3 * width, 4 * width], -1
            )
            made.append(self.heads(qkv, block.norm, stream.angles))
            rest.append(F.gelu(hidden, approximate="tanh"))
            mods.append(mod)
        outs = []
        for stream, mod, hidden, seen in zip(streams, mods, rest, self.attention(made), strict=True):
            out = self.linear(
                block.linear2, torch.cat([seen, hidden], -1), stream.changed, f"{name}.proj_out"
            )
            outs.append(stream._replace(x=stream.x + mod[2] * out))
        return outs
