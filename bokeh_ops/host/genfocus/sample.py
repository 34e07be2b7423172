"""Photographs made anew by FLUX that sees pictures beside them: what both uses of Genfocus share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor
from torch.nn import functional

from ...errors import BokehError
from ...genfocus.files import BranchLora
from ...picture.tiles import fitted
from ..differences import out_of_memory
from ..notices import say
from ..sampling.grounded import make_guider, make_sigmas
from ..sampling.preview import Progress
from .branches import changes_of
from .patch import check_prompt, is_compiled, with_branches, with_pictures

MULTIPLE = 16
"""Pixels that the sides of what FLUX sees are a multiple of."""
TILE, LEAST_TILE = 512, 256
"""Pixels along a tile, as Genfocus has it; and the smallest that is tried where memory is short."""


@dataclass(frozen=True)
class Sampling:
    """How a photograph is sampled.

    Attributes:
        model: MODEL of FLUX.1-dev.
        vae: of FLUX.
        positive: CONDITIONING.
        lora: of Genfocus.
        guidance: FLUX's distilled guidance.
        seed, steps, sampler, scheduler, denoise: as of the host's KSampler.
        side: pixels along a tile; 0: none, the picture is sampled whole.
        keep: see :func:`.patch.with_branches`.
        node_id: the node to speak through.
    """

    model: Any
    vae: Any
    positive: Any
    lora: BranchLora
    guidance: float
    seed: int
    steps: int
    sampler: str
    scheduler: str
    denoise: float = 1.0
    side: int = TILE
    keep: bool = False
    node_id: str | None = None

    @torch.no_grad()
    def __call__(
        self,
        photographs: Tensor,
        seen: Sequence[Sequence[Tensor]],
        columns: Sequence[int] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Make pictures anew, one after another, so that memory is that of one.

        Args:
            photographs: ``[B, 3, H, W]``, 0..1: what sampling starts from where ``denoise`` is below 1, and what is
                kept outside the mask.
            seen: of each photograph the pictures ``[3, H, W]``, 0..1, that the model sees.
            columns: see :func:`.patch.with_branches`.
            mask: ``[B or 1, H, W]``, 0..1, where they are made anew; None: everywhere.

        Returns:
            ``[B, 3, H, W]``, 0..1.

        Raises:
            BokehError: a VAE of another model; what applying the LoRA raises.
        """
        changes_of(self.lora, self.model)  # its faults and the prompt's are said before anything is encoded
        check_prompt(self.model, self.positive)
        batch, _, height, width = photographs.shape
        tall, wide = fitted(height, MULTIPLE), fitted(width, MULTIPLE)
        if (tall, wide) != (height, width):
            say(
                f"the picture is {width} x {height}; FLUX takes sides that are a multiple of {MULTIPLE}, so it is "
                f"sampled as {wide} x {tall}, continued at its right and lower edge, and cut again.",
                self.node_id,
            )
        if is_compiled(self.model):
            say(
                "the model is compiled (TorchCompileModel), which would leave out the photograph; it runs uncompiled "
                "here.",
                self.node_id,
            )
        sigmas = make_sigmas(self.model, self.sampler, self.scheduler, self.steps, self.denoise)
        if len(sigmas) < 2:  # denoise 0
            return photographs.clone()
        progress = Progress(self.model, len(sigmas) - 1, batch, self.node_id)
        made, way, model = [], self, self._model(seen, columns)
        noise = torch.empty(0)
        for row in range(batch):
            pictures = torch.stack([photographs[row], *seen[row]]).float().clamp(0, 1)
            latents = self._encoded(_continued(pictures, tall, wide))
            if row == 0:
                noise = comfy.sample.prepare_noise(latents[:1].expand(batch, -1, -1, -1), self.seed, None)
            masked = None if mask is None else mask[row % len(mask)]
            out, short = None, ""
            while out is None:
                try:
                    out = way._sampled(
                        model,
                        latents[:1],
                        latents[None, 1:],
                        noise[row : row + 1],
                        sigmas,
                        None if masked is None else _continued(masked[None, None].float(), tall, wide),
                        progress.of_group(row, 1),
                    )
                except Exception as error:
                    if not out_of_memory(error):
                        raise
                    short = (str(error).splitlines() or [type(error).__name__])[0]
                if (
                    out is None
                ):  # only here, as inside the handler the error still holds what the failed run held
                    comfy.model_management.soft_empty_cache()
                    way = way._smaller(short)
                    model = way._model(seen, columns)
            picture = self.vae.decode(out).movedim(-1, 1)[0, :, :height, :width].to(photographs)
            if masked is not None:
                picture = torch.lerp(photographs[row], picture, masked.to(picture))
            made.append(picture.clamp(0, 1))
        return torch.stack(made)

    def _smaller(self, short: str) -> Sampling:
        """The same in less memory.

        Raises:
            BokehError: there is no less.
        """
        if self.keep:
            say(
                f"the photograph's keys do not fit in memory ({short}); going on without reusing them.",
                self.node_id,
            )
            return replace(self, keep=False)
        if self.side == 0 or self.side > LEAST_TILE:
            side = TILE if self.side == 0 or self.side > TILE else LEAST_TILE
            say(
                f"the picture does not fit in memory ({short}); going on in tiles of {side} pixels.",
                self.node_id,
            )
            return replace(self, side=side)
        raise BokehError(
            f"Tiles of {self.side} pixels do not fit in memory ({short}). Load FLUX in fp8 or as GGUF, or start "
            "ComfyUI with --lowvram."
        )

    def _encoded(self, pictures: Tensor) -> Tensor:
        latents = self.vae.encode(pictures.movedim(1, -1))
        takes = self.model.get_model_object("latent_format").latent_channels
        if latents.ndim != 4 or latents.shape[1] != takes:
            raise BokehError(
                f"The VAE makes latents {list(latents.shape)}; the model takes {takes} channels. Connect the VAE of "
                "FLUX (ae.safetensors)."
            )
        return latents

    def _model(self, seen: Sequence[Sequence[Tensor]], columns: Sequence[int] | None) -> Any:
        return with_branches(
            self.model, self.lora, len(seen[0]), columns, self.side // MULTIPLE or None, self.keep
        )

    def _sampled(
        self,
        model: Any,
        start: Tensor,
        seen: Tensor,
        noise: Tensor,
        sigmas: Tensor,
        mask: Tensor | None,
        callback: Any,
    ) -> Tensor:
        positive = [[text, {**told, "guidance": self.guidance}] for text, told in self.positive]
        positive = with_pictures(model, positive, seen)
        guider = make_guider(model, positive, positive, 1.0)
        out = guider.sample(
            noise,
            start,
            comfy.samplers.sampler_object(self.sampler),
            sigmas,
            denoise_mask=mask,
            callback=callback,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=self.seed,
        )
        return out.to(comfy.model_management.intermediate_device())


def _continued(pictures: Tensor, tall: int, wide: int) -> Tensor:
    """Pictures ``[..., H, W]`` continued to the right and below."""
    height, width = pictures.shape[-2:]
    return functional.pad(pictures, (0, wide - width, 0, tall - height), mode="replicate")
