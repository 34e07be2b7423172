"""The one loop, on a recipe of a few numbers: several learners and optimisers, several turns a step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.learner import Average, Learner, clip_gradients
from trainer.log import LOSSES, VALIDATION, read_lines
from trainer.loop import Diverged, Loop, Schedule
from trainer.processes import Alone
from trainer.recipes.recipe import Recipe, Rows, Turn
from trainer.seeded import normal

ROWS = 4


@dataclass
class Job:
    step: int
    turn: int
    micro: int


class Duel(Recipe):
    """A generator and its opponent, which moves twice a step first; each with an optimiser of its own."""

    def __init__(self, spoilt: int = -1, processes: Alone | None = None) -> None:
        self.spoilt, self.processes = spoilt, processes or Alone()
        torch.manual_seed(1)
        self.networks = {"generator": nn.Linear(3, 2), "opponent": nn.Linear(2, 1)}
        self.learners = {
            name: Learner(
                network.state_dict(),
                list(network.parameters()),
                torch.optim.AdamW(network.parameters(), lr=0.1),
                lambda step: 0.1 / (1 + step),
                clip=1.0,
                average=Average(network.state_dict(), 0.9) if name == "generator" else None,
            )
            for name, network in self.networks.items()
        }
        self.looked: list[int] = []

    def trainables(self) -> Mapping[str, Learner]:
        return self.learners

    def turns(self, step: int) -> list[Turn]:
        rank, world = self.processes.rank, self.processes.world
        jobs = [[Job(step, turn, micro) for micro in range(2)][rank::world] for turn in range(3)]
        made = [Turn(("opponent",), jobs[turn], ROWS, {"told": 1.0}, "opponent") for turn in range(2)]
        return [*made, Turn(("generator",), jobs[2], ROWS, {"fooled": 1.0, "size": 0.1}, "generator")]

    def losses(self, turn: Turn, fed: Job) -> Rows:
        half = ROWS // 2
        made = self.networks["generator"](normal((half, 3), 0, "x", fed.step, fed.turn, fed.micro))
        slots = range(fed.micro * half, fed.micro * half + half)
        told = [{"photograph": f"{fed.step}-{slot}"} for slot in slots]
        if turn.kind == "generator":
            if fed.step == self.spoilt and fed.micro == 1:
                made = made * torch.nan
            losses = {"fooled": -self.networks["opponent"](made)[:, 0], "size": made.square().mean(1)}
            return Rows(losses, slots, told)
        return Rows({"told": self.networks["opponent"](made.detach())[:, 0].square()}, slots, told)

    def record(self) -> dict[str, Any]:
        return {"settings": {"rows": ROWS}, "identities": {}}

    def validation(self) -> dict[str, float]:
        return {"size": float(self.networks["generator"](torch.ones(3)).square().mean())}

    def samples(self, step: int) -> Tensor | None:
        self.looked.append(step)
        return None


def weights(loop: Loop) -> list[Tensor]:
    return [value.clone() for each, _ in loop.state.tensors().values() for value in each.values()]


def logged(folder: Path) -> list[dict[str, Any]]:
    dropped = ("seconds", "pictures_per_second", "memory_gb")
    return [{k: v for k, v in line.items() if k not in dropped} for line in read_lines(folder / LOSSES)]


def test_several_learners_go_on_bit_for_bit(tmp_path: Path) -> None:
    whole = Loop(Duel(), Schedule(6, save=100), tmp_path / "whole")
    assert whole.run()
    assert not Loop(Duel(), Schedule(6, save=100, until=4), tmp_path / "parts").run()
    parts = Loop(Duel(), Schedule(6, save=100), tmp_path / "parts")
    assert parts.state.step == 4
    assert parts.run()
    assert all(torch.equal(one, other) for one, other in zip(weights(whole), weights(parts), strict=True))
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    assert {"opponent/told", "generator/fooled", "generator/size", "generator/lr", "loss"} <= set(
        logged(tmp_path / "whole")[0]
    )
    folder = tmp_path / "whole" / "checkpoints" / "step-00000006"
    assert {file.stem for file in folder.glob("*.safetensors")} == {
        "generator", "generator-average", "opponent",
    }  # fmt: skip


def test_a_turn_changes_its_own_learners_alone(tmp_path: Path) -> None:
    recipe = Duel()
    loop = Loop(recipe, Schedule(1, save=1), tmp_path)
    before = {name: network.weight.detach().clone() for name, network in recipe.networks.items()}
    turns = recipe.turns(0)
    loop._turn(turns[0], iter(turns[0].jobs), False)
    assert torch.equal(recipe.networks["generator"].weight, before["generator"])
    assert not torch.equal(recipe.networks["opponent"].weight, before["opponent"])


def test_gradients_of_micro_batches_add_up_to_those_of_the_step(tmp_path: Path) -> None:
    """By hand: the mean over all rows of the step, one plain step of SGD."""
    recipe = Duel()
    learner = recipe.learners["generator"]
    learner.optimizer = torch.optim.SGD(learner.parameters, lr=0.1)
    learner.clip = 0.0
    turn = recipe.turns(0)[2]
    rows = [recipe.losses(turn, job).losses for job in turn.jobs]
    mean = torch.cat([each["fooled"] + 0.1 * each["size"] for each in rows]).mean()
    (gradient,) = torch.autograd.grad(mean, [recipe.networks["generator"].weight])
    expected = recipe.networks["generator"].weight.detach() - 0.1 * gradient
    values, _ = Loop(recipe, Schedule(1, save=1), tmp_path)._turn(turn, iter(turn.jobs), False)
    assert torch.allclose(recipe.networks["generator"].weight.detach(), expected, atol=1e-7)
    assert values["loss"] == pytest.approx(float(mean.detach()))


def test_it_is_looked_at_before_the_first_step_and_after_the_last(tmp_path: Path) -> None:
    recipe = Duel()
    Loop(recipe, Schedule(5, save=100, samples=2), tmp_path).run()
    assert recipe.looked == [0, 2, 4, 5]
    assert [line["step"] for line in read_lines(tmp_path / VALIDATION)] == [0, 2, 4, 5]
    never = Duel()
    Loop(never, Schedule(2, save=100), tmp_path / "never").run()
    assert not never.looked


def test_what_is_no_number_stops_it_and_is_described(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"step 3 is not a number \(first at the photograph 2-2\)"):
        Loop(Duel(spoilt=2), Schedule(5, save=1), tmp_path).run()
    (report,) = tmp_path.glob("bad-batch-*.json")
    assert [row["loss"] for row in json.loads(report.read_text())["rows"]][2:] == ["nan", "nan"]
    assert Loop(Duel(), Schedule(5, save=1), tmp_path).state.step == 2


def test_one_bar_with_what_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other programs' bars do not break it up."""
    import tqdm

    class Loud(Duel):
        def samples(self, step: int) -> None:
            list(tqdm.tqdm(range(3), desc="Somebody else's"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr.isatty", lambda: True)
        Loop(Loud(), Schedule(2, save=100, samples=1), tmp_path).run()
    said = capsys.readouterr().err
    assert "Somebody else's" not in said
    assert "pictures/s" in said
    assert " GB" in said
    line = read_lines(tmp_path / LOSSES)[0]
    assert line["pictures_per_second"] > 0
    assert line["memory_gb"] > 0


def test_clipping() -> None:
    gradients = [torch.tensor([3.0]), torch.tensor([4.0])]
    assert clip_gradients(gradients, 0.0) == 5.0
    assert clip_gradients(gradients, 1.0) == 5.0
    assert [float(each) for each in gradients] == pytest.approx([0.6, 0.8])
