"""Model files of the real shapes with random weights, under the public models' names.

    python -m tests.fullsize FOLDER [flux]

fills FOLDER the way a user's ``models`` folder is filled (4.5 GB), so that the host's stock loaders recognise
and load what is in it. Names and shapes of the tensors are the host's own, taken from its classes; the bokeh
adapters are written tensor by tensor after the published table. What is smaller than the public file is said
where it is made.
"""

from __future__ import annotations

import importlib
import json
import sys
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

DISK_GB = 5.0
"""Disk that all the files need."""
MEMORY_GB = 9.0
"""Memory that a server needs to run the larger of the two models in fp32, as hosts do on a CPU."""

HIDDEN, RANK, CONTEXT, EMBEDDED = 3072, 128, 768, 64
"""FLUX's width; the adapters' rank, token width and hidden width, all as released."""

SD15_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "use_linear_in_transformer": False,
    "legacy": False,
}
FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": HIDDEN,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 1,  # of 19: the blocks are all alike, and 12 billion parameters do not fit a test machine
    "depth_single_blocks": 1,  # of 38
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
}
SDXL_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "num_head_channels": 64,
    "use_spatial_transformer": True,
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "context_dim": 2048,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
    "legacy": False,
}
VAE = {
    "double_z": True,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}


def main(arguments: list[str]) -> None:
    from tests.host.inprocess import load_host

    load_host(cpu=True)
    folder, kinds = Path(arguments[0]), arguments[1:] or ["sd15", "flux"]
    for kind in kinds:
        {"sd15": sd15, "sdxl": sdxl, "flux": flux}[kind](folder)


def sd15(models: Path) -> None:
    """SD1.5: one checkpoint as published (UNet, VAE, CLIP-L), and an adapter in this project's layout."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    shapes = _prefixed("model.diffusion_model.", _shapes(UNetModel, **SD15_UNET))
    shapes |= _prefixed("first_stage_model.", _vae_shapes(channels=4, quant_conv=True))
    shapes |= _prefixed("cond_stage_model.transformer.", _clip_shapes())
    shapes.pop("cond_stage_model.transformer.text_projection.weight")  # the published file has none
    _write(shapes, models / "checkpoints" / "v1-5-pruned-emaonly-fp16.safetensors")
    config = {
        "base": "sd15",
        "bokeh_hidden_dim": EMBEDDED,
        "bokeh_context_dim": CONTEXT,
        "tokens": 1,
        "k_range": 30.0,
    }
    metadata = {"format": "bokeh-adapter", "version": "1", "config": json.dumps(config)}
    _write(sd15_adapter_shapes(), models / "bokeh" / "bokeh_sd15.safetensors", torch.float32, metadata)


def sd15_adapter_shapes() -> dict[str, tuple[int, ...]]:
    """Bokeh keys and values in every cross-attention of the decoder, queries and keys in every self-attention."""
    widths = [1280] * 3 + [640] * 3 + [320] * 3
    decoder = {f"output_blocks.{i}": width for i, width in enumerate(widths, start=3)}
    encoder = {
        f"input_blocks.{i}": width
        for i, width in ((1, 320), (2, 320), (4, 640), (5, 640), (7, 1280), (8, 1280))
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for block, width in decoder.items():
        path = f"{block}.1.transformer_blocks.0.attn2"
        shapes |= {f"{path}.{name}.weight": (width, CONTEXT) for name in ("to_k_bokeh", "to_v_bokeh")}
    for block, width in {**encoder, "middle_block": 1280, **decoder}.items():
        path = f"{block}.1.transformer_blocks.0.attn1"
        shapes |= _low_rank(path, ("to_q_adp", "to_k_adp"), width, width)
    return shapes | _embedding()


def sdxl(models: Path) -> None:
    """SDXL: one checkpoint as published (UNet, VAE, CLIP-L, CLIP-G; 6.9 GB), and an adapter in its decoder."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.supported_models import SDXL

    shapes = _prefixed("model.diffusion_model.", _shapes(UNetModel, **SDXL_UNET))
    shapes |= _prefixed("first_stage_model.", _vae_shapes(channels=4, quant_conv=True))
    text = _prefixed("clip_l.transformer.", _clip_shapes())
    text |= _prefixed("clip_g.transformer.", _clip_shapes("comfy.sdxl_clip", "clip_config_bigg.json"))
    published = SDXL({}).process_clip_state_dict_for_saving(
        {name: torch.empty(shape, device="meta") for name, shape in text.items()}
    )
    shapes |= {
        name: tuple(value.shape) for name, value in published.items() if not name.endswith("position_ids")
    }
    _write(shapes, models / "checkpoints" / "sd_xl_base_1.0.safetensors")
    layers = {
        **{f"output_blocks.{i}.1.transformer_blocks.{j}": 1280 for i in range(3) for j in range(10)},
        **{f"output_blocks.{i}.1.transformer_blocks.{j}": 640 for i in range(3, 6) for j in range(2)},
    }
    adapter = {
        f"{path}.attn2.{name}.weight": (width, CONTEXT)
        for path, width in layers.items()
        for name in ("to_k_bokeh", "to_v_bokeh")
    }
    metadata = {"format": "bokeh-adapter", "version": "1", "config": json.dumps({"base": "sdxl"})}
    _write(adapter | _embedding(), models / "bokeh" / "bokeh_sdxl.safetensors", torch.float32, metadata)
    lens = models / "bokeh_renderers" / "bokehdiff"
    _write(_lora_shapes(), lens / "pytorch_lora_weights.safetensors", torch.float32)
    torch.save(dict(_weights(_encoder_shapes(), torch.float32)), lens / "vae.ckpt")


