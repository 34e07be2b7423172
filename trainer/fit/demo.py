"""A toy world to try training in: ``python -m trainer.fit.demo FOLDER``.

Pictures of 16 x 16: the background is striped, the patch in front of it stays in focus. How sharp the stripes are
says K; nothing in the caption does. The command writes a data set of this world, teaches a toy base (FLUX's network
with 0.3 million parameters) to make its pictures, at every K alike, and leaves a configuration for ``fit``.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bokeh_ops.camera.optics import k_at_width
from trainer.data import DatasetWriter, encode_sample
from trainer.data.pairs import render_set
from trainer.data.sample import Sample

SIDE = 16
NEAR, FAR = 2.2, 0.2
"""Dioptres of subject and background: K = 30, counted at 512 pixels, blurs the background by 1.9 of these pixels."""
K_MOST = 30.0


def scene(seed: int) -> Sample:
    """A photograph that is all in focus."""
    source = np.random.default_rng([7, seed])
    stripes = ((np.arange(SIDE) + source.integers(4)) // 2 % 2) * 170 + 40
    image = np.broadcast_to(stripes[None, :, None], (SIDE, SIDE, 3))
    top, left = source.integers(2, 9, 2)
    mask = np.zeros((SIDE, SIDE), dtype=np.float32)
    mask[top : top + 5, left : left + 5] = 1
    image = np.where(mask[..., None] > 0, 128, image)
    disparity = np.where(mask > 0, NEAR, FAR).astype(np.float32)
    info = {"s1_m": 1 / NEAR}
    return Sample(f"scene{seed}", image.astype(np.uint8), disparity, mask, ("a patch",), 0.0, True, info)


def write_dataset(
    folder: Path, photographs: int = 24, sharp: int = 12, captions: Sequence[str] = ("a patch", "patch")
) -> Path:
    """A data set of ``photographs`` taken at some K each, and of ``sharp`` ones that are all in focus."""
    writer = DatasetWriter(folder, (SIDE, SIDE), {"made": "trainer.fit.demo"})
    source = np.random.default_rng(5)
    for number in range(photographs + sharp):
        sample = scene(number)
        k = float(source.uniform(0, K_MOST)) if number < photographs else 0.0
        own = float(k_at_width(k, SIDE))
        image = render_set(sample, [own])[0]
        info = {
            "captions": list(captions),
            "k": own,
            "all_in_focus": number >= photographs,
            "s1_m": 1 / NEAR,
        }
        writer.add(sample.key, encode_sample(image, sample.disparity, sample.mask, info, "png"))
    writer.finish()
    return folder


def pictures(count: int) -> tuple[Tensor, list[float]]:
    """Pictures of the world, uint8 ``[count, 16, 16, 3]``, and their K."""
    source = np.random.default_rng(11)
    ks = source.uniform(0, K_MOST, count).tolist()
    made = [render_set(scene(1000 + number), [float(k_at_width(k, SIDE))])[0] for number, k in enumerate(ks)]
    return torch.from_numpy(np.stack(made)), ks


def train_base(base: Any, steps: int, batch: int = 16, seed: int = 0) -> list[float]:
    """Teach a toy base the world, every K alike, as a diffusion model is taught; its losses."""
    from bokeh_ops.host.loading import models as loading
    from bokeh_ops.host.training import denoise
    from bokeh_ops.host.training.gradients import differentiable

    images, _ = pictures(192)
    with torch.no_grad():
        latents = base.patcher.model.process_latent_in(base.encode_images(images)).float()
    loading.on_device(base.patcher)
    network = base.patcher.model.diffusion_model.requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    source = torch.Generator().manual_seed(seed)
    embedding = base.encode_text(["a patch"])[0]
    flow = denoise.prediction(base.patcher) == "flow"
    sigmas = None if flow else denoise.discrete_sigmas(base.patcher)
    losses = []
    for _ in range(steps):
        x0 = latents[torch.randint(len(latents), (batch,), generator=source)]
        noise = torch.randn(x0.shape, generator=source)
        if sigmas is None:
            sigma = torch.rand(batch, generator=source).clamp(min=1e-3)
        else:
            sigma = sigmas[torch.randint(len(sigmas), (batch,), generator=source)]
        x = denoise.add_noise(base.patcher, x0, noise, sigma)
        context = embedding.context.expand(batch, -1, -1)
        pooled = None if embedding.pooled is None else embedding.pooled.expand(batch, -1)
        condition = denoise.conditioning(context, pooled, 1.0 if flow else None, [0.0] * batch)
        with differentiable(base.patcher):
            estimate = denoise.denoise(base.patcher, condition, x, sigma)
        weight = 1 / sigma**2 if flow else (1 + 1 / sigma**2).clamp(max=5)
        loss = (weight * (estimate - x0).square().flatten(1).mean(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    network.requires_grad_(False)
    loading.unload()
    return losses


def sharpness(images: Tensor) -> Tensor:
    """Contrast of the stripes, ``[N]``, of pictures ``[N, 16, 16, 3]``: what blur takes away, and noise hardly adds to.

    The size of the Fourier coefficient of the stripes' period, 4 pixels, in the mean over rows.
    """
    return torch.fft.rfft(images.float().mean((1, 3)), dim=1)[:, SIDE // 4].abs() / SIDE


def main(words: Sequence[str]) -> int:
    """Make everything that ``trainer/configs/tiny.yaml`` names, in one folder."""
    from bokeh_ops.host.loading.start import start_comfyui
    from trainer.fit.comfyui import find_comfyui
    from trainer.fit.small import SmallBase
    from trainer.fit.toy import make_toy, write_toy

    if len(words) != 1:
        print("Usage: python -m trainer.fit.demo FOLDER", file=sys.stderr)
        return 2
    folder = Path(words[0])
    start_comfyui(find_comfyui(None, Path.cwd()), cpu=True)
    torch.set_num_threads(1)  # more only get in each other's way with pictures this small
    write_dataset(folder / "data", photographs=96, sharp=48)
    base = folder / "base.safetensors"
    write_toy(base, make_toy("flux"))
    toy = SmallBase(base, torch.float32, "flux", "")
    losses = train_base(toy, 600)
    write_toy(base, toy.small)
    shutil.copy(Path(__file__).parents[1] / "configs" / "tiny.yaml", folder / "tiny.yaml")
    print(f"The toy base went from a loss of {sum(losses[:20]) / 20:.2f} to {sum(losses[-20:]) / 20:.2f}.")
    print(f"Now: python -m trainer fit {folder / 'tiny.yaml'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
