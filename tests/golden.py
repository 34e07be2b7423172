"""Golden directories of the four formats, run through the real nodes on a real host model.

A directory holds a small random base model, a random adapter and the outputs that somebody else's code computed.
``flux_config.json`` marks the FLUX format, ``unet_config.json`` the SD1.5 format, ``pytorch_lora_weights.safetensors``
beside that the one of the diffusion lens (:mod:`tests.golden_lens`), Genfocus' LoRA beside FLUX that of Genfocus
(:mod:`tests.golden_genfocus`).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor

CASES = (
    "out_base",
    "out_unbounded",
    "out_scale_half",
    "out_negative",
    "out_grounded",
    "out_grounded_no_adapter",
)


INPUTS = ("latent", "context", "y", "timestep", "guidance", "K", "pivot")


@dataclass
class Golden:
    """One directory: a host MODEL, and the inputs and outputs to reproduce."""

    folder: Path
    kind: str
    model: Any
    io: dict[str, Tensor]
    device: torch.device

    known: ClassVar[tuple[str, ...]] = CASES
    """Outputs that can be tried."""
    inputs: ClassVar[tuple[str, ...]] = INPUTS

    def cases(self) -> list[str]:
        return [case for case in self.known if case in self.io]

    def untried(self) -> list[str]:
        """Tensors of ``io.safetensors`` that nothing here reads: outputs of unknown cases, or their inputs."""
        return sorted(set(self.io) - {*self.known, *self.inputs})

    def run(self, pack: ModuleType, case: str) -> Tensor:
        return run(self, pack, case)


def format_of(folder: Path) -> type[Golden]:
    """The format of a directory."""
    from tests.golden_genfocus import GenfocusGolden, lora_of
    from tests.golden_lens import LORA, LensGolden

    if lora_of(Path(folder)):
        return GenfocusGolden
    return LensGolden if (Path(folder) / LORA).is_file() else Golden


def load(folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Golden:
    """Build the host's model of a golden directory. The host has to be loaded already."""
    from bokeh_ops.host.differences import weights_for_host

    folder = Path(folder)
    where = torch.device(device)
    if (folder / "flux_config.json").is_file():
        kind, model = "flux", flux_model(json.loads((folder / "flux_config.json").read_text()), dtype, where)
    elif (folder / "unet_config.json").is_file():
        config = json.loads((folder / "unet_config.json").read_text())
        sdxl = "adm_in_channels" in config
        kind, model = "sdxl" if sdxl else "sd15", (sdxl_model if sdxl else unet_model)(config, dtype, where)
    else:
        raise FileNotFoundError(f"{folder} has neither flux_config.json nor unet_config.json")
    network = model.model.diffusion_model
    weights = weights_for_host(
        model.model.model_config, load_file(folder / "base.safetensors"), network.state_dict()
    )
    missing, unexpected = network.load_state_dict(weights, strict=False)
    assert not missing, f"base.safetensors lacks {missing[:3]}"
    assert not unexpected, f"base.safetensors has {unexpected[:3]}"
    return format_of(folder)(folder, kind, model, load_file(folder / "io.safetensors"), where)


def flux_model(config: dict[str, Any], dtype: torch.dtype, device: torch.device) -> Any:
    """A MODEL of the host's FLUX with diffusers' names of the sizes."""
    import comfy.model_base
    import comfy.supported_models

    from bokeh_ops.host.differences import flux_config

    hidden = config["attention_head_dim"] * config["num_attention_heads"]
    unet_config = {
        "image_model": "flux",
        "in_channels": config["in_channels"] // 4,
        "out_channels": config["in_channels"] // 4,
        "patch_size": 2,
        "vec_in_dim": config["pooled_projection_dim"],
        "context_in_dim": config["joint_attention_dim"],
        "hidden_size": hidden,
        "mlp_ratio": config.get("mlp_ratio", 4.0),
        "num_heads": config["num_attention_heads"],
        "depth": config["num_layers"],
        "depth_single_blocks": config["num_single_layers"],
        "axes_dim": list(config["axes_dims_rope"]),
        "theta": 10000,
        "qkv_bias": True,
        "guidance_embed": config["guidance_embeds"],
        "dtype": dtype,
    }
    settings = comfy.supported_models.Flux(flux_config(unet_config))
    settings.manual_cast_dtype = _computed_in(dtype)
    return patcher(comfy.model_base.Flux(settings, device=device), device)


def _computed_in(dtype: torch.dtype) -> torch.dtype | None:
    """What the host computes in, where that is not the weights' own type."""
    return torch.float32 if dtype.itemsize == 1 else None


def unet_model(config: dict[str, Any], dtype: torch.dtype, device: torch.device) -> Any:
    """A MODEL of the host's SD1.5 class with the UNet of ``config``."""
    import comfy.model_base
    import comfy.supported_models

    settings = comfy.supported_models.SD15({**config, "dtype": dtype})
    settings.unet_config = {**config, "dtype": dtype}
    settings.manual_cast_dtype = _computed_in(dtype)
    return patcher(comfy.model_base.BaseModel(settings, device=device), device)


def sdxl_model(config: dict[str, Any], dtype: torch.dtype, device: torch.device) -> Any:
    """A MODEL of the host's SDXL class with the UNet of ``config``."""
    import comfy.model_base
    import comfy.supported_models

    settings = comfy.supported_models.SDXL({**config, "dtype": dtype})
    settings.unet_config = {**config, "dtype": dtype}
    settings.manual_cast_dtype = _computed_in(dtype)
    return patcher(comfy.model_base.SDXL(settings, device=device), device)


