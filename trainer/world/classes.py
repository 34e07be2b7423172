"""What each pixel of a picture shows, as captions name it: a small network that the world's exact owners have taught.

In a picture of the world it is known; in a generated one it is found by a network that has seen the world at every K,
so that blur alone does not change what it says.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.data import Dataset
from trainer.world.data import scene_sample
from trainer.world.mask import MainThing, new_network, read_network, teach
from trainer.world.paint import owners
from trainer.world.scene import KINDS, Scene, draw_scene

CLASSES = ("backdrop", "ground", *KINDS)
SHIPPED = Path(__file__).with_name("classes.safetensors")
"""Weights that come with the project."""
_WIDTH = 10


def new_classes() -> MainThing:
    """Pictures ``[N, 3, S, S]``, 0..1, to the logits of :data:`CLASSES` ``[N, 7, S, S]``; nothing is learnt yet."""
    return MainThing(_WIDTH, len(CLASSES))


def true_classes(scene: Scene) -> np.ndarray:
    """Numbers of :data:`CLASSES`, int64 ``[S, S]``."""
    kinds = [CLASSES.index(thing.kind) for thing in scene.things]
    # Owners count from the backdrop, -2, and the ground, -1, to the things.
    return np.array([0, 1, *kinds])[owners(scene) + 2]


def train_classes(dataset: Dataset, steps: int, batch: int = 16, seed: int = 0) -> MainThing:
    """Teach a new network what pictures of a data set of the world show."""
    network = new_network(new_classes, seed)
    known: dict[int, np.ndarray] = {}

    def wanted(number: int) -> np.ndarray:
        if number not in known:
            known[number] = true_classes(draw_scene(number))
        return known[number]

    teach(
        network,
        dataset,
        lambda sample: wanted(sample.info["seed"]),
        lambda logits, maps: F.cross_entropy(logits, maps[:, 0]),
        steps,
        batch,
        seed,
    )
    return network


def read_classes(path: Path = SHIPPED) -> MainThing:
    return read_network(path, new_classes())


@torch.no_grad()
def likeliest(network: MainThing, pictures: Tensor, count: int = 3) -> Tensor:
    """The likeliest classes of each pixel, the first of them first, ``[N, count, S, S]``."""
    return network(pictures).topk(count, 1).indices


def accuracy(network: MainThing, seeds: Iterable[int], sharp: bool = False) -> dict[str, float]:
    """How right the network is on scenes, all in focus or as their cameras take them.

    Returns:
        ``pixels``: share of all pixels whose likeliest class is right; ``things``: that of the pixels of things.
    """
    right, things = [], []
    for seed in seeds:
        scene = draw_scene(seed, sharp)
        picture = torch.from_numpy(scene_sample(scene).image).movedim(-1, 0)[None].float() / 255
        true = torch.from_numpy(true_classes(scene))
        same = likeliest(network, picture, 1)[0, 0] == true
        right.append(same.float().mean())
        things.append(same[true > 1].float().mean())
    return {"pixels": float(torch.stack(right).mean()), "things": float(torch.stack(things).mean())}
