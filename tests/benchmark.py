"""``python -m tests.benchmark [--device cpu|cuda] [--only attention|model] [--out FILE]``

What grounding and adapters cost, side by side in one run: every variant in turn, several rounds, the median of the
ratios round by round (a machine whose speed drifts drifts for all of them). Sizes are SD1.5 at 512 x 512 and FLUX at
1024 x 1024; weights are random, FLUX has one double and one single block of real width.

``plain`` is the host's own attention over the same rows (torch's fused one). ``literal`` is eq. 11 as printed, through
the same attention: queries replaced and keys and values concatenated for every row.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.fullsize import SD15_UNET

ROUNDS = 3
ATTENTION = {
    "SD1.5 64x64 tokens": (8, 4096, 40),
    "SD1.5 32x32 tokens": (8, 1024, 80),
    "SD1.5 16x16 tokens": (8, 256, 160),
    "FLUX 512 + 4096 tokens": (24, 4608, 128),
}
TARGETS = (1, 5)
STEPS = {"sd15": "SD1.5 512 x 512", "flux": "FLUX 1024 x 1024, 1 + 1 blocks"}

FLUX = {
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": [16, 56, 56],
}

Variants = dict[str, Callable[[], Any]]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark", description=__doc__.split("\n\n")[1])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=("attention", "model"))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--targets", type=int, nargs="+", default=list(TARGETS))
    parser.add_argument("--models", choices=("sd15", "flux"), nargs="+", default=["sd15", "flux"])
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args(argv)

    bench = Bench(args.device)
    print(f"{machine(bench)}; {args.rounds} rounds", flush=True)
    figures: list[dict[str, Any]] = []

    def row(cells: dict[str, Any]) -> None:
        figures.append(cells)
        texts = [f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells.values()]
        print("| " + " | ".join(texts) + " |", flush=True)

    if args.only != "model":
        print("\n| attention | rows | literal / plain | ours / plain | literal / ours | plain, s |")
        print("|---|---|---|---|---|---|")
        for name, shape in ATTENTION.items():
            for targets in args.targets:
                times = bench.time(bench.attention(shape, targets), args.rounds)
                ratios = (("literal", "plain"), ("ours", "plain"), ("literal", "ours"))
                row({"what": name, "rows": 1 + targets, **compared(times, ratios)})
    if args.only != "attention":
        print(
            "\n| model step | rows | grounded / plain | adapter / plain | plain, s |\n|---|---|---|---|---|"
        )
        for kind in args.models:
            for targets in args.targets:
                times = bench.time(bench.steps(kind, targets), args.rounds)
                ratios = (("grounded", "plain"), ("adapter", "plain"))
                row({"what": STEPS[kind], "rows": 1 + targets, **compared(times, ratios)})
    if args.out:
        args.out.write_text(json.dumps({"machine": machine(bench), "figures": figures}, indent=1))
    return 0


def compared(times: dict[str, list[float]], ratios: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Medians of the ratios, round by round, and the median seconds of ``plain``."""
    found = {
        f"{a}/{b}": statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))
        for a, b in ratios
    }
    return {**found, "plain_s": statistics.median(times["plain"])}


