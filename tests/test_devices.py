"""A device computes what the CPU does, by the comparisons of ``python -m tests.gpu``; and the pretended device."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.gpu import compare
from tests.models import one_thread  # noqa: F401

pretended = pytest.mark.skipif(
    not hasattr(torch._C, "_acc"), reason="this PyTorch has no devices written in Python"
)


@pytest.mark.parametrize("name", compare.PLAIN)
def test_a_device_agrees_with_the_cpu(name: str, device: str) -> None:
    off, bound = compare.PLAIN[name](device, compare.SMALL)
    assert off <= bound


@pytest.mark.parametrize("name", compare.HOSTED)
def test_a_device_agrees_with_the_cpu_in_the_host(name: str, device: str, pack: ModuleType) -> None:
    off, bound = compare.HOSTED[name](pack, device)
    assert off <= bound


def test_what_is_apart_is_seen() -> None:
    one = torch.tensor([0.0, 1.0, 1000.0])
    assert compare.apart(one, one) == 0
    assert compare.apart(one + torch.tensor([1e-6, 0.0, 0.0]), one) == pytest.approx(1e-3)
    assert compare.apart(one * 1.01, one) == pytest.approx(0.01, rel=1e-3)
    assert compare.apart(one * torch.nan, one) == torch.inf


MIXED = """
import torch
from tests import pretended

card = pretended.insert()
there = torch.arange(6.0, device=card)
assert (there.device.type, there.cpu().tolist()) == (card, [0, 1, 2, 3, 4, 5])
assert float((there * torch.tensor(2.0))[3]) == 6  # a number goes along, as on a real device
there[[1, 2]] = 7
assert there[torch.tensor([2])].tolist() == [7]
waits = pretended.waits
assert there.sum() > 3
assert pretended.waits > waits
layer = torch.nn.Linear(6, 2)
weight = layer.weight
assert layer.to(card).weight is weight
layer(there[None]).sum().backward()
assert weight.grad.device.type == card
here = torch.ones(6)
refused = 0
for work in (
    lambda: there + here,
    lambda: torch.cat((there, here)),
    lambda: here[there > 2],
    lambda: layer(here[None]),
    lambda: here.add_(there),
    lambda: torch.where(there > 1, there, here),
):
    try:
        work()
    except RuntimeError as error:
        refused += "same device" in str(error)
try:
    there.numpy()
except TypeError:
    refused += 1
print(refused)
"""


@pretended
def test_the_pretended_device_refuses_what_a_real_one_does(repo: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MIXED], cwd=repo, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == "7", done.stderr[-2000:]


@pretended
def test_nothing_mixes_devices(repo: Path) -> None:
    """Models, gradients, training and the node, on a device that a mixture fails on, in the host."""
    parts = "step,attention,world,render node"
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu", "--device", "card", "--only", parts],
        cwd=repo,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    assert all(f"| {part} |" in done.stdout for part in parts.split(","))
    node = [line.split("|")[2] for line in done.stdout.splitlines() if line.startswith("| render node |")]
    assert [case.rpartition(": ")[2].strip() for case in node] == [
        "the edges alone",
        "K 5 after that",
        "K 5 at once",
    ]