def _lora_shapes(rank: int = 8) -> dict[str, tuple[int, ...]]:
    """A diffusion lens's LoRA in the released layout: of the 162 layers the attention in the place of PISA, and two."""
    block = "down_blocks.1.attentions.0"
    attention = [
        f"{block}.transformer_blocks.{i}.attn1.{name}" for i in range(2) for name in ("to_q", "to_k", "to_v")
    ]
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in (*attention, f"{block}.proj_in"):
        shapes |= {f"{layer}.lora_A.weight": (rank, 640), f"{layer}.lora_B.weight": (640, rank)}
    convolution = "down_blocks.0.resnets.0.conv1"
    return shapes | {
        f"{convolution}.lora_A.weight": (rank, 320, 3, 3),
        f"{convolution}.lora_B.weight": (320, rank, 1, 1),
    }


def _encoder_shapes() -> dict[str, tuple[int, ...]]:
    """What a lens brings of the VAE's encoder, by diffusers' names."""
    shapes: dict[str, tuple[int, ...]] = {"conv_in.weight": (128, 3, 3, 3), "conv_in.bias": (128,)}
    for resnet in range(2):
        for conv in ("conv1", "conv2"):
            name = f"mid_block.resnets.{resnet}.{conv}"
            shapes |= {f"{name}.weight": (512, 512, 3, 3), f"{name}.bias": (512,)}
    for name in ("to_q", "to_k", "to_v", "to_out.0"):
        name = f"mid_block.attentions.0.{name}"
        shapes |= {f"{name}.weight": (512, 512), f"{name}.bias": (512,)}
    return shapes | {"conv_out.weight": (8, 512, 3, 3), "conv_out.bias": (8,)}


