"""Golden directories of the diffusion lens: a random SDXL with a LoRA, and what others' attention made of it."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor

from tests.golden import Golden, adapter_folder

LORA = "pytorch_lora_weights.safetensors"

_NO_VAE = object()  # latents go in and come out


class LensGolden(Golden):
    """One directory, its LoRA loaded by Load Diffusion Lens."""

    known: ClassVar[tuple[str, ...]] = (
        *(
            f"{what}_{case}"
            for case in ("base", "pisa", "pisa_no_occlusion", "lora", "lora_pisa")
            for what in ("eps", "z0")
        ),
        "layer_out",
        "layer_out_no_occlusion",
        "defocus",
        "alpha_bar",
    )
    inputs: ClassVar[tuple[str, ...]] = ("latent", "context", "y", "disparity", "K", "focus", "layer_in")

    @torch.no_grad()
    def run(self, pack: ModuleType, case: str) -> Tensor:
        settings = json.loads((self.folder / "config.json").read_text())
        lens = pack.bokeh_ops.diffusion_lens.attention
        if case == "defocus":
            asked = pack.bokeh_ops.render.Lens(self.io["K"], self.io["focus"])
            return lens.units(asked.defocus(self.io["disparity"]).abs(), 512)
        light = None
        if "pisa" in case or "layer" in case:
            light = lens.Light(
                self.io["disparity"],
                self.io["defocus"],
                "no_occlusion" not in case,
                settings["hard"],
                settings["segments"],
            )
        if "layer" in case:
            return self._layer(pack, light)
        found = self._step(pack, "lora" in case, light, settings["timestep"])
        return found[case.partition("_")[0]]

    def _layer(self, pack: ModuleType, light: Any) -> Tensor:
        """The first self-attention with PISA alone."""
        from comfy.model_management import load_models_gpu

        load_models_gpu([self.model])  # without the LoRA, which another case may have left on the weights
        path = pack.bokeh_ops.host.diffusion_lens.attach.lens_layers(self.model)[0]
        layer = self.model.model.diffusion_model.get_submodule(path)
        computed_in = self.model.model.manual_cast_dtype or layer.to_q.weight.dtype
        given = self.io["layer_in"].to(self.device, computed_in)
        side = round(given.shape[1] ** 0.5)
        heads = [
            pack.bokeh_ops.adapter.attention.split_heads(project(given), layer.heads)
            for project in (layer.to_q, layer.to_k, layer.to_v)
        ]
        out = pack.bokeh_ops.diffusion_lens.attention.pisa(*heads, light, (side, side))
        return layer.to_out(pack.bokeh_ops.adapter.attention.merge_heads(out)).float().cpu()

    def _step(self, pack: ModuleType, lora: bool, light: Any, timestep: int) -> dict[str, Tensor]:
        positive = [[self.io["context"], {"pooled_output": self.io["y"]}]]
        with adapter_folder(self.folder, "bokeh_renderers"):
            lens = pack.nodes.diffusion_lens.LoadDiffusionLens.execute(
                LORA if lora else "none", "none", 1.0, True, self.model, _NO_VAE, positive
            ).result[0]
        model = lens.model.model
        seen: list[Tensor] = []
        told = type(model).encode_adm
        # The vector is given whole, as the network takes it; the host would make it of a pooled text and sizes.
        type(model).encode_adm = lambda _self, **given: given["pooled_output"]
        hook = model.diffusion_model.register_forward_hook(lambda _m, _a, out: seen.append(out))
        try:
            latents = model.process_latent_out(self.io["latent"])
            made = pack.bokeh_ops.host.diffusion_lens.lens.one_step(
                lens.model, positive, latents, light, timestep=timestep
            )
        finally:
            hook.remove()
            type(model).encode_adm = told
        assert len(seen) == 1, f"the model ran {len(seen)} times"
        alpha_bar = 1 / (1 + model.model_sampling.sigma(torch.tensor(float(timestep))) ** 2)
        return {
            "eps": seen[0].float().cpu(),
            "z0": model.process_latent_in(made.float().cpu()),
            "alpha": alpha_bar.reshape(1).float().cpu(),
        }
