"""Depth of a generated picture: a small network that the world's exact depth has taught.

What comes out of a generator has no depth. The network is to the world what a network that measures metres is to
photographs, and is one: a metric Depth Anything, tiny, in a folder as a hub has it, which everything here that takes
such a model loads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bokeh_ops.depth.conventions import DepthKind
from bokeh_ops.depth.estimate import Estimator
from trainer.comfyui import make_torchvision_importable
from trainer.data import Dataset
from trainer.frozen.depth import FrozenDepth
from trainer.world.mask import new_network, teach
from trainer.world.paint import SIDE

FARTHEST = 12.0
"""Metres, beyond the world's farthest backdrop (0.12 dioptres)."""
_PATCH, _WIDTH, _FUSED = 4, 64, 32
_USUAL = -2.2
"""Bias of the last layer at first: 0.8 dioptres, where pictures have 1.1 on average."""


def new_estimator() -> Estimator:
    """Network and processor that have learnt nothing."""
    make_torchvision_importable()
    from transformers import (
        DepthAnythingConfig,
        DepthAnythingForDepthEstimation,
        Dinov2Config,
        DPTImageProcessor,
    )

    trunk = Dinov2Config(
        hidden_size=_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        mlp_ratio=2,
        image_size=SIDE,
        patch_size=_PATCH,
        out_features=["stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=trunk,
        patch_size=_PATCH,
        reassemble_hidden_size=_WIDTH,
        reassemble_factors=[2, 1, 0.5],
        neck_hidden_sizes=[_FUSED] * 3,
        fusion_hidden_size=_FUSED,
        head_hidden_size=_FUSED // 2,
        depth_estimation_type="metric",
        max_depth=FARTHEST,
    )
    network = DepthAnythingForDepthEstimation(config)
    # The library starts every weight so small, for layers as wide as those of large models, that little gets through.
    for module in (*network.neck.modules(), *network.head.modules()):
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.reset_parameters()
    network.head.conv3.bias = nn.Parameter(torch.full((1,), _USUAL))
    processor = DPTImageProcessor(
        size={"height": SIDE, "width": SIDE}, keep_aspect_ratio=True, ensure_multiple_of=_PATCH
    )
    return Estimator(network, processor, "world", DepthKind.METRIC, config.model_type)


def train_depth(dataset: Dataset, steps: int, batch: int = 16, seed: int = 0) -> Estimator:
    """Teach a new network the disparity of a data set of the world."""
    estimator = new_network(new_estimator, seed)
    # Disparity is steep in what the network puts out where things are near: long gradients are shortened.
    teach(
        FrozenDepth(estimator),
        dataset,
        lambda sample: sample.disparity,
        F.l1_loss,
        steps,
        batch,
        seed,
        2e-3,
        1.0,
    )
    estimator.network.eval().requires_grad_(False)
    return estimator


def write_depth(folder: Path, estimator: Estimator) -> None:
    """The folder of a model, weights in half precision."""
    estimator.network.half().save_pretrained(folder)
    estimator.network.float()
    estimator.processor.save_pretrained(folder)


@torch.no_grad()
def depth_errors(
    network: Callable[[Tensor], Tensor], dataset: Dataset, indices: Iterable[int]
) -> dict[str, float]:
    """Means over pictures.

    Args:
        network: pictures ``[1, 3, S, S]``, 0..1, to disparity ``[1, 1, S, S]`` in dioptres.
        dataset, indices: pictures.

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
