"""``python -m tests.parity DIR [--dtype fp32|fp16|bf16] [--device cpu]``: golden outputs through the real nodes.

Prints ``case relative_error`` per line and exits with 1 if one is above the bound of the precision, or if the directory
holds what was not tried: tensors of cases that are not known here (named), or no case at all.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

DTYPES = ("fp32", "fp16", "bf16")
# fp32: rounding alone. In half precision the host's own rounding of a small random network comes first, so the
# bound there is on top of 1.25 x the error of the plain base model.
BOUNDS = {"fp32": 1e-5, "fp16": 3e-3, "bf16": 2e-2}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="a golden directory of the SD1.5 or FLUX format"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--bound", type=float, help="largest relative error allowed (default: the precision's)"
    )
    args = parser.parse_args(argv)

    from tests.host.inprocess import load_pack

    pack = load_pack(cpu=args.device == "cpu")
    import torch

    from tests import golden

    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[args.dtype]
    bound = args.bound if args.bound is not None else BOUNDS[args.dtype]
    case = golden.load(args.folder, dtype, args.device)
    worst = 0.0
    for name in case.cases():
        error = golden.relative_error(golden.run(case, pack, name), case.io[name])
        print(f"{name} {error:.3e}")
        worst = max(worst, error) if error == error else float("inf")
        if name == "out_base" and args.dtype != "fp32" and args.bound is None:
            bound += 1.25 * error
    if case.cases():
        print(f"worst {worst:.3e} bound {bound:.2e} ({args.dtype}, {args.device})", file=sys.stderr)
    else:
        print(f"nothing tried: known are {', '.join(golden.CASES)}", file=sys.stderr)
    if case.untried():
        print(f"not tried: {', '.join(case.untried())}", file=sys.stderr)
    return 0 if case.cases() and not case.untried() and worst <= bound else 1


if __name__ == "__main__":
    sys.exit(main())
