"""What an inversion costs and how well it returns, on models of the real size with random weights.

    python -m tests.benchmark_invert [--models sd15 sdxl flux] [--steps 50] [--corrections 1 3] [--side 256]

For each model, in fp32 on the CPU: a latent is inverted and sampled again at its own K, once by the model alone (no
grounding, no residual: only the inversion brings it back), once as the nodes do it. *x a step* is the inversion's time
over that of sampling the same steps by the model alone, side by side.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests import fullsize
from tests.host.inprocess import load_host

K = 14.0
CHANNELS = {"sd15": 4, "sdxl": 4, "flux": 16}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmark_invert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", choices=tuple(CHANNELS), nargs="+", default=list(CHANNELS))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--corrections", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--side", type=int, default=256, help="of the picture, in pixels")
    args = parser.parse_args(argv)
    load_host(cpu=True)
    print(f"{torch.get_num_threads()} threads; PyTorch {torch.__version__}; {args.side} x {args.side}, fp32")
    print(
        "\n| model | steps | corrections | inversion, s | x sampling | trajectory, MB | last correction |",
        end="",
    )
    print(" returns within | with residual | process, MB |\n|---|---|---|---|---|---|---|---|---|---|")
    for kind in args.models:
        model, positive, negative = made(kind)
        for corrections in args.corrections:
            cells = measured(kind, model, positive, negative, args.side, args.steps, corrections)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(
                f"| {kind} | {args.steps} | {corrections} | " + " | ".join(cells) + f" | {peak:.0f} |",
                flush=True,
            )
        del model
    return 0


def made(kind: str) -> tuple[Any, Any, Any]:
    """A MODEL, and conditioning of random text."""
    from bokeh_ops.host.differences import flux_config
    from tests import golden

    device = torch.device("cpu")
    width, pooled = {"sd15": (768, 768), "sdxl": (2048, 1280), "flux": (4096, 768)}[kind]
    if kind == "flux":
        import comfy.model_base
        import comfy.supported_models

        settings = comfy.supported_models.Flux(flux_config(fullsize.FLUX))
        settings.unet_config["dtype"] = torch.float32
        model = golden.patcher(comfy.model_base.Flux(settings, device=device), device)
    elif kind == "sdxl":
        model = golden.sdxl_model(dict(fullsize.SDXL_UNET), torch.float32, device)
    else:
        model = golden.unet_model(dict(fullsize.SD15_UNET), torch.float32, device)
    network = model.model.diffusion_model
    shapes = {name: tuple(value.shape) for name, value in network.named_parameters()}
    weights = fullsize.random_weights(shapes, torch.float32)
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name, value in weights:
            parameters[name].copy_(value)
    source = torch.Generator().manual_seed(1)
    prompts = [
        [
            [
                torch.randn(1, 77, width, generator=source),
                {"pooled_output": torch.randn(1, pooled, generator=source)},
            ]
        ]
        for _ in range(2)
    ]
    return model, *prompts


def measured(
    kind: str, model: Any, positive: Any, negative: Any, side: int, steps: int, corrections: int
) -> list[str]:
    import comfy.samplers

    from bokeh_ops.host.sampling import grounded
    from bokeh_ops.host.sampling.invert import invert
    from bokeh_ops.host.sampling.sweep import noise_of

    latent = torch.randn(1, CHANNELS[kind], side // 8, side // 8, generator=torch.Generator().manual_seed(2))
    guider = grounded.make_guider(model, positive, negative, 1.0)
    sigmas = grounded.make_sigmas(model, "euler", "simple", steps, 1.0)
    euler = comfy.samplers.sampler_object("euler")
    start = time.perf_counter()
    trajectory = invert(guider, sigmas, {"samples": latent}, K, corrections)
    inverted = time.perf_counter() - start

    def back(levels: Tensor, residual: bool) -> float:
        sweep = grounded.Sweep(K, [K], grounding_steps=-1 if residual else 0)
        _, targets = grounded.grounded_sample(
            guider,
            euler,
            levels,
            {"samples": latent},
            noise_of(0),
            0,
            sweep,
            trajectory=trajectory,
            residual=residual,
        )
        return off(targets["samples"], latent)

    # The first steps, which are as long as the others.
    few = sigmas[:11]
    begun = time.perf_counter()
    noise = noise_of(0)({"samples": latent})
    guider.sample(noise, torch.zeros_like(latent), euler, few, seed=0)
    plain = (time.perf_counter() - begun) * steps / (len(few) - 1)
    alone, exact = back(sigmas, residual=False), back(sigmas[-6:], residual=True)
    megabytes = trajectory.latents.numel() * 4 / 1e6
    figures = (inverted, inverted / plain), (megabytes,), (trajectory.missed, alone, exact)
    return [
        f"{figure:{form}}"
        for form, group in zip((".1f", ".2f", ".1e"), figures, strict=True)
        for figure in group
    ]


def off(made: Tensor, given: Tensor) -> float:
    return float((made - given).norm() / given.norm())


if __name__ == "__main__":
    sys.exit(main())
