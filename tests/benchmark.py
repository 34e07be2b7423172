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
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROUNDS = 3
ATTENTION = {
    "SD1.5 64x64 tokens": (8, 4096, 40),
    "SD1.5 32x32 tokens": (8, 1024, 80),
    "SD1.5 16x16 tokens": (8, 256, 160),
    "FLUX 512 + 4096 tokens": (24, 4608, 128),
}
TARGETS = (1, 5)

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1] * 9 + [0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "use_linear_in_transformer": False,
    "legacy": False,
}
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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark", description=__doc__.split("\n\n")[1])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=("attention", "model"))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--targets", type=int, nargs="+", default=list(TARGETS))
    parser.add_argument("--models", choices=("sd15", "flux"), nargs="+", default=["sd15", "flux"])
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args(argv)

    from tests.host.inprocess import load_host, load_pack

    load_host(cpu=args.device == "cpu")
    from comfy.cli_args import args as host_args

    # The host's fastest attention everywhere; on a CPU its default is several times slower, which flatters us.
    host_args.use_pytorch_cross_attention = True
    pack = load_pack(cpu=args.device == "cpu")
    import torch

    bench = Bench(pack, torch.device(args.device), args.rounds)
    print(bench.machine(), flush=True)
    if args.only != "model":
        print("\n| attention | rows | literal / plain | ours / plain | literal / ours | plain, s |")
        print("|---|---|---|---|---|---|")
        for name, shape in ATTENTION.items():
            for targets in args.targets:
                bench.attention(name, shape, targets)
    if args.only != "attention":
        print(
            "\n| model step | rows | grounded / plain | adapter / plain | plain, s |\n|---|---|---|---|---|"
        )
        for kind in args.models:
            for targets in args.targets:
                bench.model(kind, targets)
    if args.out:
        args.out.write_text(json.dumps({"machine": bench.machine(), "figures": bench.figures}, indent=1))
    return 0


class Bench:
    def __init__(self, pack: Any, device: Any, rounds: int) -> None:
        import torch

        self.pack, self.device, self.rounds = pack, device, rounds
        self.dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        self.figures: list[dict[str, Any]] = []

    def machine(self) -> str:
        import torch

        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        else:
            lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
            model = next(
                (line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor()
            )
            name = f"{model}, {torch.get_num_threads()} threads"
        return f"{name}; torch {torch.__version__}, {str(self.dtype).removeprefix('torch.')}; {self.rounds} rounds"

    def time(self, variants: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
        """Seconds per variant and round; every variant runs once before, uncounted."""
        import torch

        times: dict[str, list[float]] = {name: [] for name in variants}
        for counted in range(-1, self.rounds):
            for name, run in variants.items():
                start = time.perf_counter()
                run()
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                if counted >= 0:
                    times[name].append(time.perf_counter() - start)
        return times

    @staticmethod
    def ratio(a: list[float], b: list[float]) -> float:
        return statistics.median(x / y for x, y in zip(a, b, strict=True))

    def attention(self, name: str, shape: tuple[int, int, int], targets: int) -> None:
        import torch
        from comfy.ldm.modules.attention import optimized_attention

        ops = self.pack.bokeh_ops.attention
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

        with torch.no_grad():
            times = self.time(
                {
                    "plain": lambda: host(q, k, v),
                    "literal": literal,
                    "ours": lambda: ops.grounded_attention(q, k, v, plan, host),
                }
            )
        figures = {
            "what": name,
            "rows": rows,
            "literal/plain": self.ratio(times["literal"], times["plain"]),
            "ours/plain": self.ratio(times["ours"], times["plain"]),
            "literal/ours": self.ratio(times["literal"], times["ours"]),
            "plain_s": statistics.median(times["plain"]),
        }
        self._row(figures)

    def model(self, kind: str, targets: int) -> None:
        import comfy.sampler_helpers
        import comfy.samplers
        import torch
        from comfy.model_management import load_models_gpu

        from tests import golden

        torch.manual_seed(0)
        make = golden.unet_model if kind == "sd15" else golden.flux_model
        base = make(UNET if kind == "sd15" else FLUX, self.dtype, self.device)
        with torch.no_grad():
            for parameter in base.model.diffusion_model.parameters():
                parameter.normal_(std=0.02)
        rows = self.pack.bokeh_ops.sweep.SweepRows(1, targets)
        adapter = self._adapter(kind, base)
        adapted = self.pack.bokeh_ops.host.lay.lay_adapter(base, adapter)
        sigmas = torch.tensor([1.0, 0.5, 0.0])
        grounded = self.pack.bokeh_ops.host.sampling.ground_model(adapted, rows, sigmas, 1)
        carry = self.pack.bokeh_ops.host.conditioning
        context = torch.randn(1, 77 if kind == "sd15" else 512, 768 if kind == "sd15" else 4096)
        positive = [[context, {"pooled_output": torch.randn(1, 768), "guidance": 3.5}]]
        with_k = carry.with_k(positive, rows.per_row(14.0, [float(i) for i in range(targets)]))
        pivots = carry.PivotCondition(torch.tensor(rows.pivots(), dtype=torch.float32))
        with_pivots = carry.with_conditions(with_k, bokeh_pivot=pivots)
        size, channels = (64, 4) if kind == "sd15" else (128, 16)
        x = torch.randn(rows.total, channels, size, size, device=self.device)
        sigma = torch.full((rows.total,), 0.9, device=self.device)

        def step(model: Any, conditioning: Any) -> Callable[[], Any]:
            options = dict(model.model_options, transformer_options={})
            load_models_gpu([model])
            model.pre_run()
            conds = {"positive": comfy.sampler_helpers.convert_cond(conditioning)}
            comfy.sampler_helpers.prepare_model_patcher(model, conds, options)
            conds = comfy.samplers.process_conds(model.model, x, conds, self.device, x, None, 0)

            def run() -> Any:
                model.model.current_patcher = model
                return comfy.samplers.calc_cond_batch(model.model, [conds["positive"]], x, sigma, options)

            return run

        with torch.no_grad():
            times = self.time(
                {
                    "plain": step(base, positive),
                    "grounded": step(grounded, with_pivots),
                    "adapter": step(adapted, with_k),
                }
            )
        figures = {
            "what": "SD1.5 512 x 512" if kind == "sd15" else "FLUX 1024 x 1024, 1 + 1 blocks",
            "rows": rows.total,
            "grounded/plain": self.ratio(times["grounded"], times["plain"]),
            "adapter/plain": self.ratio(times["adapter"], times["plain"]),
            "plain_s": statistics.median(times["plain"]),
        }
        self._row(figures)

    def _adapter(self, kind: str, base: Any) -> Any:
        import torch

        ops = self.pack.bokeh_ops.adapter
        widths = self.pack.bokeh_ops.host.models.describe(base).widths
        if kind == "sd15":
            layers = {
                p: ops.LayerSpec(w)
                for p, w in widths.items()
                if p.startswith("output") and p.endswith("attn2")
            }
        else:
            layers = {p: ops.LayerSpec(w, 128) for p, w in widths.items()}
        adapter = ops.BokehAdapter(ops.AdapterConfig(kind), layers).requires_grad_(False)
        for parameter in adapter.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        return adapter

    def _row(self, figures: dict[str, Any]) -> None:
        self.figures.append(figures)
        cells = [f"{v:.2f}" if isinstance(v, float) else str(v) for v in figures.values()]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
