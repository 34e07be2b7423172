"""Golden directories of Genfocus: a small FLUX with one of its LoRAs, and what the authors' pipeline made of it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor

from tests.golden import Golden, adapter_folder, forward

LORAS = ("bokehNet.safetensors", "deblurNet.safetensors")


def lora_of(folder: Path) -> str | None:
    """The LoRA's file in a directory; None where there is none."""
    return next((name for name in LORAS if (folder / name).is_file()), None)


class GenfocusGolden(Golden):
    """One directory, its LoRA loaded by Load Genfocus."""

    known: ClassVar[tuple[str, ...]] = (
        "out_base",
        "out_conditions_no_lora",
        "out_lora",
        "out_lora_one_condition",
    )
    inputs: ClassVar[tuple[str, ...]] = (
        *(f"condition_{index}" for index in range(8)),
        "latent",
        "context",
        "y",
        "timestep",
        "guidance",
    )

    def run(self, pack: ModuleType, case: str) -> Tensor:
        io = self.io
        settings = {"pooled_output": io["y"], "guidance": float(io["guidance"][0])}
        positive, model = [[io["context"], settings]], self.model
        names = sorted(name for name in io if name.startswith("condition_"))
        if case != "out_base" and names:
            shown = names[:1] if case == "out_lora_one_condition" else names
            # The host takes what comes from a VAE and brings it into the model's scale; these are in it.
            latents = model.model.process_latent_out(torch.stack([io[name] for name in shown], 1))
            with adapter_folder(self.folder, "loras"):
                lora = pack.nodes.genfocus.LoadGenfocus.execute(
                    lora_of(self.folder), 0.0 if "no_lora" in case else 1.0
                ).result[0]
            patching = pack.bokeh_ops.host.genfocus.patch
            positive = patching.with_pictures(model, positive, latents)
            model = patching.with_branches(model, lora, len(shown))
        return forward(self, model, positive, io["timestep"])