def patcher(model: Any, device: torch.device) -> Any:
    import comfy.model_patcher

    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def sigma_for(golden: Golden) -> Tensor:
    """The host's noise level at which its model sees the golden timestep."""
    sampling = golden.model.model.model_sampling
    timestep = golden.io["timestep"]
    return timestep if golden.kind == "flux" else sampling.sigma(timestep)


def run(golden: Golden, pack: ModuleType, case: str) -> Tensor:
    """The diffusion model's own output for ``case``: adapter by LoadBokehAdapter, K by BokehCondition, grounding
    by what GroundedSampler uses, one call through the host's condition batching."""
    carry = pack.bokeh_ops.host.sampling.conditioning
    io = golden.io
    k = io["K"].tolist() if "K" in io else [0.0]  # a directory of another system has a base alone
    if case == "out_negative":
        k = [-30.0] * len(k)
    model = golden.model
    if case not in ("out_base", "out_grounded_no_adapter"):
        strength = 0.5 if case == "out_scale_half" else 1.0
        with adapter_folder(golden.folder):
            model = pack.nodes.adapter.LoadBokehAdapter.execute(
                model, "model.safetensors", strength, 1.0
            ).result[0]
    settings: dict[str, Any] = {}
    if "guidance" in io:
        assert (io["guidance"] == io["guidance"][0]).all(), "the host takes one guidance for all rows"
        settings["guidance"] = float(io["guidance"][0])
    if "y" in io:
        settings["pooled_output"] = io["y"]
    positive: Any = [[io["context"], settings]]
    positive, _ = pack.nodes.adapter.BokehCondition.execute(
        positive, positive, 0.0, carry.NEGATIVE_MODES[0], " ".join(map(repr, k))
    ).result
    sigma = sigma_for(golden)
    if "grounded" in case:
        pivot = int(io["pivot"][0])
        pivots = [-1.0 if row == pivot else float(pivot) for row in range(len(k))]
        sampling = pack.bokeh_ops.host.sampling.grounded
        model = sampling.ground_model(
            model, pack.bokeh_ops.adapter.rows.SweepRows(1, len(k) - 1), torch.zeros(2), 1
        )
        positive = carry.with_conditions(positive, bokeh_pivot=carry.PivotCondition(torch.tensor(pivots)))
    return forward(golden, model, positive, sigma)


@contextmanager
def adapter_folder(folder: Path, name: str = "bokeh") -> Iterator[None]:
    """``models/bokeh`` of the host, or another folder there, is ``folder`` for a while."""
    import folder_paths

    kept = folder_paths.folder_names_and_paths.get(name)
    folder_paths.folder_names_and_paths[name] = ([str(folder)], {".safetensors"})
    folder_paths.filename_list_cache.pop(name, None)
    try:
        yield
    finally:
        folder_paths.filename_list_cache.pop(name, None)
        if kept is None:
            del folder_paths.folder_names_and_paths[name]
        else:
            folder_paths.folder_names_and_paths[name] = kept


@torch.no_grad()
def forward(golden: Golden, model: Any, positive: Any, sigma: Tensor) -> Tensor:
    """One call of the model the way the host's samplers make it; returns the diffusion model's raw output."""
    import comfy.sampler_helpers
    import comfy.samplers
    from comfy.model_management import load_models_gpu

    latent = golden.io["latent"].to(golden.device)
    sigma = sigma.to(golden.device)
    # What the model's `calculate_input` will undo, so that the network sees the golden latent itself.
    x = latent if golden.kind == "flux" else latent * (sigma**2 + 1).sqrt().view(-1, 1, 1, 1)
    load_models_gpu([model])
    real = model.model
    seen: list[Tensor] = []
    handle = real.diffusion_model.register_forward_hook(
        lambda _m, _a, out: seen.append(out.detach().float().cpu())
    )
    guidance = exact_guidance(golden)
    try:
        model.pre_run()
        conds = {"positive": comfy.sampler_helpers.convert_cond(positive)}
        options = copy.deepcopy(model.model_options)
        comfy.sampler_helpers.prepare_model_patcher(model, conds, options)
        conds = comfy.samplers.process_conds(real, x, conds, golden.device, x, None, 0)
        comfy.samplers.calc_cond_batch(real, [conds["positive"]], x, sigma, options)
    finally:
        handle.remove()
        if guidance is not None:
            guidance.remove()
        model.cleanup()
        model.unpatch_model()
    assert len(seen) == 1, f"the model ran {len(seen)} times"
    return seen[0]


def exact_guidance(golden: Golden) -> Any:
    """Embed FLUX's guidance in single precision.

    In half precision the host rounds it times 1000 (3500 to 3504 in bf16) before it takes sines of it. That alone
    moves the output of a small random network by a third and would hide any error of this extension.
    """
    if golden.kind != "flux" or "guidance" not in golden.io:
        return None
    from comfy.ldm.flux.layers import timestep_embedding

    first = True

    def embed(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        nonlocal first
        if not first:  # Genfocus' conditions have a guidance of their own
            return None
        first = False
        guidance = golden.io["guidance"].to(args[0].device)
        return (timestep_embedding(guidance, args[0].shape[-1]).to(args[0].dtype),)

    return golden.model.model.diffusion_model.guidance_in.register_forward_pre_hook(embed)


def relative_error(out: Tensor, expected: Tensor) -> float:
    """``max |out - expected| / max |expected|``."""
    return float((out - expected).abs().max() / expected.abs().max())
