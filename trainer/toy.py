"""A toy world to try training in: ``python -m trainer toy FOLDER``.

Pictures of 16 x 16: the background is striped, the patch in front of it stays in focus. How sharp the stripes are
says K; nothing in the caption does. The command writes a data set of this world, teaches a toy base (FLUX's network
with 0.3 million parameters) to make its pictures, at every K alike, and leaves a configuration for ``fit``.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bokeh_ops.camera.optics import k_at_width, k_from_camera
from bokeh_ops.host.architectures import named
from trainer.comfyui import start
from trainer.data import DatasetWriter, encode_sample
from trainer.data.pairs import render_set
from trainer.data.sample import Sample
from trainer.files import replace_file
from trainer.log import LOSSES, read_lines
from trainer.recipes.world import Plan, train
from trainer.seeded import generator as draws
from trainer.seeded import normal

SIDE = 16
NEAR, FAR = 2.2, 0.2
"""Dioptres of subject and background: K = 30, counted at 512 pixels, blurs the background by 1.9 of these pixels."""
K_MOST = 30.0
TOKENS = 8
"""Tokens of every prompt."""


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
    writer = DatasetWriter(folder, (SIDE, SIDE), {"made": "trainer.toy"})
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
            "f_mm": 50.0,
            "f_number": float(k_from_camera(0.05, 1.0, 1 / NEAR)) / k if k else None,
            "sensor_shown_mm": 36.0,
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


class Pictures:
    """Pictures of the world in memory, every K alike, drawn for a training of a base."""

    def __init__(self) -> None:
        self.images = pictures(192)[0].float() / 255

    def draw(self, plan: Plan, step: int) -> tuple[Tensor, list[str]]:
        chosen = draws(plan.seed, "batch", step).integers(len(self.images), size=plan.batch)
        return self.images[torch.from_numpy(chosen)], ["a patch"] * plan.batch


def train_base(toy: Any, steps: int, out: Path, seed: int = 0) -> list[float]:
    """Teach a toy (:func:`make_toy`) the world; its losses, and ``out/base.safetensors``."""
    plan = Plan(
        steps,
        lr=4e-3,
        warmup=max(1, round(0.3 * steps)),
        fall=0.7,
        ema=0.98,
        seed=seed,
        sample_every=0,
        save_every=steps,
    )
    train(toy, Pictures(), plan, out, uniform=True)
    return [line["loss"] for line in read_lines(out / LOSSES)]


def make_toy(architecture: str, seed: int = 0) -> Any:
    """A :class:`.SmallModel` with random weights that a training of the base can start from."""
    from bokeh_ops.host.small.model import SmallModel

    toy = SmallModel(
        {
            "architecture": architecture,
            "config": dict(named(architecture).toy),
            "prediction": "flow" if named(architecture).flow else "epsilon",
            "shift": None,
            "pictures": "grey",
            "tokens": TOKENS,
            "vocabulary": None,
        }
    )
    with torch.no_grad():
        for name, weight in toy.network.named_parameters():
            if weight.ndim > 1:
                weight.copy_(normal(tuple(weight.shape), seed, name) / weight[0].numel() ** 0.5)
            else:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
    return toy


def write_toy(path: Path, toy: Any) -> None:
    """Write what :func:`make_toy` made."""
    replace_file(path, toy.save)


def sharpness(images: Tensor) -> Tensor:
    """Contrast of the stripes, ``[N]``, of pictures ``[N, 16, 16, 3]``: what blur takes away, and noise hardly adds to.

    The size of the Fourier coefficient of the stripes' period, 4 pixels, in the mean over rows.
    """
    return torch.fft.rfft(images.float().mean((1, 3)), dim=1)[:, SIDE // 4].abs() / SIDE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make a toy world to try training in, some minutes on any computer: a data set of striped pictures, a base "
        "model of 0.3 million parameters that has learnt them, and a configuration for `fit`."
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder to make")


def run(arguments: argparse.Namespace) -> int:
    """Make everything that ``trainer/configs/tiny.yaml`` names, in one folder."""
    folder: Path = arguments.folder
    start(None, Path.cwd(), cpu=True)
    torch.set_num_threads(1)  # more only get in each other's way with pictures this small
    if not (folder / "data" / "dataset.json").is_file():
        write_dataset(folder / "data", photographs=96, sharp=48)
    losses = train_base(make_toy("flux"), 600, folder / "base")
    shutil.copy(Path(__file__).parent / "configs" / "tiny.yaml", folder / "tiny.yaml")
    print(f"The toy base went from a loss of {sum(losses[:20]) / 20:.2f} to {sum(losses[-20:]) / 20:.2f}.")
    print(f"Now: python -m trainer fit {folder / 'tiny.yaml'}")
    return 0
