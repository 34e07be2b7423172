"""An edit carried to full size, against path-traced pictures, and what 24 megapixels take.

    python -m tests.benchmark_carry SCENES

A scene's sharp picture and each of its blurred ones are the two ends of an edit whose truth at full size is known. Both
are reduced by 2 and by 3, as a model would see and give them; the edit is carried to the first, and compared with the
second at full size, as displayed. Plain enlargements of the reduced second are what it is compared with. "In focus" is
where the lens that made the blurred picture blurs by less than half a pixel of radius.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bokeh_ops.picture import carry
from trainer.measure.blb import find_scenes
from trainer.measure.metrics.fidelity import display_encode, psnr, ssim
from trainer.measure.metrics.weights import load_lpips

FOCUSED = 0.5  # pixels of radius
ENOUGH = 500  # pixels in focus of which a figure is made


def carried(original: Tensor, before: Tensor, after: Tensor) -> Tensor:
    rows = (each.movedim(0, -1)[None] for each in (original, before, after))
    return carry.carry_edit(*rows)[0].movedim(-1, 0)


def bicubic(original: Tensor, before: Tensor, after: Tensor) -> Tensor:
    large = F.interpolate(after[None], original.shape[1:], mode="bicubic", antialias=True)
    return large[0].clamp(0, 1)


def lanczos(original: Tensor, before: Tensor, after: Tensor) -> Tensor:
    sizes = zip(after.shape[1:], original.shape[1:], strict=True)
    sides = [carry._taps(*size, carry._lanczos, 3, after.device) for size in sizes]
    return carry._enlarged(after.movedim(0, -1), sides, slice(None)).movedim(-1, 0).clamp(0, 1)


METHODS = {"bicubic": bicubic, "Lanczos": lanczos, "carried": carried}


def compare(folders: list[Path]) -> None:
    lpips, found = load_lpips(), defaultdict(list)
    for scene in find_scenes(folders):
        linear, disparity = scene.load()
        sharp = display_encode(linear)[:, : linear.shape[1] // 6 * 6, : linear.shape[2] // 6 * 6]
        height, width = sharp.shape[1:]
        for case in scene.cases:
            soft = display_encode(case.truth(tuple(linear.shape[1:])))[:, :height, :width]
            blur = case.k * (disparity[:height, :width] - case.focus_disparity)
            focused = blur.abs() < FOCUSED
            for way, (start, end) in {"more blur": (sharp, soft), "less blur": (soft, sharp)}.items():
                for times in (2, 3):
                    before, after = (F.avg_pool2d(each[None], times)[0] for each in (start, end))
                    for name, method in METHODS.items():
                        made = method(start, before, after)
                        figures = {
                            "all": psnr(made, end),
                            "in focus": psnr(made, end, focused) if int(focused.sum()) > ENOUGH else None,
                            "elsewhere": psnr(made, end, ~focused),
                            "SSIM": ssim(made, end),
                            "LPIPS": float(lpips(made[None], end[None])) if lpips else None,
                        }
                        found[way, times, name].append(figures)
    for (way, times, name), rows in found.items():
        means = []
        for figure in rows[0]:
            values = [row[figure] for row in rows if row[figure] is not None]
            digits = 4 if figure in ("SSIM", "LPIPS") else 2
            means.append(f"{figure} {sum(values) / len(values):.{digits}f}" if values else f"{figure} -")
        print(f"{way}, reduced by {times}, {name:8} {', '.join(means)} ({len(rows)} edits)", flush=True)


def large(height: int = 4000, width: int = 6000) -> None:
    """Time and memory where all of a picture of noise changes, and where half of it does."""
    noise = torch.Generator().manual_seed(0)
    original = torch.rand(1, height, width, 3, generator=noise)
    before = F.interpolate(torch.rand(1, 3, 52, 78, generator=noise), (832, 1248), mode="bicubic")
    before = before.clamp(0, 1).movedim(1, -1)
    for share in (1.0, 0.5):
        after = before.clone()
        after[:, : int(share * 832)] = 0.8 * after[:, : int(share * 832)]
        held, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        carry.carry_edit(original, before, after)
        seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"{width} x {height}, {share:.0%} changed: {seconds:.1f} s with {torch.get_num_threads()} threads, the "
            f"process at most {peak // 1024} MB, {held // 1024} before; original and result {original.numel() >> 17}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenes", nargs="*", type=Path, help="folders of scenes; none: time and memory alone")
    given = parser.parse_args().scenes
    large()
    if given:
        compare(given)
