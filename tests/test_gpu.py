"""``python -m tests.gpu`` at thumbnail sizes: every row is there, what is wrong fails, and time is kept."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from bokeh_ops import render as renderers
from tests import golden
from tests.gpu import board, compare, measure, pack, parts, standins, suite
from tests.gpu.board import Row, judged, run_part, table, watch
from tests.gpu.budgets import BUDGETS, LAST, WHOLE
from tests.models import one_thread  # noqa: F401

TINY = parts.Setting("cpu", tiny=True)


def rows_of(part: str, cases: Callable[[], board.Cases] | None = None, seconds: float = 600) -> list[Row]:
    events: list[dict[str, Any]] = []
    run_part(part, cases or (lambda: parts.PARTS[part](TINY)), time.time() + seconds, events.append)
    assert events[0] == {"begin": part}
    assert events[-1] == {"end": part}
    return [Row(**event) for event in events if "part" in event]


# ---- the parts ----


def test_the_parts_end_in_under_nine_minutes() -> None:
    assert list(parts.PARTS) == list(BUDGETS)
    assert list(BUDGETS)[-1] == LAST
    assert sum(BUDGETS.values()) <= WHOLE
    assert WHOLE + board.GRACE < 540


def test_parity(shared: Path, pack: ModuleType) -> None:
    found = {row.case: row for row in rows_of("parity")}
    for name in ("flux_official", "sd15_reference", "bokehdiff_official", "genfocus_official"):
        for dtype in ("fp32", "bf16", "fp16"):
            assert found[f"{name}, {dtype}"].outcome == board.OK


def test_without_golden_outputs_parity_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BOKEH_SHARED", str(tmp_path))
    (row,) = rows_of("parity")
    assert row.outcome == board.LEFT_OUT
    assert "BOKEH_SHARED" in row.note


def test_agreement_names_every_comparison() -> None:
    cases = [name for name, _ in parts.agreement(TINY)]
    assert cases == [*compare.PLAIN, *compare.HOSTED]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("attention", [f"2 x 32 tokens, 2 rows: {v}" for v in ("plain", "literal", "ours")]),
        (
            "step",
            [f"{m}, small, 2 rows: {v}" for m in ("SD1.5", "FLUX") for v in ("plain", "adapter", "grounded")],
        ),
    ],
)
def test_what_is_measured_by_the_plain_one(pack: ModuleType, part: str, expected: list[str]) -> None:
    found = rows_of(part)
    assert [row.case for row in found] == expected
    assert [row.outcome for row in found] == [""] * len(found), [row.note for row in found]
    for row in found:
        assert row.times == (1.0 if row.case.endswith("plain") else pytest.approx(row.times))
        assert row.seconds
        assert row.launches
    by = {row.case.rpartition(": ")[2]: row for row in found}
    last = "ours" if part == "attention" else "grounded"
    assert (by[last].launches or 0) > (by["plain"].launches or 0)


def test_lens_models(pack: ModuleType) -> None:
    found = {row.case: row for row in rows_of("lens models")}
    models = ["layered", "layered, cat's eye", "classical", "thin_lens", "bokehme"]
    expected = {f"24 x 16: {name}{changed}" for name in models for changed in ("", ", K changed")}
    assert set(found) == expected | {"24 x 16: layered, tiles of 512"}
    assert not [row for row in found.values() if row.bad]
    assert re.fullmatch(r"\d+ kernels found again, \d+ made", found["24 x 16: layered, cat's eye"].note)


def test_a_model_that_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch, pack: ModuleType) -> None:
    monkeypatch.setattr(parts, "free_bytes", lambda _device: 1000)
    found = rows_of("step")
    assert {row.outcome for row in found} == {board.LEFT_OUT}
    assert re.search(r"needs \d+ GB of memory, of which 0 GB are free", found[0].note)


def test_what_a_card_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the answers put in: nothing here can say that a card gives them."""
    answers = {
        "synchronize": None, "empty_cache": None, "reset_peak_memory_stats": None, "memory_allocated": 10**6,
        "max_memory_allocated": 5 * 10**6, "mem_get_info": (7, 9),
        "get_device_properties": SimpleNamespace(name="A card", total_memory=80 * 2**30),
    }  # fmt: skip
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)

    def broken(**_: Any) -> None:
        raise RuntimeError("CUPTI_ERROR")

    monkeypatch.setattr("torch.profiler.profile", broken)
    found = measure.cost(lambda: None, "cuda")
    assert found["megabytes"] == 4
    assert found["note"] == "not profiled: RuntimeError: CUPTI_ERROR"

    class Profile:
        def __init__(self, activities: Any) -> None:
            assert [activity.name for activity in activities] == ["CUDA"]

        def __enter__(self) -> Profile:
            return self

        def __exit__(self, *_: Any) -> None:
            pass

        def key_averages(self) -> list[Any]:
            entries = (
                ("gemm", 5, "CUDA"),
                ("cudaLaunchKernel", 5, "CPU"),
                ("cudaStreamSynchronize", 2, "CPU"),
            )
            return [
                SimpleNamespace(key=key, count=count, device_type=SimpleNamespace(name=where))
                for key, count, where in entries
            ]

    monkeypatch.setattr("torch.profiler.profile", Profile)
    found = measure.cost(lambda: None, "cuda")
    assert (found["launches"], found["syncs"]) == (5, 2)
    assert measure.about("cuda").startswith("A card, 80 GiB, CUDA ")
    assert measure.free_bytes("cuda") == 7


