"""What the tests of `fit` share: toy bases with random weights, a small data set, settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.host.setup import host_folder
from trainer import toy as demo
from trainer.config import Fit
from trainer.settings import parse_settings

KINDS = ("sd15", "flux")
TOLD_OF_TIME = ("seconds", "pictures_per_second", "memory_gb")


@pytest.fixture(scope="session")
def workshop(pack: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a toy of either kind (``sd15.safetensors``, ``flux.safetensors``) and photographs (``data``)."""
    from trainer.toy import make_toy, write_toy

    folder = tmp_path_factory.mktemp("workshop")
    for kind in KINDS:
        write_toy(folder / f"{kind}.safetensors", make_toy(kind, seed=3))
    demo.write_dataset(folder / "data", photographs=10, sharp=6)
    return folder


def config(kind: str, folder: Path, workshop: Path, *overrides: str) -> str:
    """A configuration for a short run on a toy, as YAML."""
    lines = [
        f"out: {folder}",
        f"base: {{architecture: {kind}, checkpoint: {workshop / f'{kind}.safetensors'}}}",
        f"data: {{dataset: {workshop / 'data'}, workers: 0}}",
        f"comfyui: {host_folder()}",
        f"cache: {{folder: {workshop / 'cache'}}}",
        "steps: 6",
        "precision: fp32",
        "device: cpu",
        "checkpointing: false",
        "tensorboard: false",
        "adapter: {rank: 4, query_key_rank: 2, context: 8, hidden: 8}",
        "batch: {total: 8, micro: 4}",
        "contrastive: {levels: 2, variants: 2}",
        "samples: {every: 0}",
        "checkpoint: {every: 3}",
    ]
    made = parse_settings("\n".join(lines), Fit, "test", overrides)
    from trainer.settings import to_yaml

    return to_yaml(made)


def settings(kind: str, folder: Path, workshop: Path, *overrides: str) -> Fit:
    return parse_settings(config(kind, folder, workshop, *overrides), Fit, "test")


def run(kind: str, folder: Path, workshop: Path, *overrides: str) -> bool:
    """`fit` in this process."""
    from trainer.recipes.bokeh.recipe import fit

    return fit(settings(kind, folder, workshop, *overrides), folder)


def losses(folder: Path, without: Sequence[str] = TOLD_OF_TIME) -> list[dict[str, Any]]:
    """The log of a run, but what differs from run to run."""
    lines = (folder / "losses.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in without} for line in lines]


def toy_depth(photograph: Any) -> Any:
    """A provider of depth: the middle of the picture is at 0.5 m, the rest at 2 m."""
    depth = np.full((photograph.image.height, photograph.image.width), 2.0, dtype=np.float32)
    height, width = depth.shape
    depth[height // 4 : -height // 4, width // 4 : -width // 4] = 0.5
    return depth
