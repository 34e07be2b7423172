"""Tiny random models of both architectures and adapters for them, the same on every machine.

The adapters are built with plain ``bokeh_ops``, or with the extension's own classes where ``ops`` is
``pack.bokeh_ops.adapter.network`` (an error it raises is then of the extension's class).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import bokeh_ops.adapter.network as plain_ops
from tests import golden
from tests.fixture import fixture

FLUX = {
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "pooled_projection_dim": 8,
    "guidance_embeds": True,
    "axes_dims_rope": [4, 6, 6],
}
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "num_heads": 2,
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 12,
    "use_linear_in_transformer": False,
    "legacy": False,
}
SIZES = 6 * 256  # features of the six sizes that SDXL is told beside its prompt
SDXL = {
    **UNET,
    # As SDXL: no transformer at the full size, several blocks in one place.
    "transformer_depth": [0, 2],
    "transformer_depth_output": [0, 0, 2, 2],
    "transformer_depth_middle": 2,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": 8 + SIZES,
}
KINDS = ("sd15", "flux")
"""What the tests of the host run through; SDXL, which shares its attention with SD1.5, has tests of its own."""
CONTEXT = 12
"""Features of one prompt token, of both models."""
POOLED = 8
LATENT_CHANNELS = {"sd15": 4, "sdxl": 4, "flux": 16}

FLUX_WIDTHS = {
    **{f"double_blocks.{i}": 32 for i in range(2)},
    **{f"single_blocks.{i}": 32 for i in range(2)},
}
UNET_WIDTHS = {
    **{f"input_blocks.{i}.1.transformer_blocks.0": w for i, w in ((1, 32), (3, 64))},
    "middle_block.1.transformer_blocks.0": 64,
    **{f"output_blocks.{i}.1.transformer_blocks.0": w for i, w in ((0, 64), (1, 64), (2, 32), (3, 32))},
}


SDXL_WIDTHS = {
    f"{place}.1.transformer_blocks.{i}": 64
    for place in ("input_blocks.3", "middle_block", "output_blocks.0", "output_blocks.1")
    for i in range(2)
}
WIDTHS = {"sd15": UNET_WIDTHS, "sdxl": SDXL_WIDTHS, "flux": FLUX_WIDTHS}


@fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Import it into a test file: tiny models are many times slower on all cores of a busy machine than on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def host_model(
    kind: str, dtype: torch.dtype = torch.float32, seed: int = 0, device: torch.device | str = "cpu"
) -> Any:
    """A MODEL of the host with random weights. The host has to be loaded already."""
    make, config = {
        "sd15": (golden.unet_model, UNET),
        "sdxl": (golden.sdxl_model, SDXL),
        "flux": (golden.flux_model, FLUX),
    }[kind]
    model = make(dict(config), dtype, torch.device(device))
    source = generator(seed)
    with torch.no_grad():
        for name, weight in model.model.diffusion_model.named_parameters():
            value = torch.randn(weight.shape, generator=source)
            if weight.ndim > 1:
                value /= weight[0].numel() ** 0.5
            elif name.endswith("bias"):
                value *= 0.1
            else:  # the scale of a norm
                value = 1 + 0.1 * value
            weight.copy_(value)
    return model


def adapter(
    kind: str,
    *,
    tokens: int = 1,
    query_key: bool = True,
    lora_alpha: float | None = None,
    blocks: Iterable[str] | None = None,
    full: bool | None = None,
    zero: bool = False,
    seed: int = 1,
    ops: ModuleType = plain_ops,
) -> Any:
    """An adapter for :func:`host_model` of the same ``kind``.

    Args:
        tokens: number of bokeh tokens.
        query_key: whether there are query/key adapters (SD1.5: in every self-attention).
        lora_alpha: scale of the low-rank pairs.
        blocks: only these blocks (paths as in FLUX_WIDTHS and UNET_WIDTHS); None is all (SD1.5: the decoder's).
        full: full matrices for bokeh keys and values; None is as usual for ``kind``.
        zero: leave everything at zero that a new adapter has at zero.
    """
    widths = WIDTHS[kind]
    full = kind != "flux" if full is None else full
    chosen = list(widths) if blocks is None else list(blocks)
    rank = None if full else 4
    if kind == "flux":
        cross = {path: ops.LayerSpec(widths[path], rank) for path in chosen}
        qk = {path: ops.LayerSpec(widths[path], 3) for path in chosen}
    else:
        decoder = [p for p in chosen if blocks is not None or p.startswith("output_blocks")]
        cross = {f"{path}.attn2": ops.LayerSpec(widths[path], rank) for path in decoder}
        qk = {f"{path}.attn1": ops.LayerSpec(widths[path], 3) for path in chosen}
    config = ops.AdapterConfig(
        kind, bokeh_hidden_dim=6, bokeh_context_dim=10, tokens=tokens, lora_alpha=lora_alpha
    )
    torch.manual_seed(seed)
    made = ops.BokehAdapter(config, cross, qk if query_key else None)
    if not zero:
        source = generator(seed)
        with torch.no_grad():
            for weight in made.parameters():
                value = torch.randn(weight.shape, generator=source)
                weight.copy_(value / weight.shape[1] ** 0.5 if weight.ndim > 1 else 0.3 * value)
            for _, _, pair in made.low_rank_pairs():
                pair.up.weight.mul_(0.5)
    return made.requires_grad_(False).eval()


def conditioning(kind: str, seed: int = 0, tokens: int = 5, rows: int = 1) -> list[Any]:
    """A random prompt as a CONDITIONING."""
    settings: dict[str, Any] = {}
    if kind == "flux":
        # Times 1000, as the host takes it, this is 4096 in every precision: see golden.exact_guidance.
        settings = {"pooled_output": randn(rows, POOLED, seed=seed + 100), "guidance": 4.096}
    elif kind == "sdxl":
        settings = {"pooled_output": randn(rows, POOLED, seed=seed + 100), "width": 64, "height": 48}
    return [[randn(rows, tokens, CONTEXT, seed=seed), settings]]


def empty_latent(kind: str, pictures: int = 1, height: int = 8, width: int = 8) -> dict[str, Any]:
    return {"samples": torch.zeros(pictures, LATENT_CHANNELS[kind], height, width)}


def call(node: Any, *args: Any) -> Any:
    """The first output of one of the host's nodes, which each version has in the old or the new form."""
    if hasattr(node, "execute"):
        return node.execute(*args)[0]
    return getattr(node(), node.FUNCTION)(*args)[0]


def relative(out: Tensor, expected: Tensor) -> float:
    """``max |out - expected| / max |expected|``."""
    out, expected = out.detach().double(), expected.detach().double()
    return float((out - expected).abs().max() / expected.abs().max())


def snapshot(model: Any) -> dict[str, Tensor]:
    """Copies of all weights of a MODEL."""
    return {name: value.clone() for name, value in model.model.state_dict().items()}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8)) for name in one
    )


