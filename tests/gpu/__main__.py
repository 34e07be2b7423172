"""``python -m tests.gpu``: everything that a card should be asked, in under nine minutes, as one Markdown table.

Needs PyTorch, NumPy and what ComfyUI imports, and a ComfyUI: the pinned one, or that which BOKEH_COMFYUI names.
``--pack DIR`` collects what a bare machine lacks. ``--tiny`` runs every part at thumbnail sizes on the CPU.
The exit status is 1 if a result is off its bound, or if a part failed or was not reached in time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from .board import run_part, table, watch


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", help="by default cuda, or mps; card is a pretended one (tests/pretended.py)"
    )
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", help="parts, parted by commas")
    parser.add_argument("--seconds", type=float, help="for all of it")
    parser.add_argument("--out", type=Path, help="also write the table there")
    parser.add_argument(
        "--pack", type=Path, metavar="DIR", help="collect what a bare machine lacks, and do no more"
    )
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--end", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.pack:
        from .pack import pack

        return pack(args.pack)
    from .budgets import BUDGETS, LAST, WHOLE

    unknown = set(args.only.split(",") if args.only else ()) - set(BUDGETS)
    if unknown:
        parser.error(f"no part named {', '.join(sorted(unknown))}; there are {', '.join(BUDGETS)}")
    parts = args.only.split(",") if args.only else list(BUDGETS)
    if args.worker:
        work(args.worker, parts, args.device, args.tiny, args.end)
        return 0

    def command(left: Sequence[str], events: Path, end: float) -> list[str]:
        words = [sys.executable, "-m", "tests.gpu", "--worker", str(events), "--end", str(end)]
        words += ["--only", ",".join(left)]
        words += ["--device", args.device] if args.device else []
        return words + ["--tiny"] * args.tiny

    start, whole = time.monotonic(), args.seconds or WHOLE
    with tempfile.TemporaryDirectory() as folder:
        budgets = {part: whole if part == LAST else BUDGETS[part] for part in parts}
        about, rows = watch(
            command, budgets, whole, Path(folder), lambda line: print(line, file=sys.stderr, flush=True)
        )
    text = table(f"{about} {time.monotonic() - start:.0f} s.", rows)
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    return int(any(row.bad for row in rows))


def work(events: Path, parts: Sequence[str], device: str | None, tiny: bool, end: float) -> None:
    """Do parts in this process, and write what is found to ``events``."""
    import json

    with events.open("a") as file:

        def tell(event: dict[str, object]) -> None:
            file.write(json.dumps(event) + "\n")
            file.flush()

        from .standins import stand_in

        missing = stand_in()
        from tests import devices

        from .budgets import BUDGETS, LAST
        from .measure import about
        from .parts import PARTS, Setting

        if device is None:
            found = [one for one in devices.available() if one != devices.CPU and not tiny]
            device = found[0] if found else devices.CPU
        devices.prepare(device)
        setting = Setting(device, tiny or device not in ("cuda", "mps"), end)
        tell({"about": about(device) + f" Stand-ins for {', '.join(missing)}." * bool(missing)})
        with suppress(Exception):
            assert (
                setting.pack
            )  # takes seconds, which are no part's; the parts that need it say what is wrong
        for part in parts:
            last = end if part == LAST else min(end, time.time() + BUDGETS[part])
            if not run_part(part, lambda part=part: PARTS[part](setting), last, tell):
                return


if __name__ == "__main__":
    sys.exit(main())
