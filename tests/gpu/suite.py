"""The tests that take a device, run by pytest for an accelerator alone."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .board import FAILED, LEFT_OUT, NO_TIME, OK, Found, LeftOut, last_lines

_PYTEST = """
import sys
from tests.gpu.standins import stand_in
stand_in()
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""
ROOT = Path(__file__).resolve().parents[2]


def outcomes(device: str, end: float, *arguments: str) -> Iterator[tuple[str, Found]]:
    """By file how many passed, and every test that did not; what was not reached by ``end`` is told last.

    Raises:
        LeftOut: there is no pytest.
    """
    if importlib.util.find_spec("pytest") is None:
        raise LeftOut("there is no pytest here; the comparisons above are those that the tests call")
    with tempfile.TemporaryDirectory() as folder:
        report, said = Path(folder) / "report.xml", Path(folder) / "said.txt"
        command = [
            sys.executable,
            "-c",
            _PYTEST,
            "-m",
            "device",
            "-k",
            device,
            "-vv",
            f"--junit-xml={report}",
        ]
        command += ["-p", "no:cacheprovider", "--color=no", *arguments]
        environment = {**os.environ, "BOKEH_DEVICE": device, "PYTHONUNBUFFERED": "1"}
        with said.open("w") as out:
            run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)
            try:
                run.wait(min(max(1.0, end - time.time() - _SPARE), 86400))
            except subprocess.TimeoutExpired:
                run.kill()
                run.wait()
        text = said.read_text(errors="replace")
        notes = dict(_notes(report)) if report.is_file() else {}
        counts: Counter[str] = Counter()
        for line in text.splitlines():
            found = _LINE.match(line)
            if found is None:
                continue
            path, name, word = found.groups()
            file = Path(path).name
            if word == "PASSED":
                counts[file] += 1
            else:
                outcome = LEFT_OUT if word == "SKIPPED" else FAILED
                yield f"{file}: {name}", {"outcome": outcome, "note": notes.get(name, "")}
        for file, count in counts.items():
            yield f"{file}: {count} passed", {"outcome": OK}
        if run.returncode < 0 or (run.returncode == 1 and not report.is_file()):
            yield "the rest", {"outcome": NO_TIME, "note": last_lines(text)}
        elif run.returncode > 1:
            yield "pytest", {"outcome": FAILED, "note": last_lines(text)}


_LINE = re.compile(r"(\S+\.py)::(.+) (PASSED|FAILED|ERROR|SKIPPED)\b")
_SPARE = 8.0
"""Seconds before the end at which pytest is ended, so that what it said can be told."""


def _notes(report: Path) -> Iterator[tuple[str, str]]:
    """Why a test did not pass, by its name."""
    for case in ElementTree.parse(report).iter("testcase"):
        for kind in ("failure", "error", "skipped"):
            wrong = case.find(kind)
            if wrong is not None:
                text = wrong.get("message", "") if kind == "skipped" else wrong.text or ""
                yield case.get("name", ""), last_lines(text)
