"""The lens models on an accelerator: do they agree with the CPU, and what do they ask of the device.

    python -m tests.gpu_render [--device cuda] [--sizes 1920x1080,3840x2160] [--guard 60] [--tiny]

Needs PyTorch, NumPy, einops and this repository alone. Prints Markdown tables: for every lens model the largest
difference to the CPU; and at every size the seconds, the kernels launched, the peak of memory and, of a cat's eye,
how often a kernel that was made before is found again. ``--tiny`` runs all of it at thumbnail sizes on a CPU.
A run that takes longer than ``--guard`` seconds is stopped and said.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from bokeh_ops.render import Aperture, Lens, LensModel, render
from bokeh_ops.render import aperture as apertures
from bokeh_ops.render.bokehme import BokehMe
from bokeh_ops.render.networks import ARNet, IUNet

from .benchmark_render import scene
from .launches import operators


class TooLong(Exception):
    """A run went over its guard."""


def networks() -> BokehMe:
    """BokehMe of the published size with random weights: what it costs does not depend on them."""
    torch.manual_seed(0)
    return BokehMe(ARNet(), IUNet())


def guarded(seconds: float) -> Callable[[int, int], None]:
    end = time.perf_counter() + seconds

    def progress(done: int, total: int) -> None:
        if time.perf_counter() > end:
            raise TooLong(f"{100 * done / max(1, total):.0f} % after {seconds:.0f} s")

    return progress


def cases() -> dict[str, tuple[str | LensModel, Lens, int]]:
    """Name, and what to render with how many channels, K in pixels at 480 wide."""
    k, focus = 16.0, 0.9
    lamp = Aperture(blades=5, rotation=10.0)
    return {
        "layered": ("layered", Lens(k, focus, "srgb"), 3),
        "layered, alpha, 5 blades": ("layered", Lens(k, focus, "srgb", lamp), 4),
        "layered, cat's eye": ("layered", Lens(k, focus, "srgb", Aperture(cats_eye=0.8)), 3),
        "layered, soap bubbles": ("layered", Lens(k, focus, 1.0, Aperture(spherical=-0.8)), 3),
        "classical": ("classical", Lens(k, focus, 2.2), 3),
        "classical, gamma 4": ("classical", Lens(k, focus, 4.0), 3),
        "classical, HDR": ("classical", Lens(k, focus, 1.0), 3),
        "classical, alpha, 5 blades": ("classical", Lens(k, focus, 2.2, lamp), 4),
        "thin_lens": ("thin_lens", Lens(k, focus, 2.2), 3),
        "thin_lens, HDR": ("thin_lens", Lens(k, focus, 1.0), 3),
        "bokehme": (networks(), Lens(k, focus, 2.2), 3),
    }


def picture(width: int, height: int, channels: int, hdr: bool) -> tuple[Tensor, Tensor]:
    image, disparity = scene(width, height)
    if hdr:
        lamps = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(1)) > 0.999
        image = image * 0.01 + 1000 * lamps
    if channels == 4:
        image = torch.cat([image, torch.linspace(0, 1, width).expand(1, 1, height, width)], 1)
    return image, disparity


def agreement(device: torch.device, width: int, height: int) -> None:
    """Every model against the CPU: largest difference relative to the value, and to the picture's white."""
    print(f"\n{width} x {height}, {device} against CPU\n")
    print("| model | largest difference | relative, where above 1e-3 |\n|---|---|---|")
    for name, (model, lens, channels) in cases().items():
        image, disparity = picture(width, height, channels, "HDR" in name)
        expected = render(image, disparity, lens, model).image
        found = render(image.to(device), disparity.to(device), lens, model).image.cpu()
        off = (found - expected).abs()
        share = (off / expected.abs().clamp_min(1e-3)).max()
        print(f"| {name} | {float(off.max()):.2e} | {float(share):.2e} |", flush=True)
    image, disparity = picture(min(width, 240), min(height, 135), 3, False)
    gradients = []
    for where in (torch.device("cpu"), device):
        x = image.to(where).clone().requires_grad_()
        k = torch.tensor(12.0, requires_grad=True)
        render(x, disparity.to(where), Lens(k, 0.9, 2.2), "thin_lens").image.square().sum().backward()
        assert x.grad is not None
        assert k.grad is not None
        gradients.append((x.grad.cpu(), k.grad))
    (a, b), (c, d) = gradients
    scale = float(a.abs().max())
    print(f"| thin_lens, gradient of the picture | {float((a - c).abs().max()):.2e} of {scale:.2e} | |")
    print(f"| thin_lens, gradient of K | {float((b - d).abs()):.2e} of {float(b.abs()):.2e} | |", flush=True)


