"""Ctrl-C and SIGTERM, as a terminal and a scheduler send them: to the whole group of processes."""
# ruff: noqa: F811 (the fixture `workshop` is imported)

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.fit import config, workshop  # noqa: F401
from tests.test_fit_resume import lines, start


@pytest.mark.skipif(os.name == "nt", reason="signals are of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_whole_group_is_asked_to_stop(workshop: Path, tmp_path: Path, number: int) -> None:
    """With workers that read ahead, in the midst of a step of 16 micro-batches."""
    overrides = ("steps=100000", "checkpoint.every=100000", "batch.total=32", "batch.micro=2")
    overrides += ("data.workers=2", "contrastive.variants=0")
    (tmp_path / "c.yaml").write_text(config("flux", tmp_path, workshop, *overrides), encoding="utf-8")
    process = start(tmp_path)
    while lines(tmp_path) < 1 and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.1)
    os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    assert int(checkpoint.name.removeprefix("step-")) == lines(tmp_path) >= 1
