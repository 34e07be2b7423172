"""How long the lens models take, side by side with what depth-blur nodes commonly do.

    python -m tests.benchmark_render [--device cpu] [--threads 2] [--rounds 3] [--sizes 512x384,2048x1536] [--k 30]

    python -m tests.benchmark_render --node [--threads 2] [--frames 8] [--sizes 1920x1080]

What the node BokehMe Render costs beyond that: memory for each frame of a video over the frame's own size (Linux
only), and seconds for a picture whose depth edges are aligned, at first and after K was changed.

The picture is a plane that recedes, with 60 discs at all depths in front of it. Rounds take turns, so that a busy
machine is busy for all; the table gives the median wall time of each and its ratio to the 32-step stack, the operators
it would call on a GPU (each is a launch) and, on Linux and a CPU, the memory it takes beyond picture and depth.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bokeh_ops.render import Aperture, Lens, render
from bokeh_ops.render.classical import TILE

from .launches import operators

STACK = "32-step Gaussian stack"


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


def resident(line: str) -> int:
    """Bytes of this process: ``VmRSS`` now, ``VmHWM`` the most since :func:`forget`."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(each.split()[1]) for each in status.splitlines() if each.startswith(line))


def forget() -> None:
    """Let ``VmHWM`` begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def rendered(image: Tensor, disparity: Tensor, k: float, edges: str) -> float:
    """Seconds that BokehMe Render takes for pictures ``[B, H, W, C]``, at its defaults."""
    from tests.host import inprocess

    node = inprocess.load_pack(cpu=True).nodes.render.BokehMeRender
    inputs: dict[str, Any] = {
        entry.id: entry.default
        for entry in node.GET_SCHEMA().inputs
        if getattr(entry, "default", None) is not None
    }
    start = time.perf_counter()
    node.execute(**inputs | {"image": image, "depth": disparity, "k": k, "edges": edges})
    return time.perf_counter() - start


def peak(width: int, height: int, k: float, edges: str, count: int, threads: int) -> int:
    """Bytes that rendering so many frames takes beyond the frames; to be asked once a process."""
    torch.set_num_threads(threads)
    image, disparity = scene(width, height)
    video = image.movedim(1, -1).repeat(count, 1, 1, 1) * torch.linspace(0.9, 1, count).view(-1, 1, 1, 1)
    depth = disparity[0].repeat(count, 1, 1)
    rendered(video[:1, :64, :64], depth[:1, :64, :64], k, edges)  # whatever is loaded only once
    forget()
    before = resident("VmRSS")
    rendered(video, depth, k, edges)
    return resident("VmHWM") - before


def draw(name: str, image: Tensor, disparity: Tensor, k: float, tile: int | None = None) -> None:
    """What a row of the table is about: :data:`STACK`, or a lens model of linear light with or without a cat's eye."""
    if name == STACK:
        from trainer.measure.peers import find_peer  # here, as the others are drawn without it

        defocus = Lens(k, 0.9, 1.0).defocus(disparity)[0, 0]
        find_peer("peer:gaussian-stack-32")(image[0], defocus, 0.5)
    else:
        model, _, eye = name.partition(", ")
        render(image, disparity, Lens(k, 0.9, 1.0, Aperture(cats_eye=0.8 * bool(eye))), model, tile=tile)


def peak_of(name: str, width: int, height: int, k: float, threads: int) -> int:
    """Bytes that drawing takes beyond picture and depth; to be asked once a process."""
    torch.set_num_threads(threads)
    draw(name, *scene(64, 48), 2.0)
    image, disparity = scene(width, height)
    forget()
    before = resident("VmRSS")
    draw(name, image, disparity, k)
    return resident("VmHWM") - before


def run_node(sizes: list[tuple[int, int]], frames: int, threads: int) -> None:
    """The two tables of the node."""
    print("| size | K | edges | MB a frame, beyond the input | / frame |\n|---|---|---|---|---|")
    for width, height in sizes:
        for k, edges in ((0.0, "as is"), (2.0, "as is"), (0.0, "aligned to the image")):
            counts = frames // 2, frames
            with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
                jobs = [(width, height, k, edges, count, threads) for count in counts]
                few, many = pool.starmap(peak, jobs, chunksize=1)
            each = (many - few) / (counts[1] - counts[0])
            own = 3 * 4 * width * height
            print(f"| {width}x{height} | {k:g} | {edges} | {each / 1e6:.0f} | {each / own:.2f} |", flush=True)
    print("\n| size | s at K 0: the edges alone | s after K became 5 | s at once at K 5 |\n|---|---|---|---|")
    for width, height in sizes:
        image, disparity = scene(width, height)
        picture, small = (
            image.movedim(1, -1),
            disparity[0, :, ::4, ::4],
        )  # soft where it is enlarged, as estimates are
        taken = [rendered(picture, small, k, "aligned to the image") for k in (0.0, 5.0)]
        brighter = picture * 1.01  # another picture, for which nothing is kept
        taken.append(rendered(brighter, small, 5.0, "aligned to the image"))
        print(f"| {width}x{height} | " + " | ".join(f"{each:.1f}" for each in taken) + " |", flush=True)


def pairs(sizes: str) -> list[tuple[int, int]]:
    """Width and height of each of ``"512x384,2048x1536"``."""
    return [(int(width), int(height)) for width, height in (size.split("x") for size in sizes.split(","))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", help="of the lens models 512x384,2048x1536, of the node 1920x1080")
    parser.add_argument("--node", action="store_true")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--k", type=float, default=30.0)
    parser.add_argument("--models", default=f"{STACK}+classical+layered+layered, cat's eye+thin_lens")
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    os.environ["MALLOC_MMAP_THRESHOLD_"] = (
        "65536"  # what is freed goes back to the system at once, where it is measured
    )
    if words.node:
        run_node(pairs(words.sizes or "1920x1080"), words.frames, words.threads)
        return
    cpu = words.device == "cpu"
    print(f"{words.device}, {words.threads} threads, PyTorch {torch.__version__}, K = {words.k:g} pixels")
    print("| size | model | s | / stack | operators | MB |\n|---|---|---|---|---|---|")
    for width, height in pairs(words.sizes or "512x384,2048x1536"):
        image, disparity = (plane.to(words.device) for plane in scene(width, height))
        seconds: dict[str, list[float]] = {name: [] for name in words.models.split("+")}
        for _ in range(words.rounds):
            for name, taken in seconds.items():
                start = time.perf_counter()
                draw(name, image, disparity, words.k)
                if not cpu:
                    torch.cuda.synchronize()
                taken.append(time.perf_counter() - start)
        base = statistics.median(seconds.get(STACK, [math.nan]))
        for name, taken in seconds.items():
            middle = statistics.median(taken)
            called = operators(lambda name=name: draw(name, image, disparity, words.k, TILE)).total()  # noqa: B023
            memory = "-"
            if cpu:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    memory = f"{pool.apply(peak_of, (name, width, height, words.k, words.threads)) / 1e6:.0f}"
            row = f"{width}x{height}", name, f"{middle:.2f}", f"{middle / base:.2f}", str(called), memory
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
