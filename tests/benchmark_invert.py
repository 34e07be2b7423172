"""How well an inversion returns and what it costs, on models of the real width with random weights, in fp32 on a CPU.

    python -m tests.benchmark_invert [sd15 sdxl flux] [--size 64] [--steps 50] [--corrections 1 2 4]

A latent is inverted, and sampled again from the noise that was found: by the host's own sampling, which nothing but
the inversion brings back, and by a sweep at the photograph's K, along the trajectory and with its residual. The table
gives the processor's time for the inversion over that of the host's sampling; how far either ends from the latent, as
the largest difference over the largest value; and the memory that the inversion takes beyond the weights (Linux only),
the trajectory included. Each model has a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from typing import Any

import torch

from tests import golden
from tests.benchmark import FLUX
from tests.benchmark_render import forget, resident
from tests.fullsize import SD15_UNET, SDXL_UNET

K = 14.0
KINDS = {
    "sd15": (golden.unet_model, SD15_UNET, 768, 768),
    "sdxl": (golden.sdxl_model, SDXL_UNET, 2048, 1280),
    "flux": (golden.flux_model, FLUX, 4096, 768),
}
"""What makes a model, of what, and the widths of its two texts."""
HEAD = "| model | steps | corrections | inversion / sampling | return error | with residual | MB | trajectory, MB |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark_invert", description=str(__doc__))
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("kinds", nargs="*", help="sd15, sdxl, flux; all by default")
    parser.add_argument("--size", type=int, default=64, help="side of the picture, in pixels")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--corrections", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    for kind in args.kinds or KINDS:
        if kind not in KINDS:
            parser.error(f"no model {kind!r}; there are {', '.join(KINDS)}")
    print(HEAD + "\n|" + "---|" * (HEAD.count("|") - 1), flush=True)
    for kind in args.kinds or KINDS:
        given = (kind, args.size, args.steps, args.corrections, args.threads)
        process = multiprocessing.get_context("spawn").Process(target=measure, args=given)
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"{kind}: ended with {process.exitcode}")


def made(kind: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """A MODEL whose random weights keep features near 1 in size, and CONDITIONING of random text."""
    make, config, width, pooled = KINDS[kind]
    torch.manual_seed(0)
    model = make(dict(config), dtype, torch.device("cpu"))
    with torch.no_grad():
        for module in model.model.diffusion_model.modules():
            for name, value in module.named_parameters(recurse=False):
                if value.ndim > 1:
                    value.normal_(std=value[0].numel() ** -0.5)
                else:
                    value.fill_(float("Norm" in type(module).__name__ and name != "bias"))
    return model, [[torch.randn(1, 77, width), {"pooled_output": torch.randn(1, pooled)}]]


def measure(kind: str, size: int, steps: int, counts: list[int], threads: int) -> None:
    """Print a line for every number of corrections."""
    from tests.host.inprocess import load_host

    load_host(cpu=True)
    import comfy.sample
    import comfy.samplers

    from bokeh_ops.host.sampling.grounded import Sweep, make_guider, make_sigmas
    from bokeh_ops.host.sampling.invert import invert
    from bokeh_ops.host.sampling.sweep import sample_sweep

    torch.set_num_threads(threads)
    model, prompt = made(kind)
    channels = model.get_model_object("latent_format").latent_channels
    samples = model.model.process_latent_out(torch.randn(1, channels, size // 8, size // 8))
    latent, nothing = {"samples": samples}, torch.zeros_like(samples)
    way = (steps, 1.0, "euler", "simple")
    guider = make_guider(model, prompt, prompt, 1.0)
    sigmas = make_sigmas(model, "euler", "simple", steps, 1.0)
    unit = model.model.model_sampling.noise_scaling(sigmas[:1], torch.ones(1), torch.zeros(1), True)
    before = resident("VmRSS")
    for corrections in counts:
        forget()
        start = time.process_time()
        trajectory = invert(guider, sigmas, latent, K, corrections)
        inverted, peak = time.process_time() - start, resident("VmHWM") - before
        start, noise = time.process_time(), trajectory.latents[0] / unit
        again = comfy.sample.sample(model, noise, *way, prompt, prompt, nothing, disable_pbar=True, seed=0)
        sampled = time.process_time() - start
        sweep = Sweep(K, [K], grounding_steps=0)
        _, targets = sample_sweep(model, prompt, prompt, latent, 0, *way, sweep, trajectory=trajectory)
        alone, exact = (golden.relative_error(each, samples) for each in (again, targets["samples"]))
        held = trajectory.latents.numel() * trajectory.latents.element_size()
        print(
            f"| {kind} | {steps} | {corrections} | {inverted / sampled:.2f} | {alone:.1e} | {exact:.1e} | "
            f"{peak / 1e6:.0f} | {held / 1e6:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
