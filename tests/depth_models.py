"""Depth networks of every class that is known, small and random, as folders that a hub could have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

KINDS = ("relative", "metric", "dpt", "glpn", "zoedepth", "depth_pro")
MAX_DEPTH = 20.0
FIELD_OF_VIEW = 60.0
_TRUNK = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}


def library() -> Any:
    """``transformers``, where it can be used: it imports torchvision as soon as that is installed."""
    from tests.host.launch import make_torchvision_importable

    make_torchvision_importable()
    import transformers

    return transformers


def make(kind: str, folder: Path, seed: int = 0) -> tuple[Any, Any]:
    """Network and processor of a kind, saved to a folder.

    The weights are large enough for the output to differ over the picture, which those of the library's start are not.
    """
    hub = library()
    torch.manual_seed(seed)
    network, processor = globals()[f"_{kind}"](hub)
    network.eval()
    _spread(network, kind)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return network, processor


def _depth_anything(hub: Any, **more: Any) -> tuple[Any, Any]:
    stages = ["stage1", "stage2", "stage3", "stage4"]
    trunk = hub.Dinov2Config(
        **_TRUNK, image_size=28, patch_size=14, out_features=stages, reshape_hidden_states=False
    )
    config = hub.DepthAnythingConfig(
        backbone_config=trunk,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
        **more,
    )
    network = hub.DepthAnythingForDepthEstimation(config)
    return network, hub.DPTImageProcessor(
        size={"height": 28, "width": 28}, keep_aspect_ratio=True, ensure_multiple_of=14
    )


def _relative(hub: Any) -> tuple[Any, Any]:
    network, processor = _depth_anything(hub)
    return network, processor


def _metric(hub: Any) -> tuple[Any, Any]:
    return _depth_anything(hub, depth_estimation_type="metric", max_depth=MAX_DEPTH)


def _dpt(hub: Any) -> tuple[Any, Any]:
    config = hub.DPTConfig(
        **_TRUNK,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        is_hybrid=False,
    )
    network = hub.DPTForDepthEstimation(config)
    return network, hub.DPTImageProcessor(size={"height": 32, "width": 32})


def _glpn(hub: Any) -> tuple[Any, Any]:
    config = hub.GLPNConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 8, 8],
        num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=8,
        max_depth=10,
    )
    return hub.GLPNForDepthEstimation(config), hub.GLPNImageProcessor(size_divisor=32)


def _zoedepth(hub: Any) -> tuple[Any, Any]:
    trunk = hub.BeitConfig(
        **_TRUNK,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        use_relative_position_bias=True,
    )
    config = hub.ZoeDepthConfig(
        backbone_config=trunk,
        reassemble_factors=[4, 2, 1, 0.5],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        bottleneck_features=8,
        num_relative_features=8,
        bin_embedding_dim=8,
        num_attractors=[4, 4, 4, 1],
        bin_configurations=[{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"}],
    )
    processor = hub.ZoeDepthImageProcessor(size={"height": 32, "width": 32}, ensure_multiple_of=32)
    return hub.ZoeDepthForDepthEstimation(config), processor


def _depth_pro(hub: Any) -> tuple[Any, Any]:
    trunk = hub.Dinov2Config(**_TRUNK, image_size=16, patch_size=4)
    config = hub.DepthProConfig(
        patch_size=16,
        patch_embeddings_size=4,
        fusion_hidden_size=16,
        intermediate_hook_ids=[1, 0],
        intermediate_feature_dims=[8, 8],
        scaled_images_ratios=[0.5, 1.0],
        scaled_images_overlap_ratios=[0.0, 0.25],
        scaled_images_feature_dims=[16, 8],
        image_model_config=trunk,
        patch_model_config=trunk,
        fov_model_config=trunk,
        use_fov_model=True,
        num_fov_head_layers=0,
    )
    network = hub.DepthProForDepthEstimation(config)
    return network, hub.DepthProImageProcessor(size={"height": 32, "width": 32})


@torch.no_grad()
def _spread(network: Any, kind: str) -> None:
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=1.4 * parameter[0].numel() ** -0.5)
    if kind == "relative":
        network.head.conv3.bias.fill_(3.0)  # above the last ReLU
    if kind == "dpt":
        network.head.head[4].bias.fill_(3.0)
    if kind == "depth_pro":
        network.head.layers[-2].bias.fill_(3.0)
        network.fov_model.head.layers[-1].weight.zero_()
        network.fov_model.head.layers[-1].bias.fill_(FIELD_OF_VIEW)
