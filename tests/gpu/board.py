"""Rows, budgets, and a process of its own for the work, so that whatever happens there is a table in time.

The worker runs part after part and writes every row to a file as it comes; the watcher reads them. A part that fails
ends with a row that says so, and one that outlives its budget is ended with its process; the others go on in the next.
Standard library only: the watcher must not need what may be missing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

GRACE = 15.0
"""Seconds that a part has beyond its budget before its process is ended."""
START = 90.0
"""Seconds that a worker may take before its first part begins."""
OK, OFF, FAILED, STOPPED, NO_TIME, LEFT_OUT = "ok", "OFF", "failed", "stopped", "no time", "left out"


class LeftOut(Exception):
    """What a case needs is not there; the message says what."""


@dataclass
class Row:
    """A line of the table.

    Attributes:
        part, case: what was done.
        outcome: one of the words above, or nothing where something was timed alone.
        off, bound: how far a result is off, and how far it may be.
        first, seconds: the first run, and the median of those after it.
        times: seconds over those of the row that a case is measured by.
        launches, syncs: kernels launched, and times the CPU waited for a value.
        megabytes: the most memory taken beyond what was held before.
        note: more of it, below the table.
    """

    part: str
    case: str = ""
    outcome: str = ""
    off: float | None = None
    bound: float | None = None
    first: float | None = None
    seconds: float | None = None
    times: float | None = None
    launches: int | None = None
    syncs: int | None = None
    megabytes: float | None = None
    note: str = ""

    @property
    def bad(self) -> bool:
        return self.outcome in (OFF, FAILED, STOPPED, NO_TIME)


Found = Mapping[str, Any]
"""Fields of a row by name."""
Cases = Iterable[tuple[str, Callable[[], Found]]]
Tell = Callable[[dict[str, Any]], None]


def run_part(part: str, cases: Callable[[], Cases], end: float, tell: Tell) -> bool:
    """Run the cases of a part one after the other until ``end`` (of :func:`time.time`).

    A case that raises is a row of its own.

    Returns:
        whether this process can go on: not after an error that leaves an accelerator unusable.
    """
    tell({"begin": part})
    try:
        for case, measure in cases():
            if time.time() > end:
                tell(asdict(Row(part, case, NO_TIME)))
                continue
            tell({"case": case})
            try:
                tell(asdict(judged(Row(part, case, **measure()))))
            except LeftOut as reason:
                tell(asdict(Row(part, case, LEFT_OUT, note=str(reason))))
            except Exception as error:  # noqa: BLE001 (it is told)
                tell(asdict(Row(part, case, FAILED, note=last_lines(traceback.format_exc()))))
                if type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error):
                    return False
    except LeftOut as reason:
        tell(asdict(Row(part, "", LEFT_OUT, note=str(reason))))
    except Exception:  # noqa: BLE001 (it is told)
        tell(asdict(Row(part, "", FAILED, note=last_lines(traceback.format_exc()))))
    finally:
        tell({"end": part})
    return True


def judged(row: Row) -> Row:
    """A row whose outcome says whether the result is within its bound; not a number is not."""
    if row.off is not None and not row.outcome:
        row.outcome = OK if row.bound is not None and row.off <= row.bound else OFF
    return row


def last_lines(text: str, count: int = 6) -> str:
    return "\n".join(text.strip().splitlines()[-count:])


def watch(
    command: Callable[[Sequence[str], Path, float], Sequence[str]],
    budgets: Mapping[str, float],
    seconds: float,
    folder: Path,
    say: Callable[[str], None],
) -> tuple[str, list[Row]]:
    """Have workers do the parts, each within its budget and all within ``seconds``.

    Args:
        command: the command line of a worker for those parts, that writes to that file and ends by that time.
        budgets: seconds by part, in the order in which they run.
        folder: for files.
        say: told every row as it comes.

    Returns:
        what the machine is, as a worker says, and the rows.
    """
    left, rows, about, tried = list(budgets), [], "", 0
    end = time.time() + seconds

    def add(row: Row) -> None:
        rows.append(row)
        say(" | ".join(cells(row)))

    def gone(part: str, row: Row) -> None:
        add(row)
        left.remove(part)

    while left and time.time() < end - 1:
        tried += 1
        events, log = folder / f"rows-{tried}.jsonl", folder / f"said-{tried}.txt"
        events.touch()
        with log.open("w") as said:
            worker = subprocess.Popen(
                command(left, events, end), stdout=said, stderr=subprocess.STDOUT, start_new_session=True
            )
        part, case, began = "", "", time.time()
        with events.open() as file:
            ended = False
            while True:
                ended = worker.poll() is not None
                for event in _events(file):
                    if "about" in event:
                        about = event["about"]
                    elif "begin" in event:
                        part, case, began = event["begin"], "", time.time()
                    elif "case" in event and "part" not in event:
                        case = event["case"]
                    elif "end" in event:
                        left.remove(event["end"])
                        part, began = "", time.time()
                    else:
                        add(Row(**event))
                if ended:
                    break
                allowed = budgets[part] + GRACE if part else START
                if time.time() > min(end, began + allowed):
                    _kill(worker)
                    after = f"ended after {time.time() - began:.0f} s"
                    gone(part or left[0], Row(part or left[0], case, STOPPED, note=after))
                    break
                time.sleep(0.05)
        if ended and left and (part or worker.returncode):
            how = f"the process ended with {worker.returncode}: {last_lines(log.read_text(errors='replace'))}"
            gone(part or left[0], Row(part or left[0], case, FAILED, note=how))
    for part in left:
        add(Row(part, "", NO_TIME))
    return about, rows


def _events(file: Any) -> Iterator[dict[str, Any]]:
    """The whole lines that have been written since."""
    while True:
        place = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(place)
            return
        yield json.loads(line)


def _kill(worker: subprocess.Popen[Any]) -> None:
    """End a worker and what it started."""
    if os.name == "posix":
        os.killpg(worker.pid, signal.SIGKILL)
    else:
        worker.kill()
    worker.wait()


HEADINGS = {
    "part": "part",
    "case": "case",
    "outcome": "outcome",
    "off": "off by",
    "bound": "bound",
    "first": "first, s",
    "seconds": "s",
    "times": "x",
    "launches": "launches",
    "syncs": "waits",
    "megabytes": "peak MB",
}
assert list(HEADINGS) == [field.name for field in fields(Row)][:-1]


def cells(row: Row) -> list[str]:
    """What stands in a line of the table."""
    forms = {
        "off": ".1e",
        "bound": ".0e",
        "first": ".3g",
        "seconds": ".3g",
        "times": ".2f",
        "megabytes": ".0f",
    }
    values = {name: getattr(row, name) for name in HEADINGS}
    return ["" if value is None else format(value, forms.get(name, "")) for name, value in values.items()]


def table(about: str, rows: Sequence[Row]) -> str:
    """The Markdown table, and below it the notes."""
    lines = [about, "", f"| {' | '.join(HEADINGS.values())} |", "|" + "---|" * len(HEADINGS)]
    lines += [f"| {' | '.join(cells(row))} |" for row in rows]
    notes = [row for row in rows if row.note]
    for row in notes:
        first, *more = row.note.splitlines()
        lines += [
            "",
            f"* {row.part}{', ' * bool(row.case)}{row.case}: {first}",
            *(f"      {line}" for line in more),
        ]
    return "\n".join(lines) + "\n"
