"""What the set-up says when something is missing."""

from __future__ import annotations

import sys
from pathlib import Path

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