def machine(bench: Bench) -> str:
    import torch

    if bench.device.type == "cuda":
        name = torch.cuda.get_device_name(bench.device)
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        model = next(
            (line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor()
        )
        name = f"{model}, {torch.get_num_threads()} threads"
    return f"{name}; torch {torch.__version__}, {str(bench.dtype).removeprefix('torch.')}"


class Bench:
    """What is timed, as functions of no argument that run it once.

    Args:
        device: where; the host of this process computes there too.
    """

    def __init__(self, device: str) -> None:
        import torch

        from tests import devices
        from tests.host.inprocess import load_host

        load_host(cpu=device in ("cpu", "card"))
        from comfy.cli_args import args as host_args

        # The host's fastest attention everywhere; on a CPU its default is several times slower, which flatters us.
        host_args.use_pytorch_cross_attention = True
        self.pack, self.device = devices.load_pack(device), torch.device(device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def time(self, variants: Variants, rounds: int) -> dict[str, list[float]]:
        """Seconds per variant and round; every variant runs once before, uncounted."""
        import torch

        from tests.devices import synchronise

        times: dict[str, list[float]] = {name: [] for name in variants}
        with torch.no_grad():
            for counted in range(-1, rounds):
                for name, run in variants.items():
                    start = time.perf_counter()
                    run()
                    synchronise(self.device)
                    if counted >= 0:
                        times[name].append(time.perf_counter() - start)
        return times

    def attention(self, shape: tuple[int, int, int], targets: int) -> Variants:
        """``plain``, ``literal`` and ``ours`` for one pivot: ``shape`` is heads, tokens, features of a head."""
        import torch
        from comfy.ldm.modules.attention import optimized_attention

        ops = self.pack.bokeh_ops.adapter.attention
        heads, length, features = shape
        rows = 1 + targets
        torch.manual_seed(0)
        q, k, v = (
            torch.randn(rows, heads, length, features, device=self.device, dtype=self.dtype) for _ in range(3)
        )
        plan = ops.Grounding.from_pivots([-1] + [0] * targets)

        def host(q: Any, k: Any, v: Any, mask: Any = None) -> Any:
            return optimized_attention(q, k, v, heads, mask=mask, skip_reshape=True)

        def literal() -> Any:
            both = torch.cat((k, k[:1].expand_as(k)), dim=-2)
            return host(q[:1].expand_as(q), both, torch.cat((v, v), dim=-2))

        return {
            "plain": lambda: host(q, k, v),
            "literal": literal,
            "ours": lambda: ops.grounded_attention(q, k, v, plan, host),
        }

    def steps(
        self, kind: str, targets: int, config: dict[str, Any] | None = None, side: int | None = None
    ) -> Variants:
        """``plain``, ``adapter`` and ``grounded`` (with the adapter): one call of a model with random weights.

        Args:
            kind: ``sd15`` or ``flux``.
            targets: rows beside the pivot.
            config: of the model, as :mod:`tests.golden` takes it; by default of real width.
            side: of the latents; by default 64 for SD1.5 and 128 for FLUX.
        """
        import comfy.sampler_helpers
        import comfy.samplers
        import torch
        from comfy.model_management import load_models_gpu

        from tests import golden

        torch.manual_seed(0)
        flux = kind == "flux"
        config = dict((FLUX if flux else SD15_UNET) if config is None else config)
        base = (golden.flux_model if flux else golden.unet_model)(config, self.dtype, self.device)
        base.offload_device = self.device  # where it was made, and goes from here
        with torch.no_grad():
            for parameter in base.model.diffusion_model.parameters():
                parameter.normal_(std=0.02)
        rows = self.pack.bokeh_ops.adapter.rows.SweepRows(1, targets)
        adapted = self.pack.bokeh_ops.host.adapter.apply.apply_adapter(base, self._adapter(kind, base))
        sigmas = torch.tensor([1.0, 0.5, 0.0])
        grounded = self.pack.bokeh_ops.host.sampling.grounded.ground_model(adapted, rows, sigmas, 1)
        carry = self.pack.bokeh_ops.host.sampling.conditioning
        context = torch.randn(
            1, 512 if flux else 77, config["joint_attention_dim" if flux else "context_dim"]
        )
        prompt = {"pooled_output": torch.randn(1, config.get("pooled_projection_dim", 768)), "guidance": 3.5}
        positive = [[context, prompt]]
        with_k = carry.with_k(positive, rows.per_row(14.0, [float(i) for i in range(targets)]))
        pivots = carry.PivotCondition(torch.tensor(rows.pivots(), dtype=torch.float32))
        with_pivots = carry.with_conditions(with_k, bokeh_pivot=pivots)
        side = (128 if flux else 64) if side is None else side
        x = torch.randn(rows.total, 16 if flux else 4, side, side, device=self.device)
        sigma = torch.full((rows.total,), 0.9, device=self.device)

        def step(model: Any, conditioning: Any) -> Callable[[], Any]:
            options = dict(model.model_options, transformer_options={})
            load_models_gpu([model], force_full_load=True)
            model.pre_run()
            conds = {"positive": comfy.sampler_helpers.convert_cond(conditioning)}
            comfy.sampler_helpers.prepare_model_patcher(model, conds, options)
            conds = comfy.samplers.process_conds(model.model, x, conds, self.device, x, None, 0)

            def run() -> Any:
                model.model.current_patcher = model
                return comfy.samplers.calc_cond_batch(model.model, [conds["positive"]], x, sigma, options)

            return run

        return {
            "plain": step(base, positive),
            "adapter": step(adapted, with_k),
            "grounded": step(grounded, with_pivots),
        }

    def _adapter(self, kind: str, base: Any) -> Any:
        import torch

        ops = self.pack.bokeh_ops.adapter.network
        widths = self.pack.bokeh_ops.host.architectures.recognise(base).widths
        if kind == "sd15":
            layers = {
                p: ops.LayerSpec(w)
                for p, w in widths.items()
                if p.startswith("output") and p.endswith("attn2")
            }
        else:
            layers = {p: ops.LayerSpec(w, min(w, 128)) for p, w in widths.items()}
        adapter = ops.BokehAdapter(ops.AdapterConfig(kind), layers).requires_grad_(False)
        for parameter in adapter.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        return adapter


if __name__ == "__main__":
    sys.exit(main())