# ---- what is wrong ----


def test_a_wrong_renderer_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def render(*args: Any, **kwargs: Any) -> Any:
        out = renderers.render(*args, **kwargs)
        calls.append(1)
        return out if len(calls) % 2 else out._replace(image=out.image + 0.01)

    monkeypatch.setattr(compare, "render", render)
    cases = [(name, case) for name, case in parts.agreement(TINY) if name in ("classical", "thin_lens")]
    assert [row.outcome for row in rows_of("agreement", lambda: cases)] == [board.OFF] * 2


def test_wrong_outputs_of_the_nodes_are_off(
    shared: Path, pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = golden.run
    monkeypatch.setattr(golden, "run", lambda *args: right(*args) * 1.001)
    cases = [(name, case) for name, case in parts.parity(TINY) if name == "sd15_reference, fp32"]
    (row,) = rows_of("parity", lambda: cases)
    assert row.outcome == board.OFF


@pytest.mark.parametrize(("off", "outcome"), [(1e-3, "ok"), (2e-3, "OFF"), (float("nan"), "OFF"), (None, "")])
def test_a_result_is_judged_by_its_bound(off: float | None, outcome: str) -> None:
    assert judged(Row("a", off=off, bound=1e-3)).outcome == outcome


def test_what_fails_is_a_row_and_the_rest_goes_on() -> None:
    def wrong() -> board.Found:
        raise ValueError("no such thing")

    found = rows_of("a", lambda: [("first", wrong), ("second", lambda: {"off": 0.0, "bound": 1.0})])
    assert [row.outcome for row in found] == [board.FAILED, board.OK]
    assert "ValueError: no such thing" in found[0].note

    def broken() -> board.Cases:
        yield "first", dict
        raise KeyError("half way")

    assert [row.outcome for row in rows_of("a", broken)] == ["", board.FAILED]


def test_an_error_that_breaks_the_card_ends_the_process() -> None:
    def wrong() -> board.Found:
        raise RuntimeError("CUDA error: device-side assert triggered")

    assert not run_part("a", lambda: [("first", wrong)], time.time() + 9, lambda _event: None)


def test_after_the_budget_cases_are_rows_without_time() -> None:
    found = rows_of("a", lambda: [("first", lambda: time.sleep(0.2) or {}), ("second", dict)], 0.1)
    assert [row.outcome for row in found] == ["", board.NO_TIME]
    assert found[1].bad


# ---- the watcher ----

WORKER = """
import json, os, sys, time
events, parts = open(sys.argv[1], "a"), sys.argv[2].split(",")
def tell(**event):
    events.write(json.dumps(event) + "\\n")
    events.flush()
tell(about="a card")
for part in parts:
    tell(begin=part)
    tell(case="one")
    if part == "hangs":
        time.sleep(60)
    if part == "dies":
        print("Segmentation fault", flush=True)
        os._exit(3)
    tell(part=part, case="one", outcome="ok", off=0.0, bound=1.0)
    tell(end=part)
"""


def watched(
    budgets: dict[str, float], tmp_path: Path, seconds: float = 30
) -> tuple[str, dict[str, Row], float]:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)

    def command(left: Sequence[str], events: Path, _end: float) -> list[str]:
        return [sys.executable, "-S", str(script), str(events), ",".join(left)]

    start = time.monotonic()
    about, found = watch(command, budgets, seconds, tmp_path, lambda _line: None)
    return about, {row.part: row for row in found}, time.monotonic() - start


