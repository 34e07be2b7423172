"""What distilling a generator of few steps costs, on models of the real size with random weights, on a CPU.

    python -m tests.benchmark_distil [sd15 sdxl] [--size 512] [--rank 64] [--dtype fp32] [--updates 1]

Updates of the recipe itself, one picture each, with gradient checkpointing and AdamW: the median of the processor's
seconds, of the fake model and of a generator of one step; a plain call of the network, of which the generator makes
one more for each step before the one that is trained; and the most memory that the process had (Linux only). Text and
latents are random numbers. Each model has a process of its own.

    python -m tests.benchmark_distil --count [--rank 64]

The bytes of weights, gradients and optimiser states at the full size, counted on the device that holds no data.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.benchmark_invert import KINDS, made
from tests.benchmark_render import forget, resident
from tests.fullsize import FLUX, SD15_UNET, SDXL_UNET

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
HEAD = "| model | weights | generator, s | fake model, s | plain call, s | a step of 1 + 5, s | most memory, GB |"
PLAIN = 1.5
"""Steps before the trained one, of four, in the mean."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark_distil", description=str(__doc__))
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("kinds", nargs="*", default=["sd15", "sdxl"], help="sd15, sdxl")
    parser.add_argument("--size", type=int, default=512, help="side of the picture, in pixels")
    parser.add_argument("--rank", type=int, default=64, help="of the LoRAs; 0: whole networks")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="fp32", help="of the frozen weights and what is computed"
    )
    parser.add_argument("--updates", type=int, default=1, help="that are measured")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--count", action="store_true", help="count bytes, of all three")
    args = parser.parse_args()
    if args.count:
        count(args.rank)
        return
    print(HEAD + "\n|" + "---|" * (HEAD.count("|") - 1), flush=True)
    for kind in args.kinds:
        given = (kind, args.size, args.rank, args.dtype, args.updates, args.threads)
        process = multiprocessing.get_context("spawn").Process(target=measure, args=given)
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"{kind}: ended with {process.exitcode}")


def random_base(kind: str, size: int, dtype: torch.dtype) -> Any:
    """A base of the real size, whose encoders give random numbers."""
    from bokeh_ops.host.architectures import named
    from trainer.frozen.model import Base, Embedding

    class Random(Base):
        text_fingerprint = image_fingerprint = "random"

        def encode_text(self, texts: Any) -> list[Any]:
            _, _, width, pooled = KINDS[kind]
            told = torch.randn(pooled) if self.architecture.pooled else None
            return [Embedding(torch.randn(77, width), told) for _ in texts]

        def encode_images(self, images: Tensor) -> Tensor:
            return torch.randn(len(images), 4, size // 8, size // 8)

        closed = opened = decode = write = None  # type: ignore[assignment]

    return Random(named(kind), made(kind, dtype)[0], "random")


def measure(kind: str, size: int, rank: int, dtype: str, updates: int, threads: int) -> None:
    """Print the line of a model."""
    from tests.host.inprocess import load_host
    from tests.host.setup import host_folder

    load_host(cpu=True)
    torch.set_num_threads(threads)
    from trainer.loop import Loop, Schedule
    from trainer.processes import Alone
    from trainer.recipes.dmd.config import Distil
    from trainer.recipes.dmd.recipe import Dmd
    from trainer.settings import parse_settings
    from trainer.toy import write_dataset

    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder) / "data", photographs=2, sharp=2)
        lines = [
            f"out: {folder}/out",
            f"base: {{architecture: {kind}, checkpoint: none}}",
            f"data: {{dataset: {folder}/data}}",
            f"comfyui: {host_folder()}",
            f"precision: {dtype}",
            "generator_steps: 1",
            "device: cpu",
            f"lora: {{rank: {rank}}}",
            "fake: {updates: 1}",
            "batch: {total: 1}",
            "samples: {every: 0, captions: 1}",
        ]
        settings = parse_settings("\n".join(lines), Distil, "benchmark").resolved()
        recipe = Dmd(settings, Path(folder), Alone(), random_base(kind, size, DTYPES[dtype]))
        recipe.prepare()
        loop = Loop(recipe, Schedule(updates, updates), Path(folder) / "out")
        forget()
        seconds: dict[str, list[float]] = {"fake": [], "generator": [], "plain": []}
        with recipe.training():
            feed = loop.feed()
            for step in range(updates):
                for turn in recipe.turns(step):
                    start = time.process_time()
                    loop._turn(turn, feed, False)
                    seconds[str(turn.kind)].append(time.process_time() - start)
            memory = resident("VmHWM")
            x, texts = torch.randn(1, *recipe.pictures.shape), recipe.texts(["a patch"])
            for _ in range(updates):
                start = time.process_time()
                with torch.no_grad():
                    recipe.roles.estimate("generator", x, recipe.levels[:1], texts)
                seconds["plain"].append(time.process_time() - start)
        own, fake, plain = (statistics.median(seconds[name]) for name in ("generator", "fake", "plain"))
        step = own + 5 * fake + 6 * PLAIN * plain
        print(
            f"| {kind} | {dtype} | {own:.1f} | {fake:.1f} | {plain:.1f} | {step:.0f} | {memory / 1e9:.1f} |",
            flush=True,
        )


def count(rank: int) -> None:
    """Print a line for every model and way: 4 bytes for each trained number, its gradient and two averages of Adam's.

    Gradients are those of one network, as they are let go of after each update. Activations come on top.
    """
    from tests.host.inprocess import load_host

    load_host(cpu=True)
    import comfy.ops
    from comfy.ldm.flux.model import Flux
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    from bokeh_ops.host.differences import flux_config
    from bokeh_ops.host.training.lora import Lora, every_layer

    whole = flux_config({**FLUX, "depth": 19, "depth_single_blocks": 38})
    print(
        f"| model | numbers, millions | LoRAs of rank {rank}, millions each | with LoRAs, GB | a process of 8, GB | "
        "whole, GB | a process of 8, GB |\n|---|---|---|---|---|---|---|"
    )
    for kind, cls, config in (
        ("sd15", UNetModel, SD15_UNET),
        ("sdxl", UNetModel, SDXL_UNET),
        ("flux", Flux, whole),
    ):
        network = cls(**config, dtype=torch.bfloat16, device="meta", operations=comfy.ops.disable_weight_init)
        numbers = sum(value.numel() for value in network.parameters())
        with torch.device("meta"):
            lora = Lora(network, every_layer(network), rank)
        own = sum(value.numel() for value in lora.parameters())
        trained = lambda number: 4 * (2 + 1 + 2 * 2) * number  # noqa: E731 (two networks, one's gradient, averages)
        frozen, small = 2 * numbers, trained(own)
        everything = 4 * numbers + trained(numbers)
        values = (frozen + small, frozen / 8 + small, everything, everything / 8)
        told = " | ".join(f"{value / 1e9:.1f}" for value in values)
        print(f"| {kind} | {numbers / 1e6:.0f} | {own / 1e6:.0f} | {told} |")


if __name__ == "__main__":
    main()
