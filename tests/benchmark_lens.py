"""What a diffusion lens costs at SDXL's real size in a real server: ``python -m tests.benchmark_lens [--size N]``.

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

from tests.host.server import ComfyServer
from tests.host.workflow import to_api
from tests.prompts import OUTPUTS, find, with_inputs

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark_lens", description=__doc__)
    parser.add_argument("--size", type=int, nargs="+", default=[512, 1024], help="sides of square pictures")
    sizes = parser.parse_args().size
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.fullsize", str(Path(folder) / "models"), "sdxl"]
        subprocess.run(command, cwd=ROOT, check=True)
        with ComfyServer(base=Path(folder)) as server:
            print("| picture | seconds | layered, seconds | most memory, GB |\n|---|---|---|---|")
            for side in sizes:
                lens, most = timed(server, side, "diffusion_lens")
                layered, _ = timed(server, side, "diffusion_lens_layered")
                print(f"| {side} x {side} | {lens:.1f} | {layered:.1f} | {most / 1e9:.1f} |", flush=True)


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
