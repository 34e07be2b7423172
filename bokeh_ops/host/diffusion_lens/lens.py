"""The diffusion lens under the common contract: picture, disparity and lens in, picture out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch
import torch.nn.functional as F
from torch import Tensor

from ...diffusion_lens import TIMESTEP
from ...diffusion_lens.attention import Light, nearness, units
from ...diffusion_lens.told import hints, start
from ...errors import BokehError
from ...picture.tiles import fitted, from_tiles, tiled
from ...render.contract import Lens, Progress, Rendered, drawn
from ..architectures import recognise
from ..sampling.grounded import make_guider
from .attach import lens_layers, with_hints, with_light

TILE = 512
"""Pixels along a tile."""
MULTIPLE = 32
"""Pixels that the sides of what the network sees are a multiple of."""


@dataclass(frozen=True, eq=False)
class DiffusionLens:
    """A lens model (:class:`~bokeh_ops.render.contract.LensModel`) that is one step of SDXL.

    Where depth is right, ``layered`` computes; this one is trained for hair, fur and leaves, where it is not.
    It draws round openings, and pictures as displayed: light is not added up in linear values but as it was trained.

    Attributes:
        model: MODEL of SDXL, with the lens's LoRA.
        vae: of SDXL, with the lens's encoder.
        positive: CONDITIONING, :data:`PROMPT`.
        occlusion: whether what stands in the way takes light out.
        layers: paths of the self-attentions with PISA; None: those of the paper.
        pixels: of the picture along one place of a latent.
        side: pixels along a tile.
        timestep: that the network is asked at.
        told: what it is told beside the picture, names of :data:`~bokeh_ops.diffusion_lens.told.TOLD`.
        notice: told what the user should know.

    Raises:
        BokehError: the model is no SDXL or lacks a layer, or the prompt is not one for it.
    """

    model: Any
    vae: Any
    positive: Any
    occlusion: bool = True
    layers: Sequence[str] | None = None
    pixels: int = 8
    side: int = TILE
    timestep: int = TIMESTEP
    told: Sequence[str] = ()
    notice: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        lens_layers(self.model, self.layers)
        width = self.model.model.model_config.unet_config["context_dim"]
        for text, told in self.positive:
            if text.shape[-1] != width or told.get("pooled_output") is None:
                raise BokehError(
                    f"The prompt has {text.shape[-1]} features a token and "
                    f"{'a' if told.get('pooled_output') is not None else 'no'} pooled text; SDXL takes {width} and a "
                    "pooled text. Encode it with SDXL's own text encoders."
                )

    @torch.no_grad()
    def __call__(
        self,
        image: Tensor,
        disparity: Tensor,
        lens: Lens,
        progress: Progress | None = None,
        tile: int | None = None,
    ) -> Rendered:
        """See :class:`~bokeh_ops.render.contract.LensModel`.

        A picture whose radii are all 0 comes back as it is. One that is smaller than a tile is rendered enlarged, as
        the network has learnt what things look like at that size. Smaller tiles are taken where memory is short.

        Raises:
            BokehError: an aperture that is not an even disc, a linear picture, one with alpha, or blur that is wider
                than a tile.
        """
        self._check(image, lens)
        defocus = lens.defocus(disparity)
        side = max(MULTIPLE, min(self.side, tile or self.side) // MULTIPLE * MULTIPLE)
        first = start(self.told, image, disparity, lens, tile)
        rows = []
        for row in range(len(image)):

            def report(done: int, total: int, row: int = row) -> None:
                if progress is not None:
                    progress(row * total + done, len(image) * total)

            if bool(defocus[row].any()):
                one = slice(row, row + 1)
                rows.append(
                    self._sized(
                        torch.cat([image[one], first[one]]), disparity[one], drawn(defocus[one]), side, report
                    )
                )
            else:
                rows.append(image[row : row + 1])
                report(1, 1)
        return Rendered(torch.cat([each.to(image) for each in rows]), defocus)

    def _check(self, image: Tensor, lens: Lens) -> None:
        if not lens.aperture.is_disc:
            raise BokehError(
                "The diffusion lens has learnt an even round opening only, no blades, kernel pictures, squeeze, cat's "
                "eye or spherical aberration. Choose the lens model 'layered' for these."
            )
        if lens.gamma == 1:
            raise BokehError(
                "The diffusion lens takes pictures as they are displayed, not linear (HDR) ones. Set transfer to sRGB, "
                "or choose another lens model."
            )
        if image.shape[1] == 4:
            raise BokehError(
                "The diffusion lens takes pictures without alpha (3 channels, or 1); this one has 4 channels. Put it "
                "on a background first, or choose the lens model 'layered'."
            )

    def _sized(
        self,
        images: Tensor,
        disparity: Tensor,
        defocus: Tensor,
        side: int,
        report: Callable[[int, int], None],
    ) -> Tensor:
        """:meth:`_one` of a picture that is enlarged where it is smaller than a tile."""
        size = images.shape[-2:]
        scale = side / max(size)
        if scale <= 1:
            return self._one(images, disparity, defocus, side, report)
        self.notice(
            f"The picture is {size[1]} x {size[0]}, smaller than the {side} pixels that the lens has learnt; it is "
            "rendered enlarged, and some detail is lost on the way."
        )
        large = [max(1, round(scale * each)) for each in size]
        maps = [
            F.interpolate(each.float(), large, mode="bilinear", align_corners=False)
            for each in (disparity, defocus)
        ]
        pictures = F.interpolate(images.float(), large, mode="bicubic", align_corners=False).clamp(0, 1)
        made = self._one(pictures, maps[0], scale * maps[1], side, report)
        return F.interpolate(made, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)

    def _one(
        self,
        images: Tensor,
        disparity: Tensor,
        defocus: Tensor,
        side: int,
        report: Callable[[int, int], None],
    ) -> Tensor:
        """One picture as drawn, ``[1, C, H, W]``.

        Args:
            images: the picture and what to start from, ``[2, C, H, W]``.
        """
        channels, height, width = images.shape[1:]
        tall, wide = fitted(height, MULTIPLE), fitted(width, MULTIPLE)
        tiles = tiled(tall // self.pixels, wide // self.pixels, side // self.pixels)
        reach = self.pixels * max(max(t.height, t.width) for t in tiles) // 2
        if float(defocus.abs().max()) > reach:
            raise BokehError(
                f"The largest blur radius is {float(defocus.abs().max()):.0f} pixels; the diffusion lens sees tiles of "
                f"{2 * reach} pixels and draws {reach} at most. Lower K, make the picture smaller, or choose the lens "
                "model 'layered'."
            )
        report(0, len(tiles) + 2)
        padded = (0, wide - width, 0, tall - height)
        shown = F.pad(images.float().clamp(0, 1).expand(-1, 3, -1, -1), padded, mode="replicate")
        latents = self.vae.encode(shown[1:].movedim(1, -1))
        takes = self.model.model.latent_format.latent_channels
        if latents.shape[1] != takes:
            raise BokehError(
                f"The VAE makes latents of {latents.shape[1]} channels; the model takes {takes}. Connect the VAE of "
                "SDXL."
            )
        report(1, len(tiles) + 2)
        maps = [F.pad(each.float(), padded, mode="replicate") for each in (nearness(disparity), defocus)]
        maps.append(shown[:1])
        done = 1

        def make(tile: Any) -> Tensor:
            nonlocal done
            near, blur, picture = (tile.of(each, self.pixels) for each in maps)
            blur = units(blur, self.pixels * max(tile.height, tile.width))
            light = Light(near, blur.abs(), self.occlusion)
            positive = self.positive
            if self.told:
                positive = with_hints(positive, hints(self.told, near, blur, picture, self.pixels))
            made = one_step(
                self.model, positive, tile.of(latents), light, self.layers, self.pixels, self.timestep
            )
            done += 1
            report(done, len(tiles) + 2)
            return made.to(latents)

        made = self.vae.decode(from_tiles(latents, tiles, make)).movedim(-1, 1)[..., :height, :width]
        report(len(tiles) + 2, len(tiles) + 2)
        return made.mean(1, keepdim=True) if channels == 1 else made


def one_step(
    model: Any,
    positive: Any,
    latents: Tensor,
    light: Light | None,
    layers: Sequence[str] | None = None,
    pixels: int = 8,
    timestep: int = TIMESTEP,
) -> Tensor:
    """What a model makes of pictures in one step from a timestep, no noise added and no guidance (eq. 1).

    The picture is taken for one with noise that is to be removed: ``z0 = (z - sqrt(1 - abar) eps(z)) / sqrt(abar)``.
    It goes through the host's sampling, so offloading, ControlNets and other patches act as always.

    Args:
        model: a MODEL.
        positive: CONDITIONING; the size of the picture is added where it says none.
        latents: LATENT samples ``[R, C, h, w]``.
        light: the scene for PISA, or None for attention as it is.
        layers: with PISA; None: those of :func:`.attach.lens_layers`.
        pixels: along one place of a latent.
        timestep: that it was trained at.

    Returns:
        LATENT samples ``[R, C, h, w]``.
    """
    patcher = model if light is None else with_light(model, light, layers)
    height, width = (pixels * side for side in latents.shape[-2:])
    sizes = recognise(patcher).architecture.picture_conditions(width, height)
    told = [[text, {**sizes, **values}] for text, values in positive]
    guider = make_guider(patcher, told, told, 1.0)
    sigma = float(patcher.get_model_object("model_sampling").sigma(torch.tensor(float(timestep))))
    own = patcher.model.process_latent_in(latents)
    # The host adds noise times sigma to the picture, and the network sees the sum over sqrt(1 + sigma^2): this is what
    # makes it see the picture itself.
    noise = own * (((1 + sigma * sigma) ** 0.5 - 1) / sigma)
    sigmas = torch.tensor([sigma, 0.0])
    sampler = comfy.samplers.sampler_object("euler")
    return guider.sample(noise, latents, sampler, sigmas, disable_pbar=True, seed=0)
