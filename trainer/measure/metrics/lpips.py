"""Learned perceptual distance, LPIPS 0.1 with AlexNet (Zhang et al., "The Unreasonable Effectiveness of Deep
Features as a Perceptual Metric", CVPR 2018).

Ours and not the package `lpips`, which needs torchvision, fetches AlexNet by itself, and looks at a picture anew for
every pair that it is in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bokeh_ops.errors import BokehError

# Output channels, kernel, stride, padding of AlexNet's five convolutions (Krizhevsky 2014, "One weird trick"), and
# whether a 3 x 3 maximum with stride 2 comes before.
_LAYERS = (
    (64, 11, 4, 2, False),
    (192, 5, 1, 2, True),
    (384, 3, 1, 1, True),
    (256, 3, 1, 1, False),
    (256, 3, 1, 1, False),
)
# Mean and deviation of ImageNet, carried over to values -1..1.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_SMALLEST = 32


class Lpips(nn.Module):
    """Distance of two pictures: the features of five layers, each of unit length per pixel, their squared
    differences weighted per channel, averaged over the picture and summed over the layers.

    The weights are those of ``lpips`` version 0.1; :func:`trainer.measure.metrics.weights.load_lpips` finds them.

    Args:
        weights: ``features.N.weight`` ``[out, in, k, k]``, ``features.N.bias`` ``[out]`` and ``linear.N.weight``
            ``[1, out, 1, 1]`` for N = 0..4.

    Raises:
        BokehError: a weight is missing or has another shape.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.features = nn.ModuleList()
        self.linear = nn.ModuleList()
        channels = 3
        for out, kernel, stride, padding, _ in _LAYERS:
            self.features.append(nn.Conv2d(channels, out, kernel, stride, padding))
            self.linear.append(nn.Conv2d(out, 1, 1, bias=False))
            channels = out
        own = self.state_dict()
        for name, value in own.items():
            if name not in weights:
                raise BokehError(f"The LPIPS weights lack {name!r}; expected {', '.join(sorted(own))}.")
            if weights[name].shape != value.shape:
                raise BokehError(
                    f"The LPIPS weight {name!r} is {tuple(weights[name].shape)}; expected {tuple(value.shape)}: "
                    "these are not the weights of the AlexNet version."
                )
        self.load_state_dict({name: weights[name].float() for name in own})
        self.requires_grad_(False).eval()

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """Distance of each pair.

        Args:
            image: ``[B, 3, H, W]``, values 0..1 (display-encoded), both sides at least 32.
            reference: of the same shape.

        Returns:
            ``[B]``: 0 for equal pictures, about 0.5 and more for unlike ones.

        Raises:
            BokehError: shapes differ or are others than above.
        """
        if image.shape != reference.shape:
            raise BokehError(
                f"LPIPS compares pictures of one shape; got {tuple(image.shape)} and {tuple(reference.shape)}."
            )
        features = self.unit_features(torch.cat((image, reference)))
        batch = len(image)
        return self.distance([each[:batch] for each in features], [each[batch:] for each in features])

    def unit_features(self, images: Tensor) -> list[Tensor]:
        """Features of five layers, each of unit length per pixel, so that a picture in many pairs is seen but once.

        Args:
            images: ``[B, 3, H, W]``, values 0..1.

        Returns:
            Five tensors ``[B, C, h, w]`` in float32.

        Raises:
            BokehError: another shape, or sides below 32.
        """
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[-2:]) < _SMALLEST:
            raise BokehError(
                f"LPIPS takes pictures [B, 3, H, W] with sides of at least {_SMALLEST} pixels; got "
                f"{tuple(images.shape)}."
            )
        planes = images.float() * 2 - 1
        shift, scale = (planes.new_tensor(each).reshape(3, 1, 1) for each in (_SHIFT, _SCALE))
        planes = (planes - shift) / scale
        found = []
        for convolution, (*_, pool) in zip(self.features, _LAYERS, strict=True):
            planes = F.relu(convolution(F.max_pool2d(planes, 3, 2) if pool else planes))
            found.append(planes / (planes.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    def distance(self, features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        """Distance ``[B]`` of pictures by their :meth:`unit_features`."""
        layers = zip(self.linear, features, others, strict=True)
        return torch.stack([weigh((a - b) ** 2).mean((1, 2, 3)) for weigh, a, b in layers]).sum(0)