def test_what_hangs_or_dies_costs_its_own_part_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "GRACE", 0.2)
    about, found, taken = watched({"first": 5, "hangs": 0.3, "dies": 5, "last": 5}, tmp_path)
    assert about == "a card"
    assert {part: row.outcome for part, row in found.items()} == {
        "first": "ok", "hangs": board.STOPPED, "dies": board.FAILED, "last": "ok",
    }  # fmt: skip
    assert found["hangs"].case == "one"
    assert "ended with 3: Segmentation fault" in found["dies"].note
    assert taken < 10


def test_the_whole_ends_in_time(tmp_path: Path) -> None:
    _, found, taken = watched({"hangs": 60, "last": 60}, tmp_path, 2.0)
    assert {part: row.outcome for part, row in found.items()} == {
        "hangs": board.STOPPED, "last": board.NO_TIME,
    }  # fmt: skip
    assert taken < 4


def test_the_table() -> None:
    rows = [
        Row("parity", "flux, fp32", "ok", 1.8e-5, 5e-5),
        Row(
            "step",
            "SD1.5: plain",
            first=0.5,
            seconds=0.0301,
            times=1.0,
            launches=900,
            syncs=2,
            megabytes=812.4,
        ),
        Row("world", "", "failed", note="Traceback\n  KeyError"),
    ]
    assert table("A card.", rows) == (
        "A card.\n\n"
        "| part | case | outcome | off by | bound | first, s | s | x | launches | waits | peak MB |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|\n"
        "| parity | flux, fp32 | ok | 1.8e-05 | 5e-05 |  |  |  |  |  |  |\n"
        "| step | SD1.5: plain |  |  |  | 0.5 | 0.0301 | 1.00 | 900 | 2 | 812 |\n"
        "| world |  | failed |  |  |  |  |  |  |  |  |\n"
        "\n* world: Traceback\n        KeyError\n"
    )


# ---- the tests that take a device ----


def device_tests(folder: Path) -> list[str]:
    """Arguments that have pytest run these alone."""
    (folder / "test_it.py").write_text(
        "import time\n"
        "import pytest\n"
        "pytestmark = pytest.mark.device\n"
        "@pytest.mark.parametrize('where', ['abacus', 'other'])\n"
        "@pytest.mark.parametrize('number', [1, 2, 3, 4])\n"
        "def test_it(where, number):\n"
        "    if number == 3:\n"
        "        pytest.skip('no beads')\n"
        "    if number == 4:\n"
        "        time.sleep(2)\n"
        "    assert number != 2\n"
    )
    return [str(folder), "--rootdir", str(folder), "-o", "addopts=", "-o", "markers=device: on one"]


def test_tests_are_rows(tmp_path: Path) -> None:
    arguments = [*device_tests(tmp_path), "-k", "abacus and not 4"]
    found = dict(suite.outcomes("abacus", time.time() + 60, *arguments))
    assert {name: row["outcome"] for name, row in found.items()} == {
        "test_it.py: test_it[2-abacus]": board.FAILED,
        "test_it.py: test_it[3-abacus]": board.LEFT_OUT,
        "test_it.py: 1 passed": board.OK,
    }
    assert "assert 2 != 2" in found["test_it.py: test_it[2-abacus]"]["note"]
    assert "no beads" in found["test_it.py: test_it[3-abacus]"]["note"]