def flux(models: Path) -> None:
    """FLUX.1-dev at its width with one block of each kind, autoencoder, text encoders, an adapter, Genfocus' LoRAs."""
    import comfy.supported_models
    from comfy.ldm.flux.model import Flux

    from bokeh_ops.host.differences import flux_config, published_weights

    config = flux_config(FLUX)
    published = published_weights(comfy.supported_models.Flux(config), _shapes(Flux, **config))
    _write(published, models / "diffusion_models" / "flux1-dev.safetensors")
    _write(_vae_shapes(channels=16, quant_conv=False), models / "vae" / "ae.safetensors")
    _write(_clip_shapes(), models / "text_encoders" / "clip_l.safetensors")
    # T5-XXL at its width with one layer of 24: the whole is 9.5 GB. See tests/host/shallow_t5.py.
    _write(_t5_shapes(layers=1), models / "text_encoders" / "t5xxl_fp16.safetensors")
    folder = models / "bokeh" / "bokeh-diffusion-flux"
    _write(flux_adapter_shapes(), folder / "model.safetensors", torch.float32, {"format": "pt"})
    config = {
        "attn_hidden_dim": HIDDEN,
        "blocks": ["transformer_blocks.0", "single_transformer_blocks.0"],
        "bokeh_context_dim": CONTEXT,
        "bokeh_hidden_dim": EMBEDDED,
        "bokeh_input_dim": 1,
        "bokeh_scale": 1.0,
        "lora_alpha": None,
        "lora_rank": RANK,
        "lora_scale": 1.0,
        "unfreeze_k": True,
        "unfreeze_q": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("deblurNet", "bokehNet"):
        _write(genfocus_shapes(), models / "loras" / f"{name}.safetensors")


def genfocus_shapes() -> dict[str, tuple[int, ...]]:
    """A LoRA of Genfocus, for one double and one single block."""
    double, single = "transformer_blocks.0", "single_transformer_blocks.0"
    layers = {
        "x_embedder": (64, HIDDEN),
        f"{double}.norm1.linear": (HIDDEN, 6 * HIDDEN),
        **{f"{double}.attn.{name}": (HIDDEN, HIDDEN) for name in ("to_q", "to_k", "to_v", "to_out.0")},
        f"{double}.ff.net.2": (4 * HIDDEN, HIDDEN),
        f"{single}.norm.linear": (HIDDEN, 3 * HIDDEN),
        **{f"{single}.attn.{name}": (HIDDEN, HIDDEN) for name in ("to_q", "to_k", "to_v")},
        f"{single}.proj_mlp": (HIDDEN, 4 * HIDDEN),
        f"{single}.proj_out": (5 * HIDDEN, HIDDEN),
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (inputs, outputs) in layers.items():
        shapes[f"transformer.{layer}.lora_A.weight"] = (RANK, inputs)
        shapes[f"transformer.{layer}.lora_B.weight"] = (outputs, RANK)
    return shapes


def flux_adapter_shapes() -> dict[str, tuple[int, ...]]:
    """The released layout, for one double and one single block."""
    shapes: dict[str, tuple[int, ...]] = {}
    for block in range(2):
        path = f"adapter_modules.{block}"
        shapes |= _low_rank(path, ("to_k_bokeh", "to_v_bokeh"), CONTEXT, HIDDEN)
        shapes |= _low_rank(path, ("to_q_adp", "to_k_adp"), HIDDEN, HIDDEN)
    return shapes | _embedding()


def _embedding() -> dict[str, tuple[int, ...]]:
    return {
        "embedding_layer.0.weight": (EMBEDDED, 1),
        "embedding_layer.0.bias": (EMBEDDED,),
        "embedding_layer.2.weight": (CONTEXT, EMBEDDED),
        "embedding_layer.2.bias": (CONTEXT,),
    }


def _low_rank(path: str, names: tuple[str, ...], inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name in names:
        shapes[f"{path}.{name}.down.weight"] = (RANK, inputs)
        shapes[f"{path}.{name}.up.weight"] = (outputs, RANK)
    return shapes


# Shapes from the host's classes, made on the device that holds no data


def _shapes(cls: Any, *args: Any, **settings: Any) -> dict[str, tuple[int, ...]]:
    import comfy.ops

    made: nn.Module = cls(
        *args, **settings, dtype=torch.float16, device="meta", operations=comfy.ops.disable_weight_init
    )
    return {name: tuple(value.shape) for name, value in made.state_dict().items()}


def _vae_shapes(channels: int, quant_conv: bool) -> dict[str, tuple[int, ...]]:
    from comfy.ldm.modules.diffusionmodules.model import Decoder, Encoder

    shapes: dict[str, tuple[int, ...]] = {}
    with torch.device("meta"):
        for name, cls in (("encoder", Encoder), ("decoder", Decoder)):
            made = cls(**VAE, z_channels=channels)
            shapes |= {f"{name}.{key}": tuple(value.shape) for key, value in made.state_dict().items()}
    if quant_conv:
        for name, features in (("quant_conv", 2 * channels), ("post_quant_conv", channels)):
            shapes |= {f"{name}.weight": (features, features, 1, 1), f"{name}.bias": (features,)}
    return shapes


def _clip_shapes(
    module: str = "comfy.sd1_clip", file: str = "sd1_clip_config.json"
) -> dict[str, tuple[int, ...]]:
    from comfy.clip_model import CLIPTextModel

    beside = Path(str(importlib.import_module(module).__file__))
    config = json.loads(beside.with_name(file).read_text())
    return _shapes(CLIPTextModel, config)


def _t5_shapes(layers: int) -> dict[str, tuple[int, ...]]:
    import comfy.text_encoders.t5
    from comfy.text_encoders.t5 import T5

    config = json.loads(Path(comfy.text_encoders.t5.__file__).with_name("t5_config_xxl.json").read_text())
    return _shapes(T5, {**config, "num_layers": layers})


def _prefixed(prefix: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {prefix + name: shape for name, shape in shapes.items()}


# Weights


def _write(
    shapes: dict[str, tuple[int, ...]],
    path: Path,
    dtype: torch.dtype = torch.float16,
    metadata: dict[str, str] | None = None,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(_weights(shapes, dtype)), path, metadata=metadata)


_POOL = 4_000_037  # a prime, so that the rows of a matrix do not repeat


@cache
def _pool(mean: float, deviation: float, dtype: torch.dtype) -> Tensor:
    values = torch.randn(_POOL, generator=torch.Generator().manual_seed(0))
    return (mean + deviation * values).to(dtype)


def _weights(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Weights that keep features near 1 in size through any number of layers, the same on every machine.

    A pool of normal numbers is read over and over, from another place for each tensor: a thousand million
    fresh ones would take longer than the tests.
    """
    for name, shape in shapes.items():
        mean, deviation = 0.0, 0.1  # a bias
        if "norm" in name and len(shape) == 1 and not name.endswith("bias"):
            mean = 1.0
        elif "embedding.weight" in name or name == "shared.weight":
            deviation = 0.5  # rows that are looked up
        elif len(shape) > 1 and "relative_attention_bias" not in name:
            deviation = torch.Size(shape[1:]).numel() ** -0.5
        pool = _pool(mean, deviation, dtype)
        start, count = zlib.crc32(name.encode()) % _POOL, torch.Size(shape).numel()
        value = torch.empty(count, dtype=dtype)
        done = 0
        while done < count:
            piece = pool[start : start + count - done]
            value[done : done + len(piece)] = piece
            done, start = done + len(piece), 0
        yield name, value.reshape(shape)


if __name__ == "__main__":
    main(sys.argv[1:])
