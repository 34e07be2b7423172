"""How long the lens models take, side by side with what depth-blur nodes commonly do.

    python -m tests.benchmark_render [--device cpu] [--threads 2] [--rounds 3] [--sizes 512x384,2048x1536] [--k 30]

The picture is a plane that recedes, with a few hundred discs at all depths in front of it. Rounds take turns, so
that a busy machine is busy for all; the table gives the median wall time of each and its ratio to the 32-step stack.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor

from bokeh_ops.render import Lens, render


def scene(width: int, height: int) -> tuple[Tensor, Tensor]:
    """A picture ``[1, 3, H, W]`` and its disparity in dioptres, 0.15 to 1.9."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, height, width, generator=generator)
    disparity = torch.linspace(0.15, 0.9, height)[:, None].expand(-1, width).clone()
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for near in torch.linspace(0.3, 1.9, 60).tolist():
        at, radius = (
            torch.rand(2, generator=generator),
            0.02 + 0.05 * float(torch.rand(1, generator=generator)),
        )
        inside = (y - at[0] * height) ** 2 + (x - at[1] * width) ** 2 < (radius * width) ** 2
        disparity[inside & (disparity < near)] = near
        image[:, :, inside] *= 0.5 + float(torch.rand(1, generator=generator))
    return image, disparity[None, None]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", default="512x384,2048x1536")
    parser.add_argument("--k", type=float, default=30.0)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    from trainer.evaluate.peers import find_peer  # here, as the picture above is made without it

    stack = find_peer("peer:gaussian-stack-32")
    print(f"{words.device}, {words.threads} threads, PyTorch {torch.__version__}, K = {words.k:g} pixels")
    print("| size | model | s | / stack |\n|---|---|---|---|")
    for size in words.sizes.split(","):
        width, height = (int(part) for part in size.split("x"))
        image, disparity = (plane.to(words.device) for plane in scene(width, height))
        lens = Lens(words.k, 0.9, 1.0)
        defocus = lens.defocus(disparity)[0, 0]
        runs = {
            "32-step Gaussian stack": lambda image=image, defocus=defocus: stack(image[0], defocus, 0.5),
            "classical": lambda image=image, disparity=disparity, lens=lens: render(
                image, disparity, lens, "classical"
            ),
            "layered": lambda image=image, disparity=disparity, lens=lens: render(
                image, disparity, lens, "layered"
            ),
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(words.rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if words.device.startswith("cuda"):
                    torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - start)
        base = statistics.median(seconds["32-step Gaussian stack"])
        for name, taken in seconds.items():
            middle = statistics.median(taken)
            print(f"| {size} | {name} | {middle:.2f} | {middle / base:.2f} |", flush=True)


if __name__ == "__main__":
    main()
