"""The command as a whole: resumed, spread, merged, killed, and what it says when it cannot."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bokeh_ops.errors import BokehError
from tests.photographs import photograph
from trainer.cli import main
from trainer.data import open_dataset
from trainer.data.prepare import pipeline, report
from trainer.data.prepare.annotate import Outcome
from trainer.data.prepare.balance import bin_names, bin_of, choose
from trainer.data.prepare.pool import look_at_all
from trainer.data.prepare.rejection import OF_THE_MACHINE, REASONS
from trainer.data.prepare.settings import Balance, Settings, Share
from trainer.data.prepare.work import parts_in

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "--depth-kind",
    "metric",
    "--resolution",
    "64",
    "--workers",
    "0",
    "--piece",
    "3",
    "--samples-per-shard",
    "4",
]


@pytest.fixture(autouse=True)
def quick_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Histograms take longer than all the rest; one test makes them."""
    if request.function is not test_from_photographs_to_a_data_set:
        monkeypatch.setattr(report, "histograms", lambda path, *rest: path.write_bytes(b""))


def photographs(folder: Path, count: int = 8) -> Path:
    """As many that are accepted, of K from 0.1 to 14, and three that are not."""
    for number in range(count):
        focal = 12 + 48 * number / max(count - 1, 1)
        photograph(folder / f"p{number:02d}.jpg", seed=number, focal_length=focal, caption=f"number {number}")
    photograph(folder / "small.jpg", (40, 30), maps=False)
    photograph(folder / "phone.jpg", seed=99, make="Apple", model="iPhone 8")
    (folder / "text.jpg").write_text("no picture")
    return folder


def prepare(*words: Any, status: int = 0) -> None:
    assert main(["prepare", *map(str, words)]) == status


def rejected(out: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert len({line["id"] for line in lines}) == len(lines)
    return {line["id"]: line["reason"] for line in lines}


def contents(out: Path) -> dict[str, bytes]:
    """The data set's shards and description."""
    files = [out / "dataset.json", *sorted((out / "shards").iterdir())]
    return {path.name: path.read_bytes() for path in files}


def test_from_photographs_to_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = photographs(tmp_path / "in"), tmp_path / "out"
    prepare(source, "--out", out, *SMALL, "--licence", "CC0")
    said = capsys.readouterr()
    assert "is finished: 8 of 11 photographs. Look at" in said.out
    dataset = open_dataset(out)
    assert len(dataset) == 8
    assert [shard["samples"] for shard in dataset.manifest.shards] == [4, 4]
    dataset.verify()
    samples = [dataset.sample(index) for index in range(8)]
    assert {sample.captions for sample in samples} == {(f"number {number}",) for number in range(8)}
    assert all(sample.info["licence"] == "CC0" for sample in samples)
    assert rejected(out) == {"small.jpg": "too_small", "phone.jpg": "smartphone", "text.jpg": "unreadable"}
    assert dataset.settings["depth_kind"] == "metric"
    assert dataset.settings["balance"]["bins"] == 10
    page = (out / "report" / "report.html").read_text()
    assert "11 photographs were looked at. <b>8</b> are in the data set" in page
    for reason in set(rejected(out).values()):
        assert f"<td>{reason}</td><td class='n'>1</td><td>{REASONS[reason]}</td>" in page
    pictures = {path.name for path in (out / "report").glob("*.*g")}
    assert "histograms.png" in pictures
    assert all(f'src="{name}"' in page for name in pictures)
    before = contents(out)
    prepare(source, "--out", out, *SMALL, "--licence", "CC0")
    assert "was finished already: 8 of 11" in capsys.readouterr().out
    assert contents(out) == before


def test_more_photographs_and_another_balance(tmp_path: Path) -> None:
    """What was looked at is not looked at again; the data set is made anew."""
    source, out = photographs(tmp_path / "in"), tmp_path / "out"
    prepare(source, "--out", out, *SMALL)
    pieces = {path: path.stat().st_mtime_ns for path in (out / "work").rglob("piece-*")}
    photograph(source / "more.jpg", seed=77)
    prepare(source, "--out", out, *SMALL)
    assert len(open_dataset(out)) == 9
    assert all(path.stat().st_mtime_ns == when for path, when in pieces.items())
    prepare(source, "--out", out, *SMALL, "--per-bin", 1)
    chosen = open_dataset(out)
    k, sharp = chosen.facts()
    bins = Counter(bin_of(k[i], bool(sharp[i]), Balance(), 30.0) for i in range(len(chosen)))
    assert set(bins.values()) == {1}
    assert Counter(rejected(out).values())["balance"] == 9 - len(chosen)
    fresh = tmp_path / "fresh"
    prepare(source, "--out", fresh, *SMALL, "--per-bin", 1)
    assert contents(fresh) == contents(out)


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_names_that_are_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = photographs(tmp_path / "in", 1), tmp_path / "out"
    for name, old in (("\udcff.jpg", "p00.jpg"), ("b\udce4d.jpg", "text.jpg")):
        os.rename(source / old, source / name)
    for ending in ("depth.npy", "mask.png", "txt"):
        os.rename(source / f"p00.{ending}", source / f"\udcff.{ending}")
    for _ in range(2):
        prepare(source, "--out", out, *SMALL)
    assert "finished already" in capsys.readouterr().out
    assert rejected(out)["b\udce4d.jpg"] == "unreadable"
    assert open_dataset(out).sample(0).info["id"] == "?.jpg"


def test_an_interrupted_run_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = photographs(tmp_path / "in", 8), tmp_path / "out"
    looked_at: list[str] = []

    def interrupted(items: Any, *rest: Any) -> Any:
        for number, outcome in enumerate(look_at_all(items, *rest)):
            if number == 5:
                raise KeyboardInterrupt
            looked_at.append(outcome.id)
            yield outcome

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "look_at_all", interrupted)
        prepare(source, "--out", out, *SMALL, status=130)
    kept = [row["id"] for part in parts_in(out) for _, row in part.rows()]
    assert kept == looked_at
    prepare(source, "--out", out, *SMALL)
    assert len(open_dataset(out)) == 8