@torch.no_grad()
def sample(
    model: Any,
    positive: Any,
    negative: Any,
    latent: dict[str, Any],
    *,
    seed: int = 7,
    steps: int = 4,
    cfg: float = 1.0,
    sampler: str = "euler",
    scheduler: str = "normal",
    denoise: float = 1.0,
    callback: Any = None,
) -> Tensor:
    """What the host's own KSampler gives."""
    import comfy.sample

    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    return comfy.sample.sample(
        model, noise, steps, cfg, sampler, scheduler, positive, negative, samples,
        denoise=denoise, noise_mask=latent.get("noise_mask"), callback=callback, disable_pbar=True, seed=seed,
    )  # fmt: skip


class Halves:
    """A VAE without weights: eight by eight pixels to four channels, and back."""

    def __init__(self, channels: int = 4) -> None:
        self.channels = channels

    def encode(self, pixels: Tensor) -> Tensor:
        small = F.avg_pool2d(pixels.movedim(-1, 1), 8)
        return (
            torch.cat([small, small.mean(1, keepdim=True)], 1)[:, :1].repeat(1, self.channels, 1, 1) * 2 - 1
        )

    def decode(self, latents: Tensor) -> Tensor:
        return F.interpolate(latents[:, :3] / 2 + 0.5, scale_factor=8).movedim(1, -1).clamp(0, 1)


def per_row(values: Sequence[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float32)


@contextmanager
def watched(model: Any) -> Iterator[list[tuple[tuple[int, ...], list[int]]]]:
    """The shape of the batch and the chunks (0 cond, 1 uncond) of every call of the network."""
    calls: list[tuple[tuple[int, ...], list[int]]] = []

    def look(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((tuple(args[0].shape), list(kwargs["transformer_options"]["cond_or_uncond"])))

    handle = model.model.diffusion_model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def sigma_of(kind: str) -> float:
    return 0.7 if kind == "flux" else 3.0


@torch.no_grad()
def predict(
    model: Any, positive: Any, negative: Any = None, *, x: Tensor, sigma: float | None = None
) -> list[Tensor]:
    """One call of the model as the host's samplers make it: what it predicts for each of the two prompts."""
    import comfy.sampler_helpers
    import comfy.samplers

    sigma = sigma_of("flux" if x.shape[1] == 16 else "sd15") if sigma is None else sigma
    conds = {"positive": comfy.sampler_helpers.convert_cond(positive)}
    if negative is not None:
        conds["negative"] = comfy.sampler_helpers.convert_cond(negative)
    options = comfy.model_patcher.create_model_options_clone(model.model_options)
    comfy.sampler_helpers.prepare_model_patcher(model, conds, options)
    real, conds, loaded = comfy.sampler_helpers.prepare_sampling(model, x.shape, conds, options)
    try:
        model.pre_run()
        x = x.to(model.load_device)
        conds = comfy.samplers.process_conds(real, x, conds, x.device, x, None, 0)
        sigmas = torch.full((x.shape[0],), sigma, device=x.device)
        out = comfy.samplers.calc_cond_batch(real, list(conds.values()), x, sigmas, options)
    finally:
        model.cleanup()
        comfy.sampler_helpers.cleanup_models(conds, loaded)
    return [one.cpu() for one in out]


def unload() -> None:
    """Take every model off, as the host does to make room: weight patches are undone."""
    import comfy.model_management as management

    management.unload_all_models()
    # That looks at the host's own device alone, and takes "cuda" and "cuda:0" for two.
    for device in {loaded.device for loaded in management.current_loaded_models}:
        management.free_memory(1e30, device)
