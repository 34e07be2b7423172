"""What Genfocus costs beside plain sampling, on FLUX of the real width with random weights, on a CPU.

    python -m tests.benchmark_genfocus [--size 1024] [--tile 512] [--rank 128] [--dtype bf16]

Each line is one call of the model, in turns: plain; with two conditions, as bokehNet has them, whole, in tiles, and
with their keys and values kept from the call before; with one, as deblurNet. The processor's time is given over that
of the plain call, and the most that tensors take beside weights and what is kept. Blocks are all alike, so a model of
19 + 38 takes as much beside its weights, and its kept keys grow with their number.

    python -m tests.benchmark_genfocus --kept [--steps 28]

How far pictures are off where the conditions' keys and values of the first step serve all others.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import Tensor

from tests import golden
from tests.benchmark import FLUX
from tests.benchmark_invert import made
from tests.memory import Peak

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
WHOLE = (19, 38)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark_genfocus", description=str(__doc__))
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--size", type=int, default=1024, help="side of the picture, in pixels")
    parser.add_argument("--tile", type=int, default=512, help="side of a tile, in pixels")
    parser.add_argument("--rank", type=int, default=128, help="of the LoRA")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kept", action="store_true", help="the error of keys that are kept")
    parser.add_argument("--steps", type=int, default=28, help="with --kept")
    args = parser.parse_args()
    from tests.host.inprocess import load_host

    load_host(cpu=True)
    torch.set_num_threads(args.threads)
    if args.kept:
        kept(args.size, args.steps, args.rank)
    else:
        costs(args.size, args.tile, args.rank, DTYPES[args.dtype])


def a_lora(model: Any, rank: int) -> Any:
    """Genfocus' layers with random factors, as large as changes that are seen."""
    import comfy.utils

    from bokeh_ops.genfocus import Kind
    from bokeh_ops.genfocus.files import _LAYER, BranchLora
    from bokeh_ops.host.architectures import recognise
    from bokeh_ops.host.genfocus.branches import _sizes
    from bokeh_ops.low_rank import Pair

    modules = dict(model.model.diffusion_model.named_modules())
    pairs = {}
    for name, entry in comfy.utils.flux_to_diffusers(_sizes(recognise(model), model)).items():
        layer = name.removesuffix(".weight")
        if not name.endswith(".weight") or not _LAYER.match(layer) or layer.endswith("ff.net.0.proj"):
            continue
        target, place = (entry[0], entry[1]) if isinstance(entry, tuple) else (entry, None)
        module = modules[target.removesuffix(".weight")]
        outputs = module.out_features if place is None else place[2]
        down = torch.randn(rank, module.in_features) / module.in_features**0.5
        pairs[layer] = Pair(down, 0.3 * torch.randn(outputs, rank) / rank**0.5)
    return BranchLora("random", Kind.BOKEH, pairs)