def test_duplicates(tmp_path: Path) -> None:
    source = photographs(tmp_path / "in", 2)
    (source / "z").mkdir()
    for path in source.glob("p00.*"):
        shutil.copy(path, source / "z" / path.name)
    (source / "list.txt").write_text("p00.jpg\np01.jpg\np00.jpg\nz/p00.jpg\n")
    prepare(source / "list.txt", "--out", tmp_path / "out", *SMALL)
    assert rejected(tmp_path / "out") == {"z/p00.jpg": "duplicate"}
    assert len(open_dataset(tmp_path / "out")) == 2


def test_settings_must_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = photographs(tmp_path / "in", 2), tmp_path / "out"
    prepare(source, "--out", out, *SMALL)
    capsys.readouterr()
    prepare(source, "--out", out, *SMALL, "--nearest", "0.5", "--crop", "centre", status=1)
    said = capsys.readouterr().err
    assert (
        "was begun with other settings:\n  crop: 'foreground' -> 'centre'\n  nearest: 0.25 -> 0.5\n" in said
    )
    prepare(source, "--out", out, *SMALL, "--shard-of", "0/2", status=1)
    assert "was begun in 1 parts, not 2" in capsys.readouterr().err


def test_other_settings_where_nothing_was_kept(tmp_path: Path) -> None:
    """Nothing made with the old ones can mix with what the new ones make."""
    source, out = photographs(tmp_path / "in", 1), tmp_path / "out"
    prepare(source, "--out", out, *SMALL, "--mask", "nearest:,ratio=9", status=1)
    assert rejected(out)["p00.jpg"] == "foreground_area"
    prepare(source, "--out", out, *SMALL)
    assert len(open_dataset(out)) == 1
    assert open_dataset(out).settings["mask"] == "files"
    prepare(source, "--out", tmp_path / "fresh", *SMALL)
    assert contents(out) == contents(tmp_path / "fresh")
    assert rejected(out) == rejected(tmp_path / "fresh")


