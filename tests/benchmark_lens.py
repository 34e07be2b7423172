"""What a diffusion lens costs: ``python -m tests.benchmark_lens [--size N ...] [--attention]``.

``--attention``: PISA alone, forward and backward, that looks only at what light can get to, in turns with PISA that
looks at all pairs. Otherwise the lens at SDXL's real size in a real server:

The shipped workflow with one K, on a checkpoint, a LoRA and encoder layers of the real shapes with random weights. The
first run loads the models; the second, with another K, is timed. Memory is the most that the server held.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch

from bokeh_ops.diffusion_lens.attention import SPAN, Light, pisa
from bokeh_ops.diffusion_lens.windows import Windows
from tests.host.server import ComfyServer
from tests.host.workflow import to_api
from tests.prompts import OUTPUTS, find, with_inputs

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark_lens", description=__doc__)
    parser.add_argument("--size", type=int, nargs="+", default=[512, 1024], help="sides of square pictures")
    parser.add_argument("--attention", action="store_true", help="PISA alone")
    chosen = parser.parse_args()
    if chosen.attention:
        attention()
        return
    sizes = chosen.size
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.fullsize", str(Path(folder) / "models"), "sdxl"]
        subprocess.run(command, cwd=ROOT, check=True)
        with ComfyServer(base=Path(folder)) as server:
            print("| picture | seconds | layered, seconds | most memory, GB |\n|---|---|---|---|")
            for side in sizes:
                lens, most = timed(server, side, "diffusion_lens")
                layered, _ = timed(server, side, "diffusion_lens_layered")
                print(f"| {side} x {side} | {lens:.1f} | {layered:.1f} | {most / 1e9:.1f} |", flush=True)


def attention() -> None:
    """PISA at 32 x 32 tokens and 10 heads of 64, as SDXL has it; the circles' largest radius varies."""
    rounds, count = 5, 32 * 32
    print("| radius, tokens | reach | seconds | all pairs | ratio |\n|---|---|---|---|---|")
    for tokens in (1, 3, 6):
        maps = torch.rand(2, 2, 1, 256, 256, generator=torch.Generator().manual_seed(0))
        given = [torch.randn(2, 10, count, 64, requires_grad=True) for _ in range(3)]
        spent: dict[str, list[float]] = {"near": [], "all": []}
        right, reach = Windows.of, []
        for _ in range(rounds):
            for name, times in spent.items():
                Windows.of = right if name == "near" else (lambda grid, reach: Windows(grid, grid, 0))  # type: ignore[method-assign, assignment]
                light = Light(maps[0], maps[1] * tokens * SPAN / 31)
                start = time.monotonic()
                pisa(*given, light, (32, 32)).square().sum().backward()
                times.append(time.monotonic() - start)
                reach.append(next(iter(light._known))[0].reach)
        Windows.of = right  # type: ignore[method-assign]
        near, everything = (sorted(times)[rounds // 2] for times in spent.values())
        print(
            f"| {tokens} | {max(reach)} | {near:.3f} | {everything:.3f} | {near / everything:.2f} |",
            flush=True,
        )


def timed(server: ComfyServer, side: int, output: str) -> tuple[float, float]:
    """Seconds of one K by the lens that writes ``output``, and the most bytes that the server, a child, held."""
    text = (ROOT / "workflows" / "diffusion_lens_sdxl.json").read_text(encoding="utf-8")
    prompt = with_inputs(
        to_api(json.loads(text), server.object_info()), "ImageScale", width=side, height=side
    )
    prompt = {
        node: each
        for node, each in prompt.items()
        if each["class_type"] not in OUTPUTS or each["inputs"].get("filename_prefix") == output
    }
    most, over = 0, threading.Event()

    def look() -> None:
        nonlocal most
        children = psutil.Process().children()
        while not over.wait(0.2):
            most = max(most, *(child.memory_info().rss for child in children))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    seconds = 0.0
    for k in ("12", "13"):
        prompt[find(prompt, "PrimitiveString")]["inputs"]["value"] = k
        start = time.monotonic()
        server.run(prompt)
        seconds = time.monotonic() - start
    over.set()
    watcher.join()
    return seconds, most


if __name__ == "__main__":
    main()
