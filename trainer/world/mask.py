"""Where the main thing is in a generated picture: a small network that the world's exact masks have taught.

What is in focus must not change with K. In a picture of the world its place is known; in a generated one it is not,
so it is found by a network that has seen the world at every K.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.data import Dataset, Sample
from trainer.files import replace_file
from trainer.seeded import generator as draws

SHIPPED = Path(__file__).with_name("mask.safetensors")
"""Weights that come with the project."""
EDGE = 2
"""Pixels that a mask is shrunk by: the rim of a sharp thing mixes with what is blurred behind it."""
LEAST_PIXELS = 40
"""A smaller mask is not measured: nothing was found that is in focus."""


def _layer(inside: int, outside: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride, padding=1), nn.GroupNorm(outside // 8, outside), nn.SiLU()
    )


class MainThing(nn.Module):
    """Pictures ``[N, 3, S, S]``, 0..1, to the logits of the main thing's mask ``[N, 1, S, S]``; S a multiple of 16.

    Args:
        width: channels of the first layer.
        maps: how many are told of each pixel, 1 for the mask.
    """

    def __init__(self, width: int = 16, maps: int = 1) -> None:
        super().__init__()
        self.enter = _layer(12, width)  # of 2 x 2 pixels: a quarter of the work
        self.down = nn.ModuleList(_layer(width * 2**n, width * 2 ** (n + 1), 2) for n in range(3))
        self.deep = _layer(width * 8, width * 8)
        self.up = nn.ModuleList(_layer(width * 3 * 2**n, width * 2**n) for n in reversed(range(3)))
        self.leave = nn.Conv2d(width, 4 * maps, 3, padding=1)

    def forward(self, pictures: Tensor) -> Tensor:
        kept = [self.enter(F.pixel_unshuffle(pictures * 2 - 1, 2))]
        for layer in self.down:
            kept.append(layer(kept[-1]))
        x = self.deep(kept.pop())
        for layer in self.up:
            x = layer(torch.cat((F.interpolate(x, scale_factor=2.0), kept.pop()), 1))
        return F.pixel_shuffle(self.leave(x), 2)

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        """The deepest features, averaged over the picture, ``[N, C]``."""
        x = self.enter(F.pixel_unshuffle(pictures * 2 - 1, 2))
        for layer in self.down:
            x = layer(x)
        return self.deep(x).mean((2, 3))

    @torch.no_grad()
    def mask(self, pictures: Tensor, certain: float = 0.5) -> Tensor:
        """Bool ``[N, S, S]``: where the main thing is more likely than ``certain``."""
        return self(pictures).sigmoid()[:, 0] > certain


def inside(mask: Tensor) -> Tensor | None:
    """The part of a mask, bool ``[S, S]``, that lies well inside it; None where too little is left."""
    shrunk = -F.max_pool2d(-mask.float()[None, None], 2 * EDGE + 1, 1, EDGE)[0, 0] > 0.5
    return shrunk if int(shrunk.sum()) >= LEAST_PIXELS else None


def train_mask(dataset: Dataset, steps: int, batch: int = 16, seed: int = 0) -> MainThing:
    """Teach the network the masks of a data set of the world, mirrored at random."""
    network = new_network(MainThing, seed)
    loss = F.binary_cross_entropy_with_logits
    teach(network, dataset, lambda sample: sample.mask, loss, steps, batch, seed)
    return network


Network = TypeVar("Network", bound=nn.Module)
New = TypeVar("New")


def new_network(kind: Callable[[], New], seed: int) -> New:
    """One that has learnt nothing, the same for a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind()


def teach(
    network: nn.Module,
    dataset: Dataset,
    wanted: Callable[[Sample], np.ndarray],
    loss: Callable[[Tensor, Tensor], Tensor],
    steps: int,
    batch: int,
    seed: int,
    rate: float = 4e-3,
    longest: float = math.inf,
) -> None:
    """Teach a network what is exactly known of pictures of the world, mirrored at random.

    Args:
        network: pictures ``[N, 3, S, S]``, 0..1, to maps ``[N, C, S, S]``.
        dataset: pictures.
        wanted: map ``[S, S]`` of one.
        loss: of what the network says and what is wanted, ``[N, 1, S, S]``.
        steps, batch, seed: of the training.
        rate: of learning, at its highest.
        longest: a longer gradient is shortened to it.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    for step in range(steps):
        chance = draws(seed, "mask", step)
        samples = [dataset.sample(int(index)) for index in chance.integers(len(dataset), size=batch)]
        pictures = torch.stack([torch.from_numpy(s.image) for s in samples]).movedim(-1, 1).float() / 255
        maps = torch.stack([torch.from_numpy(wanted(s)) for s in samples])[:, None]
        if chance.random() < 0.5:
            pictures, maps = pictures.flip(3), maps.flip(3)
        error = loss(network(pictures), maps)
        optimizer.zero_grad()
        error.backward()
        nn.utils.clip_grad_norm_(network.parameters(), longest)
        optimizer.step()
        schedule.step()


def overlap(network: MainThing, dataset: Dataset, indices: Iterable[int]) -> float:
    """Mean intersection over union of found and true masks."""
    found = []
    for index in indices:
        sample = dataset.sample(index)
        mask = network.mask(torch.from_numpy(sample.image).movedim(-1, 0)[None].float() / 255)[0]
        true = torch.from_numpy(sample.mask) > 0.5
        found.append(float((mask & true).sum()) / max(float((mask | true).sum()), 1.0))
    return sum(found) / len(found)


def write_network(path: Path, network: nn.Module) -> None:
    """Weights in half precision."""
    state = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    replace_file(path, lambda temporary: save_file(state, temporary))


def read_network(path: Path, network: Network) -> Network:
    """A network with the weights of a file."""
    network.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return network


def read_mask(path: Path = SHIPPED) -> MainThing:
    return read_network(path, MainThing())
