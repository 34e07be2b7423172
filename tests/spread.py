"""Distilling with weights spread over the processes that `accelerate launch` starts: what each of them does in a test.

    accelerate launch ... -m tests.spread FOLDER...

Each folder has a configuration ``c.yaml``, which is run for two steps. Of whole networks samples are made, and it is
stopped after the first step and goes on from the checkpoint. Then each process writes ``share-RANK.json``: the bytes
that it holds, and those of the whole.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch


def run(folder: Path, processes: Any) -> None:
    from trainer.loop import Loop, Schedule
    from trainer.recipes.dmd.config import Distil
    from trainer.recipes.dmd.recipe import Dmd
    from trainer.settings import parse_settings
    from trainer.sharding import local

    settings = parse_settings((folder / "c.yaml").read_text(encoding="utf-8"), Distil, "c").resolved()
    whole = settings.lora.rank == 0

    def part(first: int, last: int) -> Dmd:
        recipe = Dmd(settings, folder, processes)
        assert recipe.together
        loop = Loop(recipe, Schedule(2, 1, samples=2 if whole else 0, until=last), folder, processes)
        assert loop.state.step == first
        loop.run()
        return recipe

    if whole:
        part(0, 1)
    recipe = part(1 if whole else 0, 2)
    learner = recipe.learners["fake"]
    averages = [value for each in learner.optimizer.state.values() for value in each.values() if value.ndim]
    held: dict[str, Any] = {
        "backbone": list(recipe.base.patcher.model.diffusion_model.parameters()),
        "trained": learner.parameters,
        "averages": averages,
    }
    found = {
        name: [sum(local(value).nbytes for value in values), sum(4 * value.numel() for value in values)]
        for name, values in held.items()
    }
    (folder / f"share-{processes.rank}.json").write_text(json.dumps(found), encoding="utf-8")


def main() -> None:
    from trainer.processes import Processes

    torch.set_num_threads(1)
    processes = Processes(cpu=True)
    for folder in sys.argv[1:]:
        run(Path(folder), processes)
    processes.close()


if __name__ == "__main__":
    main()
