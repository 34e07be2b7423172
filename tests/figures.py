"""The pictures of docs/renderer.md: ``python -m tests.figures SCENES``.

For each scene in the layout of BLB (a folder of them, or one) a JPEG ``edges_NAME.jpg``: a row for each focus at the
strongest blur, and in it the same small window of the ray-traced truth and of what each renderer makes of the same
picture, pixel by pixel, twice as large. The window is the one in which disparity jumps most, whatever the renderers
make of it: where a lens has most to do. What depth-blur nodes usually do gets the
strength that is best for the whole picture (:mod:`trainer.measure.peers`). PSNR is that of the window.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from trainer.measure.blb import Scene, find_scenes
from trainer.measure.lens import make_lens
from trainer.measure.metrics import display_encode, psnr
from trainer.measure.models import apply_model
from trainer.measure.peers import PREFIX, STRENGTHS
from trainer.measure.search import best_value
from trainer.measure.trial import INPUTS, given_as

OUT = Path(__file__).resolve().parents[1] / "docs" / "images"
MODELS = {
    "peer:gaussian-stack-32": "depth-blur nodes (stack)",
    "classical": "classical scatter",
    "layered": "layered",
}
ZOOM = 2
MOST_BYTES = 72_000
HEAD, GAP = 22, 4


def window(radius: Tensor, size: tuple[int, int]) -> tuple[int, int]:
    """Row and column of the window of a size (H, W) with most of the jumps of more than a pixel of blur radius
    ``[H, W]`` between neighbours; a jump counts for 20 pixels at most."""
    down = (radius[1:] - radius[:-1]).abs()[:, 1:]
    right = (radius[:, 1:] - radius[:, :-1]).abs()[1:]
    jump = torch.maximum(down, right)
    jump = torch.where(jump > 1, jump, 0.0).clamp(max=20)
    total = F.avg_pool2d(jump[None, None], size, stride=1)[0, 0]
    row, column = divmod(int(total.argmax()), total.shape[1])
    return row, column


def rows(scene: Scene, kind: str, size: tuple[int, int]) -> list[tuple[str, list[Tensor], list[float]]]:
    """For each focus at the strongest blur: what it is, the windows ``[3, h, w]``, truth first, and their PSNR."""
    picture, disparity = scene.load()
    given, strongest = given_as(picture, kind), max(case.k for case in scene.cases)
    top, left = window(strongest * disparity, size)
    part = (slice(None), slice(top, top + size[0]), slice(left, left + size[1]))
    found = []
    for case in (each for each in scene.cases if each.k == strongest):
        lens = make_lens(case.k, case.focus_disparity, kind == "ldr", None)
        truth = display_encode(case.truth((picture.shape[1], picture.shape[2])))

        def show(model: str, strength: float, lens=lens) -> Tensor:
            made = apply_model(model, given, disparity, lens, strength)
            return made.clamp(0, 1) if kind == "ldr" else display_encode(made)

        windows, figures = [truth[part]], []
        for model in MODELS:
            strength = 1.0
            if model.startswith(PREFIX):
                strength = best_value(
                    lambda v, m=model, s=show, t=truth: psnr(s(m, v), t), *STRENGTHS, trials=9
                )
            made = show(model, strength)[part]
            windows.append(made)
            figures.append(psnr(made, truth[part]))
        focus = f"{1 / case.focus_disparity:.2f} m" if case.focus_disparity > 0 else "infinity"
        label = f"{scene.name} {case.name}, K {case.k:g}, focus {focus}, window at x {left}, y {top}"
        print(
            f"{label}: " + ", ".join(f"{m} {v:.1f} dB" for m, v in zip(MODELS, figures, strict=True)),
            flush=True,
        )
        found.append((label, windows, figures))
    return found


def figure(found: list[tuple[str, list[Tensor], list[float]]]) -> Image.Image:
    """All rows, labelled."""
    height, width = (ZOOM * side for side in found[0][1][0].shape[1:])
    columns = 1 + len(MODELS)
    sheet = Image.new(
        "RGB", (columns * (width + GAP) - GAP, HEAD + len(found) * (height + HEAD + GAP) - GAP), "white"
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, name in enumerate(["ray traced", *MODELS.values()]):
        draw.text((column * (width + GAP) + 4, 2), name, "black", font)
    top = HEAD
    for label, windows, figures in found:
        for column, part in enumerate(windows):
            pixels = (part.permute(1, 2, 0) * 255).round().byte().numpy()
            image = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(image, (column * (width + GAP), top))
            text = (
                label.split(", window")[0].split(" ", 2)[2]
                if column == 0
                else f"{figures[column - 1]:.1f} dB"
            )
            draw.text((column * (width + GAP) + 4, top + height + 2), text, "black", font)
        top += height + HEAD + GAP
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.figures", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="SCENES")
    parser.add_argument("--out", type=Path, default=OUT, help="where to write (default: docs/images)")
    parser.add_argument("--input", choices=INPUTS, default="ldr", help="what all are given (default: 8 bit)")
    parser.add_argument("--window", default="128x96", metavar="WxH", help="pixels (default: 128x96)")
    args = parser.parse_args()
    width, height = (int(side) for side in args.window.split("x"))
    for scene in find_scenes(args.folders):
        sheet, quality = figure(rows(scene, args.input, (height, width))), 92
        while True:
            data = io.BytesIO()
            sheet.save(data, "JPEG", quality=quality, optimize=True)
            if len(data.getvalue()) <= MOST_BYTES or quality <= 50:
                break
            quality -= 2
        path = args.out / f"edges_{scene.name}.jpg"
        path.write_bytes(data.getvalue())
        print(f"Written: {path} ({len(data.getvalue()) // 1000} KB, quality {quality})", flush=True)


if __name__ == "__main__":
    main()