def test_tests_that_take_too_long_leave_what_they_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "_SPARE", 0.0)
    arguments = [*device_tests(tmp_path), "-p", "no:terminalprogress"]
    script = tmp_path / "test_it.py"
    script.write_text(script.read_text().replace("sleep(2)", "sleep(60)"))
    found = dict(suite.outcomes("abacus", time.time() + 8, *arguments))
    assert found["test_it.py: 1 passed"]["outcome"] == board.OK
    assert found["test_it.py: test_it[2-abacus]"]["outcome"] == board.FAILED
    assert found["the rest"]["outcome"] == board.NO_TIME


def test_without_pytest_the_comparisons_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(board.LeftOut, match="no pytest here"):
        list(suite.outcomes("cuda", time.time()))


# ---- what a bare machine gets ----


def test_what_is_packed_has_a_limit(tmp_path: Path) -> None:
    with pytest.raises(pack.TooLarge, match=r"would be \d+\.\d MiB, and 1\.0 may be carried. Most of it: "):
        pack.fill(tmp_path / "packed", 2**20)
    assert not (tmp_path / "packed").exists()
    (tmp_path / "thing").touch()
    with pytest.raises(FileExistsError, match="is not empty"):
        pack.fill(tmp_path)


BARE = ("torchgen", "functorch", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "filelock", "fsspec")
"""What torch itself needs."""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="links packages into a bare environment")
@pytest.mark.skipif(
    importlib.util.find_spec("comfy_aimdo") is not None,
    reason="later hosts import packages that are compiled, which are not packed",
)
def test_the_command_runs_with_what_is_packed_alone(repo: Path, shared: Path, tmp_path: Path) -> None:
    """A Python that has what the list expects and nothing else, this repository, and the packed folder."""
    sizes = pack.fill(tmp_path / "packed")
    assert sum(sizes.values()) < pack.LIMIT
    assert {"host", "golden outputs", "einops", "torchsde"} <= {name for name, size in sizes.items() if size}
    venv.create(tmp_path / "bare", symlinks=True)
    python = tmp_path / "bare" / "bin" / "python"
    ours, bare = (
        Path(next((root / "lib").glob("python*/site-packages"))) for root in (_prefix(), tmp_path / "bare")
    )
    for name in (*standins.EXPECTED, *BARE):
        for found in [
            *ours.glob(name),
            *ours.glob(f"{name}.py"),
            *ours.glob(f"_{name}"),
            *ours.glob(f"{name}.libs"),
        ]:
            (bare / found.name).symlink_to(found)
    (bare / "pillow.libs").symlink_to(ours / "pillow.libs")
    kept = {key: os.environ[key] for key in ("PATH", "OMP_NUM_THREADS", "HOME", "LANG") if key in os.environ}
    done = subprocess.run(
        ["sh", str(tmp_path / "packed" / "run.sh"), "--tiny", "--only", "parity,step,world,render node"],
        cwd=repo,
        env={**kept, "BOKEH_PYTHON": str(python)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "Stand-ins for torchvision, transformers" in done.stdout
    assert "| parity | flux_official, bf16 | ok |" in done.stdout
    assert "| world | sd15, 2 steps of 2 pictures, cpu | ok |" in done.stdout


def _prefix() -> Path:
    return Path(torch.__file__).parents[4]


def test_a_stand_in_gives_whatever_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standins, "STOOD_IN", ("bokeh_absent", "json"))
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    assert standins.stand_in() == ["bokeh_absent"]
    from bokeh_absent.deep import Thing, function  # type: ignore[import-not-found]

    class Derived(Thing):
        def __init__(self, number: int) -> None:
            self.number = number

    assert Derived(3).number == 3
    assert function(1)(2) is Thing
    for name in [name for name in sys.modules if name.startswith("bokeh_absent")]:
        del sys.modules[name]


def test_a_part_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from tests.gpu.__main__ import main

    with pytest.raises(SystemExit):
        main(["--only", "parity,speed"])
    assert "no part named speed; there are parity, agreement" in capsys.readouterr().err
