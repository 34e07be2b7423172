"""``python -m trainer``: the commands, and what it says where one cannot be carried out."""

from __future__ import annotations

import pytest

from trainer import cli


def test_commands_with_commands_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["toy"])
    assert ended.value.code == 2
    assert "FOLDER" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.main(["world", "sheet", "--help"])
    assert ended.value.code == 0
    assert "--rows" in capsys.readouterr().out


def test_the_list_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    names = ("prepare", "pairs", "synthesize", "fit", "lens", "distil", "export", "evaluate", "toy", "world")
    assert all(name in said for name in names)
    with pytest.raises(SystemExit) as ended:
        cli.main(["prepair"])
    assert ended.value.code == 2


def test_a_package_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "fit", ("trainer.nothing.here", "train"))
    assert cli.main(["fit"]) == 1
    assert (
        f"is not installed. Install what training needs, in the folder of this extension: {cli.INSTALL}"
        in (capsys.readouterr().err)
    )