def test_trouble_of_the_machine_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with --memory 0.05, and then 8."""
    source, out = photographs(tmp_path / "in", 2), tmp_path / "out"
    looked_at: list[str] = []

    def too_little(items: Any, *rest: Any) -> Any:
        for item, reason in zip(items, [*OF_THE_MACHINE, *OF_THE_MACHINE], strict=False):
            yield Outcome(item.id, reason=reason, detail="0.2 GiB, more than 0.1")

    def enough(items: Any, *rest: Any) -> Any:
        for outcome in look_at_all(items, *rest):
            looked_at.append(outcome.id)
            yield outcome

    monkeypatch.setattr(pipeline, "look_at_all", too_little)
    prepare(source, "--out", out, *SMALL, status=1)
    assert "(crashed 2, timeout 2, memory 1): the same command tries those again" in capsys.readouterr().err
    monkeypatch.setattr(pipeline, "look_at_all", enough)
    for _ in range(2):
        looked_at.clear()
        prepare(source, "--out", out, *SMALL)
    assert looked_at == []  # what was found of the photographs themselves stays
    prepare(source, "--out", tmp_path / "fresh", *SMALL)
    assert contents(out) == contents(tmp_path / "fresh")
    assert rejected(out) == rejected(tmp_path / "fresh")
    monkeypatch.setattr(pipeline, "look_at_all", too_little)
    photograph(source / "more.jpg", seed=5)
    for _ in range(2):  # noted once, however often it is tried
        prepare(source, "--out", out, *SMALL)
        assert rejected(out) == {**rejected(tmp_path / "fresh"), "more.jpg": "crashed"}
    assert "2 of 6 photographs" in capsys.readouterr().out


def test_without_the_work_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = photographs(tmp_path / "in", 2), tmp_path / "out"
    prepare(source, "--out", out, *SMALL, "--discard-work")
    assert not (out / "work").exists()
    assert len(open_dataset(out)) == 2
    prepare(source, "--out", out, *SMALL, "--discard-work")
    assert "was finished already, and its work folder removed" in capsys.readouterr().out
    prepare(source, "--out", out, *SMALL, "--nearest", "0.5", status=1)
    assert "nearest: 0.25 -> 0.5" in capsys.readouterr().err


def test_shares_of_several_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Merged, on one disk or from several, they give the same data set as one machine, byte for byte."""
    source = photographs(tmp_path / "in", 10)
    prepare(source, "--out", tmp_path / "one", *SMALL)
    for part in range(3):
        if part == 2:
            prepare("--merge", tmp_path / "disk", "--out", tmp_path / "disk", status=1)
            assert "has 2 of 3 parts; missing is --shard-of 2/3" in capsys.readouterr().err
        prepare(source, "--out", tmp_path / "disk", *SMALL, "--shard-of", f"{part}/3")
        prepare(source, "--out", tmp_path / f"machine{part}", *SMALL, "--shard-of", f"{part}/3")
        assert "When all shares are" in capsys.readouterr().out
    prepare("--merge", tmp_path / "disk", "--out", tmp_path / "disk", "--samples-per-shard", 4)
    folders = [tmp_path / f"machine{part}" for part in range(3)]
    prepare("--merge", *folders, "--out", tmp_path / "merged", "--samples-per-shard", 4)
    whole = contents(tmp_path / "one")
    assert len(open_dataset(tmp_path / "one")) == 10
    for out in (tmp_path / "disk", tmp_path / "merged"):
        assert contents(out) == whole
        assert rejected(out) == rejected(tmp_path / "one")
    (folders[1] / "work" / "part-00001-of-00003" / "done.json").unlink()
    prepare("--merge", *folders, "--out", tmp_path / "again", status=1)
    assert "part-00001-of-00003 is not finished" in capsys.readouterr().err
    prepare("--merge", tmp_path / "in", "--out", tmp_path / "again", status=1)
    assert "holds no prepared photographs" in capsys.readouterr().err