@torch.no_grad()
def costs(size: int, tile: int, rank: int, dtype: torch.dtype) -> None:
    """Print a line for every way."""
    import comfy.samplers

    from bokeh_ops.host.genfocus.patch import with_branches, with_pictures
    from bokeh_ops.host.sampling.grounded import make_guider

    class Timed(comfy.samplers.Sampler):
        """Asks the model as often as told; the last call counts."""

        def __init__(self, calls: int, patch: Any) -> None:
            self.calls, self.patch = calls, patch
            self.seconds, self.bytes, self.held = 0.0, 0, 0

        def sample(
            self, wrap: Any, sigmas: Tensor, extra: Any, _: Any, noise: Tensor, *__: Any, **___: Any
        ) -> Tensor:
            for _ in range(self.calls - 1):
                wrap(noise, sigmas[:1], **extra)
            with Peak() as peak:
                start = time.process_time()
                out = wrap(noise, sigmas[:1], **extra)
                self.seconds = time.process_time() - start
            self.bytes = peak.bytes
            tiles = self.patch._kept.values() if self.patch else ()
            self.held = sum(part.nbytes for tile in tiles for pair in tile.values() for part in pair)
            return out

    model, prompt = narrowed(dtype)
    places = size // 8
    x, nothing = torch.randn(1, 16, places, places), torch.zeros(1, 16, places, places)
    shown = torch.randn(1, 2, 16, places, places)
    lora = a_lora(model, rank)
    factors = sum(factor.numel() for pair in lora.pairs.values() for factor in pair)
    print(f"{size} x {size}; the LoRA has {factors / 1e6:.0f} million numbers in these blocks")
    print(
        "| way | time / plain | peak beside weights, MB | kept, all blocks, MB |\n|---|---|---|---|",
        flush=True,
    )
    plain = 0.0
    for name, count, side, keep in (
        ("plain", 0, None, False),
        ("two conditions, whole", 2, None, False),
        (f"two conditions, tiles of {tile}", 2, tile // 16, False),
        ("two conditions, whole, kept", 2, None, True),
        (f"two conditions, tiles of {tile}, kept", 2, tile // 16, True),
        ("one condition, whole", 1, None, False),
    ):
        way, positive, patch = model, prompt, None
        if count:
            way = with_branches(model, lora, count, None, side, keep)
            positive = with_pictures(model, prompt, shown[:, :count])
            patch = way.wrappers["apply_model"]["genfocus"][0]
        sampler = Timed(2 if keep else 1, patch)
        guider = make_guider(way, positive, positive, 1.0)
        guider.sample(x, nothing, sampler, torch.tensor([0.7, 0.0]), disable_pbar=True, seed=0)
        plain = plain or sampler.seconds
        held = sampler.held * sum(WHOLE) / 2
        print(
            f"| {name} | {sampler.seconds / plain:.2f} | {sampler.bytes / 1e6:.0f} | {held / 1e6:.0f} |",
            flush=True,
        )


def narrowed(dtype: torch.dtype) -> tuple[Any, Any]:
    """FLUX with 1 + 1 blocks of its real width, and a prompt of 512 tokens."""
    from comfy.ldm.modules.attention import attention_pytorch

    model, _ = made("flux")
    if dtype is not torch.float32:
        source = model.model.diffusion_model.state_dict()
        model = golden.flux_model(dict(FLUX), dtype, torch.device("cpu"))
        model.model.diffusion_model.load_state_dict(source)
    # PyTorch's attention, as on cards: the host's own for CPUs holds all weights of attention at once.
    model.model_options["transformer_options"]["optimized_attention_override"] = lambda _, *args, **kwargs: (
        attention_pytorch(*args, **kwargs)
    )
    settings = {"pooled_output": torch.randn(1, 768), "guidance": 1.0}
    return model, [[torch.randn(1, 512, 4096), settings]]


@torch.no_grad()
def kept(size: int, steps: int, rank: int) -> None:
    """Print how far a picture is off."""
    import comfy.samplers

    from bokeh_ops.host.genfocus.patch import with_branches, with_pictures
    from bokeh_ops.host.sampling.grounded import make_guider, make_sigmas

    model, prompt = narrowed(torch.float32)
    places = size // 8
    noise, shown = torch.randn(1, 16, places, places), torch.randn(1, 2, 16, places, places)
    sigmas = make_sigmas(model, "euler", "simple", steps, 1.0)
    outs: list[Tensor] = []
    spent: list[float] = []
    for keep in (False, True):
        way = with_branches(model, a_lora(model, rank), 2, keep=keep)
        positive = with_pictures(model, prompt, shown)
        torch.manual_seed(1)
        start = time.process_time()
        guider = make_guider(way, positive, positive, 1.0)
        sampler = comfy.samplers.sampler_object("euler")
        outs.append(guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=0))
        spent.append(time.process_time() - start)
    exact, quick = outs
    error = float((quick - exact).norm() / exact.norm())
    print(
        f"{steps} steps, {size} x {size}: off by {error:.1e} of its norm, in {spent[1] / spent[0]:.2f} of the time"
    )


if __name__ == "__main__":
    main()