def cost(device: torch.device, width: int, height: int, radius: float, guard: float) -> None:
    """Seconds, launches and memory of each model; ``radius`` is K, about the largest blur in pixels."""
    cuda = device.type == "cuda"
    print(f"\n{width} x {height}, K = {radius:g} px\n")
    print(
        "| model | s, first | s, again | kernels launched | operators called | peak MB |\n|---|---|---|---|---|---|"
    )
    image, disparity = (plane.to(device) for plane in scene(width, height))
    eye = Lens(radius, 0.9, "srgb", Aperture(cats_eye=0.8))
    lens, neural = Lens(radius, 0.9, 2.2), networks()
    models: dict[str, tuple[str | LensModel, Lens, int | None]] = {
        "layered": ("layered", lens, None),
        "layered, tiles of 512": ("layered", lens, 512),
        "layered, cat's eye": ("layered", eye, None),
        "classical": ("classical", lens, None),
        "classical, tiles of 256": ("classical", lens, 256),
        "thin_lens": ("thin_lens", lens, None),
        "bokehme": (neural, lens, None),
        "bokehme, tiles of 256": (neural, lens, 256),
    }
    for name, (model, lens, tile) in models.items():

        def run(lens: Lens = lens, model: str | LensModel = model, tile: int | None = tile) -> None:
            render(image, disparity, lens, model, guarded(guard), tile)
            if cuda:
                torch.cuda.synchronize()

        taken: list[float] = []
        peak = launched = called = "-"
        before = _kernels_found()
        try:
            if cuda:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated() if cuda else 0
            for _ in range(2):
                start = time.perf_counter()
                run()
                taken.append(time.perf_counter() - start)
            if cuda:
                peak = f"{(torch.cuda.max_memory_allocated() - held) / 1e6:.0f}"
            after = _kernels_found()
            called = str(sum(operators(run).values()))
            if cuda:
                launched = str(_launched(run))
        except (TooLong, torch.OutOfMemoryError) as error:
            after = _kernels_found()
            taken.append(float("nan"))
            called = f"{type(error).__name__}: {str(error)[:60]}"
        seconds = [f"{value:.2f}" for value in taken[:2]] + ["-"] * (2 - len(taken[:2]))
        print(f"| {name} | {seconds[0]} | {seconds[1]} | {launched} | {called} | {peak} |", flush=True)
        if name.endswith("cat's eye"):
            found = ", ".join(
                f"{b - a} {what}" for what, a, b in zip(("found", "made"), before, after, strict=True)
            )
            print(f"|   kernels of the two runs above | {found} | | | | |", flush=True)


def _kernels_found() -> tuple[int, int]:
    """How many kernels were found again and how many were made so far."""
    return apertures._KERNELS.found, apertures._KERNELS.made


def _launched(run: Callable[[], None]) -> int:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as record:
        run()
    return sum(event.count for event in record.key_averages() if event.device_type.name == "CUDA")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", default="1920x1080,3840x2160")
    parser.add_argument("--guard", type=float, default=60.0)
    parser.add_argument("--tiny", action="store_true")
    words = parser.parse_args()
    device = torch.device("cpu" if words.tiny else words.device)
    sizes = "96x64" if words.tiny else words.sizes
    about = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{device}, {about}, PyTorch {torch.__version__}")
    # As precise as a CPU's; PyTorch's convolutions take TF32 otherwise.
    torch.backends.cudnn.allow_tf32 = False
    agreement(device, *((96, 64) if words.tiny else (480, 270)))
    for size in sizes.split(","):
        width, height = (int(part) for part in size.split("x"))
        cost(device, width, height, 30.0 * width / 1920 if not words.tiny else 6.0, words.guard)


if __name__ == "__main__":
    main()