def test_two_sources_brought_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Photographs of the same name stay two; the same photograph in both comes once."""
    for source in ("a", "b"):
        photograph(tmp_path / source / "same-name.jpg", seed=ord(source))
        photograph(tmp_path / source / "same.jpg", seed=5)
        prepare(tmp_path / source, "--out", tmp_path / f"out-{source}", *SMALL)
    prepare("--merge", tmp_path / "out-a", tmp_path / "out-b", "--out", tmp_path / "both")
    assert len(open_dataset(tmp_path / "both")) == 3
    prepare(tmp_path / "a", "--out", tmp_path / "other", *SMALL, "--max-k", 20)
    capsys.readouterr()
    prepare("--merge", tmp_path / "out-a", tmp_path / "other", "--out", tmp_path / "no", status=1)
    assert "were made with different settings:\n  max_k: 30.0 -> 20.0" in capsys.readouterr().err


SLOW = """
import time
import numpy as np

def depth(photograph):
    with photograph.record.beside("depth.npy") as path:
        time.sleep(0.1)
        return np.load(path)
"""


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A provider of depth that gives time to kill its process in, for this process and its children."""
    (tmp_path / "slow_depth.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    return ["--depth", "python:slow_depth:depth"]


def start(*words: Any) -> Any:
    """The command in a process of its own: a copy of this one, which has the packages loaded."""
    process = multiprocessing.get_context("fork").Process(target=_in_a_copy, args=words)
    process.start()
    return process


def _in_a_copy(*words: Any) -> None:
    import torch

    torch.set_num_threads(1)  # those that there were did not come along
    os._exit(main(["prepare", *map(str, words)]))


def wait_for(found: Callable[[], bool], process: Any) -> None:
    for _ in range(3000):
        if found() or process.exitcode is not None:
            break
        time.sleep(0.01)


def ends(process: Any) -> int | None:
    process.join(120)
    return process.exitcode


forked = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process cannot be copied")


@forked
def test_killed_at_any_moment(tmp_path: Path, slow: list[str]) -> None:
    """Again and again, also while the shards are written; what comes out is what an undisturbed run gives."""
    source = photographs(tmp_path / "in", 12)
    words = [source, *slow, *SMALL]
    prepare(*words, "--out", tmp_path / "whole")
    out = tmp_path / "out"
    pieces = out / "work" / "part-00000-of-00001"
    kills = 0
    for wanted in (1, 2, 3):
        process = start(*words, "--out", out)
        wait_for(lambda wanted=wanted: len(list(pieces.glob("piece-*.jsonl"))) >= wanted, process)
        if process.exitcode is None:
            process.kill()
            kills += 1
        process.join()
    assert kills == 3
    done = len(list(pieces.glob("piece-*.jsonl")))
    assert 3 <= done < 5
    # as if killed between the two files of a piece, and in the middle of a shard
    (pieces / f"piece-{done:05d}.tar").write_bytes(b"half")
    (pieces / ".piece-00009.tar.tmp").write_bytes(b"half")
    prepare(*words, "--out", out)
    assert contents(out) == contents(tmp_path / "whole")
    assert rejected(out) == rejected(tmp_path / "whole")
    # killed in stage two: one shard is there, the second is not, and there is no description
    kept = contents(out)
    (out / "dataset.json").unlink()
    (out / "shards" / "shard-00001.index.json").unlink()
    first = (out / "shards" / "shard-00000.tar").stat().st_mtime_ns
    prepare(*words, "--out", out)
    assert contents(out) == kept
    assert (out / "shards" / "shard-00000.tar").stat().st_mtime_ns == first


@forked
def test_two_processes_do_not_share_a_folder(
    tmp_path: Path, slow: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    source = photographs(tmp_path / "in", 6)
    words = [source, *slow, *SMALL, "--out", tmp_path / "out"]
    first = start(*words)
    part = tmp_path / "out" / "work" / "part-00000-of-00001"
    wait_for((part / "piece-00000.jsonl").exists, first)
    prepare(*words, status=1)
    assert "Another process is preparing" in capsys.readouterr().err
    assert first.exitcode is None
    first.kill()
    first.join()
    prepare(*words)  # nothing is locked by the dead


HOSTILE = """
import os, time
import numpy as np

def depth(photograph):
    name = photograph.record.item.id
    if name == "p01.jpg":
        os._exit(3)
    if name == "p02.jpg":
        time.sleep(1000)
    if name == "p03.jpg":
        held = []
        while True:
            held.append(np.ones(10_000_000))
            time.sleep(0.02)
    if name == "p04.jpg":
        raise RuntimeError("not today")
    with photograph.record.beside("depth.npy") as path:
        return np.load(path)
"""


def test_photographs_that_take_their_process_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = photographs(tmp_path / "in", 7)
    (tmp_path / "hostile_depth.py").write_text(HOSTILE)
    monkeypatch.syspath_prepend(tmp_path)
    words = [source, "--depth", "python:hostile_depth:depth", *SMALL, "--out", tmp_path / "out"]
    prepare(*words, "--workers", 2, "--timeout", 6, "--memory", 1.2)
    found = rejected(tmp_path / "out")
    assert {name: found[f"{name}.jpg"] for name in ("p01", "p02", "p03", "p04")} == {
        "p01": "crashed",
        "p02": "timeout",
        "p03": "memory",
        "p04": "provider_failed",
    }
    assert len(open_dataset(tmp_path / "out")) == 3
    assert "(crashed 1, timeout 1, memory 1): the same command tries those again" in capsys.readouterr().out


def test_processes_give_what_one_gives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = photographs(tmp_path / "in", 6)
    prepare(source, "--out", tmp_path / "one", *SMALL)
    capsys.readouterr()
    prepare(source, "--out", tmp_path / "two", *SMALL, "--workers", 2)
    assert "looking at photographs: 9" in capsys.readouterr().err
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    gone = ["--workers", 2, "--depth", "onnx:gone.onnx"]
    prepare(source, "--out", tmp_path / "no", *SMALL, *gone, status=1)
    assert "There is no ONNX file gone.onnx" in capsys.readouterr().err


def test_a_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The kernel refuses to write on; what is done stays, and with room again the run goes on."""
    resource = pytest.importorskip("resource")
    source, out = photographs(tmp_path / "in", 8), tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
        prepare(source, "--out", out, *SMALL[:-4], "--piece", 4, "--samples-per-shard", 4, status=1)
        said = capsys.readouterr().err
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "could not be written: the disk is full" in said
    assert "make room" in said
    assert not list(out.rglob("*.tmp"))
    prepare(source, "--out", out, *SMALL[:-4], "--piece", 4, "--samples-per-shard", 4)
    prepare(source, "--out", tmp_path / "whole", *SMALL)
    assert contents(out) == contents(tmp_path / "whole")


def test_nothing_to_make_a_data_set_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    prepare(tmp_path / "empty", "--out", tmp_path / "a", *SMALL, status=1)
    assert "holds no photographs (files ending in jpg" in capsys.readouterr().err
    prepare(tmp_path / "nowhere", "--out", tmp_path / "b", *SMALL, status=1)
    assert "There is no folder or file" in capsys.readouterr().err
    photograph(tmp_path / "bad" / "a.jpg", f_number=0.0)
    photograph(tmp_path / "bad" / "b.jpg", seed=1, maps=False)
    prepare(tmp_path / "bad", "--out", tmp_path / "c", *SMALL, status=1)
    said = capsys.readouterr().err
    assert "None of 2 photographs was accepted:" in said
    assert f"1  no_lens_data  {REASONS['no_lens_data']}" in said
    assert (tmp_path / "c" / "report" / "report.html").exists()
    assert not (tmp_path / "c" / "dataset.json").exists()
    with pytest.raises(BokehError, match="preparation has not finished"):
        open_dataset(tmp_path / "c")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["in"], "--depth-kind is missing"),
        ([], "Give either a SOURCE, or --merge"),
        (["in", "--merge", "x"], "Give either a SOURCE, or --merge"),
        (["in", *SMALL, "--resolution", "100"], "resolution is (100, 100); expected multiples of 8"),
        (["in", *SMALL, "--resolution", "big"], "write 512 or 768x512"),
        (["in", *SMALL, "--shard-of", "3"], "write I/N"),
        (["in", *SMALL, "--shard-of", "3/3"], "There is no share 3 of 3"),
        (["in", *SMALL, "--shard-of", "env"], "neither RANK and WORLD_SIZE"),
        (["in", *SMALL, "--min-foreground", "0.9"], "min-foreground is 0.9; expected below max-foreground"),
        (["in", *SMALL, "--nearest", "0"], "nearest is 0.0; expected a share above 0"),
        (["in", *SMALL, "--workers", "-1"], "--workers is -1; it must be at least 0"),
        (["in", *SMALL, "--sharp-share", "2"], "it is a share, 0 to 1"),
        (["in", *SMALL, "--captions", "none", "--captions", "files"], "--captions none excludes others"),
    ],
)
def test_command_lines_that_make_no_sense(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    for name in (
        "RANK",
        "SLURM_PROCID",
        "SLURM_ARRAY_TASK_ID",
        "OMPI_COMM_WORLD_RANK",
        "JOB_COMPLETION_INDEX",
    ):
        monkeypatch.delenv(name, raising=False)
    prepare(*words, "--out", tmp_path / "out", status=2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--depth", "guess", "depth 'guess' is unknown; choose files, onnx:FILE"),
        ("--depth", "nearest", "depth 'nearest' is unknown"),
        ("--mask", "nearest:,ratio=1", "must be above 1"),
        ("--mask", "nearest:,far=1", "there is no option far; known are ratio"),
        ("--captions", "guess", "captions 'guess' is unknown"),
        ("--depth", "python:nothing.at:all", "cannot be imported"),
        ("--depth", "python:json", "names no function"),
        ("--depth", "files:a,b", "'b' is no option"),
    ],
)
def test_providers_that_do_not_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, message: str
) -> None:
    photographs(tmp_path / "in", 1)
    prepare(tmp_path / "in", "--out", tmp_path / "out", *SMALL, option, value, status=1)
    assert message in capsys.readouterr().err


def test_share_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    kubernetes = "JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"
    for names in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"), kubernetes):
        with monkeypatch.context() as patch:
            patch.setenv(names[0], "2")
            patch.setenv(names[1], "5")
            assert Share.read("env") == Share(2, 5)


def test_help_is_quick_and_tells_all(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "trainer", "prepare", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    for heavy in ("torch", "transformers", "onnxruntime", "matplotlib", "pyarrow"):
        assert not any(line.rpartition("|")[2].strip() == heavy for line in done.stderr.splitlines()), heavy
    for name in Settings().to_json():
        if name != "source":
            assert f"--{name.replace('_', '-')}" in done.stdout, name


def test_balance() -> None:
    """Crowded bins are cut to twice the median, small ones left alone; the choice is by name alone."""
    counts = {0: 50, 1: 400, 2: 30, 3: 20, 11: 5}
    bins = [number for number, count in counts.items() for _ in range(count)]
    keys = [f"k{index}" for index in range(len(bins))]

    def kept(**settings: Any) -> dict[int, int]:
        keep, _ = choose(keys, bins, Balance(**settings))
        return dict(Counter(number for number, stays in zip(bins, keep, strict=True) if stays))

    assert kept() == {**counts, 1: 100}
    assert kept(at_least=10) == {**counts, 1: 60}  # the median of 5, 20, 30, 50, 400 is 30
    assert kept(per_bin=20) == {0: 20, 1: 20, 2: 20, 3: 20, 11: 5}
    assert kept(per_bin=0) == counts
    assert kept(per_bin=20, sharp_share=0.1) == {0: 8, 1: 20, 2: 20, 3: 20, 11: 5}  # 8 of 73
    assert kept(sharp_share=1.0)[0] == 50
    turned = list(reversed(range(len(keys))))
    forth, _ = choose(keys, bins, Balance(per_bin=20))
    back, _ = choose([keys[i] for i in turned], [bins[i] for i in turned], Balance(per_bin=20))
    assert [back[turned.index(i)] for i in range(len(keys))] == forth
    assert choose([], [], Balance())[0] == []
    names = bin_names(Balance(bins=3), 30)
    assert names == ["all in focus", "K 0 to 10", "K 10 to 20", "K 20 to 30", "K unknown"]
    places = [bin_of(k, False, Balance(bins=3), 30) for k in (0.0, 9.99, 10.0, 30.0)]
    assert places == [1, 1, 2, 3]
    assert (bin_of(None, False, Balance(bins=3), 30), bin_of(25.0, True, Balance(bins=3), 30)) == (4, 0)
