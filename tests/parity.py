"""``python -m tests.parity DIR [--dtype fp32|fp16|bf16|fp8] [--device cpu]``: golden outputs through the real nodes.

Prints ``case relative_error`` per line and exits with 1 if one is above the bound of the precision, or if the directory
holds what was not tried: tensors of cases that are not known here (named), or no case at all.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from math import inf, isnan
from pathlib import Path
from types import ModuleType

DTYPES = ("fp32", "fp16", "bf16", "fp8")
"""Of the weights; those in fp8 (e4m3) are computed with in fp32, as the host does."""
# fp32: rounding alone. In half precision the host's own rounding of a small random network comes first, so the
# bound there is on top of 1.25 x the error of the plain base model.
BOUNDS = {"fp32": 1e-5, "fp16": 3e-3, "bf16": 2e-2, "fp8": 3e-2}
# fp32 on another device than the outputs were computed on: a card was measured at 1.8e-5.
ELSEWHERE = 5e-5


@dataclass(frozen=True)
class Parity:
    """Relative errors by case, the largest allowed, and tensors of the directory that nothing here reads."""

    errors: dict[str, float]
    bound: float
    untried: list[str]

    @property
    def worst(self) -> float:
        """The largest error, infinite where one is not a number."""
        return max((inf if isnan(error) else error for error in self.errors.values()), default=0.0)


def compare(folder: Path, dtype: str, device: str, pack: ModuleType, bound: float | None = None) -> Parity:
    """The outputs of a golden directory beside those of the nodes; ``bound`` is by default the precision's."""
    import torch

    from tests import golden

    number = {
        "fp32": torch.float32,
        "fp16": torch.float16,
        "bf16": torch.bfloat16,
        "fp8": torch.float8_e4m3fn,
    }[dtype]
    case = golden.load(folder, number, device)
    errors = {name: golden.relative_error(case.run(pack, name), case.io[name]) for name in case.cases()}
    if bound is None:
        bound = ELSEWHERE if dtype == "fp32" and device != "cpu" else BOUNDS[dtype]
        # What the host rounds by itself; into weights of fp8 also a LoRA that it merges.
        plain = ("out_base", "eps_base", *(("eps_lora",) if dtype == "fp8" else ()))
        bound += 0.0 if dtype == "fp32" else 1.25 * max(errors.get(case, 0.0) for case in plain)
    return Parity(errors, bound, case.untried())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument(
        "folder",
        type=Path,
        metavar="DIR",
        help="a golden directory of the SD1.5, FLUX, diffusion lens or Genfocus format",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--bound", type=float, help="largest relative error allowed (default: the precision's)"
    )
    args = parser.parse_args(argv)

    from tests import devices, golden

    found = compare(args.folder, args.dtype, args.device, devices.load_pack(args.device), args.bound)
    for name, error in found.errors.items():
        print(f"{name} {error:.3e}")
    if found.errors:
        print(
            f"worst {found.worst:.3e} bound {found.bound:.2e} ({args.dtype}, {args.device})", file=sys.stderr
        )
    else:
        print(f"nothing tried: known are {', '.join(golden.format_of(args.folder).known)}", file=sys.stderr)
    if found.untried:
        print(f"not tried: {', '.join(found.untried)}", file=sys.stderr)
    return 0 if found.errors and not found.untried and found.worst <= found.bound else 1


if __name__ == "__main__":
    sys.exit(main())
