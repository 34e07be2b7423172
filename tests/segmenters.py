"""Small random networks that segment, as folders that a hub could have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.depth_models import library


def segformer(folder: Path, labels: Sequence[str], side: int = 32) -> tuple[Any, Any]:
    """Network and processor, saved to a folder; the weights are large enough for the output to differ."""
    hub = library()
    torch.manual_seed(0)
    config = hub.SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=8,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    network = hub.SegformerForSemanticSegmentation(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1.4 * parameter[0].numel() ** -0.5)
    processor = hub.SegformerImageProcessor(size={"height": side, "width": side})
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return network, processor


def mobilevit(folder: Path, labels: Sequence[str]) -> tuple[Any, Any]:
    """Network and processor of a kind whose processor cuts the middle out of a picture."""
    hub = library()
    torch.manual_seed(0)
    config = hub.MobileViTConfig(
        image_size=64,
        hidden_sizes=[16, 16, 16],
        neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 16],
        num_attention_heads=2,
        aspp_out_channels=8,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    network = hub.MobileViTForSemanticSegmentation(config).eval()
    processor = hub.MobileViTImageProcessor(
        size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}, do_center_crop=True
    )
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return network, processor
