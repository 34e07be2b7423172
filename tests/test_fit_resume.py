"""Killed and resumed, spread over processes: the same losses, the same adapter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bokeh_ops.errors import BokehError
from tests import models
from tests.fit import config, losses, run, workshop  # noqa: F401
from tests.models import one_thread  # noqa: F401

# ruff: noqa: F811 (the fixture `workshop` is imported)

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@pytest.fixture(autouse=True)
def unloaded(pack: Any) -> Iterator[None]:
    yield
    models.unload()


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter.safetensors")


VARIANTS = {
    "sd15, adamw": ("sd15", ("optimizer.warmup=3",)),
    "flux, prodigy, average": ("flux", ("ema=0.9",)),
    "sd15, fp16": ("sd15", ("precision=fp16", "base.weights=fp32", "checkpointing=true")),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_halves_are_the_whole_bit_for_bit(workshop: Path, tmp_path: Path, variant: str) -> None:
    kind, overrides = VARIANTS[variant]
    assert run(kind, tmp_path / "whole", workshop, "steps=4", *overrides)
    assert run(kind, tmp_path / "halves", workshop, "steps=2", *overrides)
    assert run(kind, tmp_path / "halves", workshop, "steps=4", *overrides)
    assert losses(tmp_path / "halves") == losses(tmp_path / "whole")
    assert models.same_bits(adapter(tmp_path / "halves"), adapter(tmp_path / "whole"))
    assert len({line["loss"] for line in losses(tmp_path / "whole")}) == 4


def test_sampling_in_between_changes_nothing(workshop: Path, tmp_path: Path) -> None:
    """Samples patch query/key weights into the base and draw random numbers; neither may be felt by the training."""
    run("flux", tmp_path / "plain", workshop, "steps=3")
    run(
        "flux",
        tmp_path / "sampled",
        workshop,
        "steps=3",
        "samples.every=1",
        "samples.steps=2",
        "samples.k=[0, 20]",
        "samples.validation=6",
    )
    assert losses(tmp_path / "sampled") == losses(tmp_path / "plain")
    assert len(list((tmp_path / "sampled" / "samples").glob("*.png"))) == 4  # of the untrained adapter too


def start(folder: Path, *words: str, launch: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    root = Path(__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, *launch, "-m", "trainer", "fit", str(folder / "c.yaml"), *words],
        cwd=root,
        env={**os.environ, **ONE_THREAD, "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def lines(folder: Path) -> int:
    path = folder / "losses.jsonl"
    return path.read_text(encoding="utf-8").count("\n") if path.is_file() else 0


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is of POSIX")
def test_killed_or_ended_at_any_moment_it_goes_on_with_the_same_losses(
    workshop: Path, tmp_path: Path
) -> None:
    """Ctrl-C goes to workers that read ahead, too, in the midst of a step of several micro-batches."""
    overrides = ("steps=12", "checkpoint.every=2", "ema=0.9", "batch.total=8", "batch.micro=2")
    run("flux", tmp_path / "whole", workshop, *overrides)
    folder = tmp_path / "killed"
    folder.mkdir()
    text = config("flux", folder, workshop, *overrides, "data.workers=1")
    (folder / "c.yaml").write_text(text, encoding="utf-8")
    for after, number, status in ((3, signal.SIGKILL, -signal.SIGKILL), (7, signal.SIGINT, 130)):
        process = start(folder)
        while lines(folder) < after and process.poll() is None:
            time.sleep(0.01)
        assert process.poll() is None, process.communicate()[0]
        os.killpg(process.pid, number)
        said, _ = process.communicate(timeout=100)
        assert process.returncode == status, said
        assert "Traceback" not in said
        assert lines(folder) < 12
        last = max(int(each.name.removeprefix("step-")) for each in (folder / "checkpoints").glob("step-*"))
        assert number == signal.SIGKILL or last == lines(folder)  # all that was done is kept
    process = start(folder)
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said
    assert "Going on from" in said
    assert losses(folder) == losses(tmp_path / "whole")
    assert models.same_bits(adapter(folder), adapter(tmp_path / "whole"))


@pytest.mark.skipif(os.name == "nt", reason="signals are of POSIX")
def test_a_polite_end_is_an_interrupt_too() -> None:
    from trainer.loop import _asked_to_stop

    before = signal.getsignal(signal.SIGTERM)
    with _asked_to_stop() as asked:
        assert asked == [False]
        signal.raise_signal(signal.SIGTERM)
        assert asked == [True]
        assert signal.getsignal(signal.SIGTERM) == before  # the second one ends it at once
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def launched(folder: Path, *words: str) -> str:
    """What `fit` said, started by `accelerate launch` for two processes on a CPU, with nothing configured."""
    launch = ("-m", "accelerate.commands.launch", *words, "--num_processes", "2", "--num_machines", "1")
    launch += ("--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1")
    process = start(folder, launch=launch)
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said
    return said


def test_two_processes_make_the_losses_of_one(workshop: Path, tmp_path: Path) -> None:
    overrides = ("steps=3", "batch.total=8", "batch.micro=2")
    run("flux", tmp_path / "one", workshop, *overrides)
    folder = tmp_path / "two"
    folder.mkdir()
    text = config("flux", folder, workshop, *overrides, "device=auto")  # it finds out that there is no GPU
    (folder / "c.yaml").write_text(text, encoding="utf-8")
    # Errors of the rows are added up over the processes: a row that both or neither had computed would be seen.
    # Despite its name --multi_gpu is what starts several processes on a CPU too: --cpu starts one, and says nothing.
    said = launched(folder, "--multi_gpu", "--main_process_port", "0")
    assert "in 2 processes on cpu" in said
    assert said.count("3 of 3 steps done") == 1  # one run, told of once
    one, two = losses(tmp_path / "one"), losses(folder)
    assert [line["kind"] for line in two] == [line["kind"] for line in one]
    for name in ("loss", "gradient"):
        assert [line[name] for line in two] == pytest.approx([line[name] for line in one], rel=1e-5)
    assert two[0]["loss"] == one[0]["loss"]  # of the very same rows
    mine, theirs = adapter(tmp_path / "one"), adapter(folder)
    for name, value in mine.items():
        assert torch.allclose(value, theirs[name], rtol=1e-4, atol=1e-6), name


def test_several_asked_for_and_one_started_is_said() -> None:
    from trainer.processes import asked_for_several

    one = {"ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "no"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    assert asked_for_several({**one, **meeting})  # what `accelerate launch --cpu --num_processes 2` sets
    assert not asked_for_several(one)  # with --num_processes 1
    assert not asked_for_several(meeting)  # of a cluster, without accelerate
    assert not asked_for_several({**one, **meeting, "RANK": "0", "WORLD_SIZE": "1"})


def test_processes_that_did_not_find_one_another_do_not_train(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.processes import Processes

    Processes(cpu=True)  # this one's state is made, and is of one process
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BokehError, match="2 processes were started, and this one is connected to 0 others"):
        Processes(cpu=True)


def test_resuming_with_other_settings_is_refused(workshop: Path, tmp_path: Path) -> None:
    run("sd15", tmp_path, workshop, "steps=3")
    before = (tmp_path / "losses.jsonl").read_bytes()
    with pytest.raises(BokehError) as caught:
        run("sd15", tmp_path, workshop, "steps=6", "optimizer.lr=2e-4", "noise.offset=0")
    assert "noise.offset: 0.04 -> 0.0\n" in str(caught.value)
    assert "optimizer.lr: 0.0001 -> 0.0002\n" in str(caught.value)
    assert "steps" not in str(caught.value)
    assert (tmp_path / "losses.jsonl").read_bytes() == before
    assert run("sd15", tmp_path, workshop, "steps=4", "batch.micro=8", "samples.seed=4")  # these may change


def test_resuming_on_another_model_or_data_is_refused(workshop: Path, tmp_path: Path) -> None:
    from trainer import toy as demo
    from trainer.toy import make_toy, write_toy

    run("sd15", tmp_path / "run", workshop, "steps=3")
    other = tmp_path / "workshop"
    write_toy(other / "sd15.safetensors", make_toy("sd15", seed=4))
    demo.write_dataset(other / "data", photographs=9, sharp=6)
    with pytest.raises(BokehError, match=r"model: \w+ -> \w+") as caught:
        run("sd15", tmp_path / "run", other, "steps=6")
    assert "dataset: " in str(caught.value)


def test_a_checkpoint_of_another_architecture_is_an_error(workshop: Path, tmp_path: Path) -> None:
    import json

    run("sd15", tmp_path, workshop, "steps=3")
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    run("flux", tmp_path / "flux", workshop, "steps=3")
    (other,) = (tmp_path / "flux" / "checkpoints").iterdir()
    (checkpoint / "adapter.safetensors").write_bytes((other / "adapter.safetensors").read_bytes())
    with pytest.raises(BokehError, match="checkpoint of another architecture"):
        run("sd15", tmp_path, workshop, "steps=6")
    (checkpoint / "adapter.safetensors").write_bytes(b"cut")
    with pytest.raises(BokehError, match="cannot be read"):
        run("sd15", tmp_path, workshop, "steps=6")
    assert json.loads((checkpoint / "run.json").read_text())["settings"]["base"]["architecture"] == "sd15"


def test_a_half_written_checkpoint_is_none(workshop: Path, tmp_path: Path) -> None:
    from trainer import checkpoint

    run("sd15", tmp_path, workshop, "steps=3")
    folder = tmp_path / "checkpoints"
    (folder / ".step-00000007.tmp").mkdir()
    (folder / "step-00000003" / "state.pt").touch()
    assert checkpoint.latest(folder) == folder / "step-00000003"
    run("sd15", tmp_path, workshop, "steps=7", "checkpoint.every=2", "checkpoint.keep=2")
    assert sorted(entry.name for entry in folder.iterdir()) == ["step-00000006", "step-00000007"]
