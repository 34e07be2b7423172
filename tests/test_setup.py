"""What the set-up says when something is missing."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.host import setup
from tests.host.server import ComfyServer, ServerError


def test_a_folder_that_is_no_comfyui_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BOKEH_COMFYUI", str(tmp_path))
    with pytest.raises(setup.SetupError, match=r"BOKEH_COMFYUI names .* no main\.py and no comfy"):
        setup.host_folder()


def test_a_python_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BOKEH_PYTHON", str(tmp_path / "python"))
    with pytest.raises(setup.SetupError, match="not a program that can be run"):
        setup.prepare()


def test_what_a_python_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOKEH_PYTHON", sys.executable)
    with pytest.raises(setup.SetupError, match="lacks: no_such_module"):
        setup.prepare(("sys", "no_such_module"))


def test_a_full_disk_is_told_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("BOKEH_PYTHON", raising=False)
    monkeypatch.setattr(setup, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(setup, "DISK_NEEDED_GB", 10**9)
    with pytest.raises(setup.SetupError, match="GB are free"):
        setup.prepare()
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(
    ("version", "fits"), [((3, 9), False), ((3, 10), True), ((3, 13), True), ((3, 15), False)]
)
def test_a_python_that_nothing_comes_out_for_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: tuple[int, int], fits: bool
) -> None:
    made: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        made.append(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(setup, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(setup.subprocess, "run", run)
    monkeypatch.setattr(setup.sys, "version_info", (*version, 0))
    with nullcontext() if fits else pytest.raises(setup.SetupError, match=r"come out for 3\.10 to 3\.14"):
        setup._make_venv()
    assert bool(made) == fits


def test_what_pip_said_is_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(setup.SetupError, match=r"no-such-package(.|\n)*no network"):
        setup._pip(Path(sys.executable), "install", "--no-index", "--find-links", "", "no-such-package==0")


def test_the_stamp_follows_the_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    before = setup._fingerprint()
    assert setup._fingerprint() == before
    monkeypatch.setattr(setup, "TORCH", "torch==0")
    assert setup._fingerprint() != before


@pytest.mark.server
def test_a_server_that_does_not_start_shows_its_last_words() -> None:
    with (
        pytest.raises(ServerError, match=r"ended(.|\n)*--no-such-option"),
        ComfyServer(arguments=("--no-such-option",)),
    ):
        pass
