"""The tests that take a device, run by pytest for an accelerator alone."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from .board import FAILED, LEFT_OUT, OK, Found, LeftOut, last_lines

_PYTEST = """
import sys
from tests.gpu.standins import stand_in
stand_in()
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""
ROOT = Path(__file__).resolve().parents[2]


def outcomes(device: str, *arguments: str) -> Iterator[tuple[str, Found]]:
    """By file how many passed, and every test that did not.

    Raises:
        LeftOut: there is no pytest.
    """
    if importlib.util.find_spec("pytest") is None:
        raise LeftOut("there is no pytest here; the comparisons above are those that the tests call")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "device",
            "-k",
            device,
            f"--junit-xml={report}",
            *arguments,
        ]
        done = subprocess.run(
            [*command, "-p", "no:cacheprovider", "-o", "junit_family=xunit1"],
            cwd=ROOT,
            env={**os.environ, "BOKEH_DEVICE": device},
            capture_output=True,
            text=True,
        )
        if not report.is_file():
            raise RuntimeError(last_lines(done.stdout + done.stderr))
        passed: dict[str, int] = {}
        for case in ElementTree.parse(report).iter("testcase"):
            file, name = case.get("file", ""), case.get("name", "")
            wrong = case.find("failure")
            wrong = case.find("error") if wrong is None else wrong
            skipped = case.find("skipped")
            if wrong is not None:
                yield f"{file}: {name}", {"outcome": FAILED, "note": last_lines(wrong.text or "")}
            elif skipped is not None:
                yield f"{file}: {name}", {"outcome": LEFT_OUT, "note": skipped.get("message", "")}
            else:
                passed[file] = passed.get(file, 0) + 1
        for file, count in passed.items():
            yield f"{file}: {count} passed", {"outcome": OK}
        if not passed and done.returncode:
            raise RuntimeError(last_lines(done.stdout + done.stderr))
