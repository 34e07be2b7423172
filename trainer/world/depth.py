"""Depth of a generated picture: a small network that the world's exact depth has taught.

What comes out of a generator has no depth. The network is to the world what a network that measures metres is to
photographs.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.data import Dataset
from trainer.world.mask import MainThing, new_network, read_network, teach


class Depth(nn.Module):
    """Pictures ``[N, 3, S, S]``, 0..1, to disparity ``[N, 1, S, S]`` in dioptres, above 0; S a multiple of 16."""

    def __init__(self) -> None:
        super().__init__()
        self.network = MainThing()

    def forward(self, pictures: Tensor) -> Tensor:
        return F.softplus(self.network(pictures))


def train_depth(dataset: Dataset, steps: int, batch: int = 16, seed: int = 0) -> Depth:
    """Teach the network the disparity of a data set of the world."""
    network = new_network(Depth, seed)
    teach(network, dataset, lambda sample: sample.disparity, F.l1_loss, steps, batch, seed)
    return network


@torch.no_grad()
def depth_errors(network: Depth, dataset: Dataset, indices: Iterable[int]) -> dict[str, float]:
    """Means over pictures.

    Returns:
        ``all``: difference of disparity, dioptres; ``main``: that inside the main thing, as a share of its disparity;
        ``edges``: that within 2 pixels of an edge of depth, dioptres.
    """
    found: dict[str, list[Tensor]] = {"all": [], "main": [], "edges": []}
    for index in indices:
        sample = dataset.sample(index)
        picture = torch.from_numpy(sample.image).movedim(-1, 0)[None].float() / 255
        true, inside = torch.from_numpy(sample.disparity), torch.from_numpy(sample.mask) > 0.5
        off = (network(picture)[0, 0] - true).abs()
        near, far = F.max_pool2d(true[None, None], 5, 1, 2), -F.max_pool2d(-true[None, None], 5, 1, 2)
        found["all"].append(off.mean())
        found["main"].append((off[inside] / true[inside]).mean())
        found["edges"].append(off[(near - far)[0, 0] > 0.3].mean())
    return {name: float(torch.stack(each).mean()) for name, each in found.items()}


def read_depth(path: Path) -> Depth:
    """One that the command has written."""
    return read_network(path, Depth())
