"""``python -m tests.photo_blur SCENE...``: K and focus found from pixels, against scenes of known K.

A scene is a folder in the layout of the BLB data set, as ``python -m tests.scenes`` traces it. Prints a line for each
picture, then medians: of all, and of those whose confidence is at least fair.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median

import numpy as np
import torch

from bokeh_ops.camera.blur import fit, gather
from bokeh_ops.camera.optics import TRAINING_WIDTH
from bokeh_ops.errors import BokehError
from trainer.exr import read_colour, read_plane

FAIR = 1 / 3


def measure(folder: Path, focused: bool) -> list[tuple[float, float, float]]:
    """Relative error of K, error of the focus in dioptres, and confidence, of each picture that is not refused.

    Args:
        folder: the scene.
        focused: whether the focus is given to within 0.1 dioptre, as a mask would.
    """
    info = json.loads((folder / "info.json").read_text())
    disparity = torch.tensor(1 / read_plane(folder / "depth.exr"))[None, None].float()
    unit = TRAINING_WIDTH / max(disparity.shape)
    found = []
    for i, k in enumerate(info["blur_parameters"]):
        for j, distance in enumerate(info["focus_distances"]):
            light = np.clip(read_colour(folder / f"bokeh_{i:02d}_{j:02d}.exr"), 0, 1)
            picture = torch.tensor(light ** (1 / 2.2)).movedim(-1, 0)[None].float()
            focus = 1 / distance
            print(f"{folder.name}  K {k * unit:5.1f}  focus {focus:5.2f}  ", end="")
            try:
                one = fit(gather(picture, disparity), focus=(focus - 0.1, focus + 0.1) if focused else None)
            except BokehError as error:
                print(f"refused: {str(error).split('.')[0]}")
                continue
            found.append((abs(one.k / (k * unit) - 1), abs(one.focus - focus), one.confidence))
            print(
                f"found K {one.k:5.1f} ({100 * (one.k / (k * unit) - 1):+4.0f} %)  focus {one.focus:5.2f} "
                f"({one.focus - focus:+.2f})  {one.patches:3d} patches  confidence {one.confidence:.2f}"
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.photo_blur", description=__doc__)
    parser.add_argument("scenes", nargs="+", type=Path)
    parser.add_argument("--focused", action="store_true", help="give the focus to within 0.1 dioptre")
    args = parser.parse_args()
    torch.set_num_threads(1)
    every = [one for folder in args.scenes for one in measure(folder, args.focused)]
    for name, some in (("all", every), ("fair or good", [one for one in every if one[2] >= FAIR])):
        if some:
            k, focus = median(one[0] for one in some), median(one[1] for one in some)
            print(
                f"{name}: {len(some)} pictures, median error of K {100 * k:.0f} %, of focus {focus:.3f} dioptre"
            )


if __name__ == "__main__":
    main()
