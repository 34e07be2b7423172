"""``python -m tests.scenes OUT --count 3 --seed 1``: ray-traced scenes with depth of field."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import development, held
from .produce import Settings, produce

SETS = {"dev": development.KINDS, "held": held.KINDS}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.scenes", description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write scene_NNN folders into")
    parser.add_argument("--count", type=int, default=3, help="how many scenes")
    parser.add_argument("--seed", type=int, default=1, help="of the first scene, which also numbers it")
    parser.add_argument("--set", choices=SETS, default="dev", help="which kinds of geometry")
    parser.add_argument(
        "--kind", help="only this kind: " + ", ".join(k for kinds in SETS.values() for k in kinds)
    )
    parser.add_argument("--size", default="512x384", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--spp", type=int, default=256, help="rays per pixel")
    parser.add_argument("--blades", type=int, default=0, help="0 for a round aperture, else its corners")
    parser.add_argument("--rotation", type=float, default=0.0, help="of the aperture, in degrees")
    parser.add_argument("--blur", default="8,18,30", help="pixels of radius per dioptre, with commas")
    parser.add_argument("--textures", type=Path, help="folder with more photographs")
    args = parser.parse_args()
    width, height = (int(part) for part in args.size.lower().split("x"))
    blur = tuple(float(part) for part in args.blur.split(","))
    settings = Settings((width, height), args.spp, args.blades, args.rotation, blur, args.textures)
    kinds = SETS[args.set]
    if args.kind:
        kinds = {args.kind: kinds[args.kind]}
    names = list(kinds)
    for seed in range(args.seed, args.seed + args.count):
        kind = names[(seed - args.seed) % len(names)]
        folder = args.out / f"scene_{seed:03d}"
        seconds = produce(kind, kinds[kind], seed, folder, settings)
        print(f"{folder}  {kind}  {seconds:.0f} s", flush=True)


main()
