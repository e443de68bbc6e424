"""Several copies of one small network, one per seed, trained side by side.

The copies lie in the channels: convolutions have one group per copy, and normalization works per
channel anyway.  While all values are finite nothing passes from one copy to another, the loss is
the sum over the copies and Adam works value by value, so that each copy trains as it would alone,
at a fraction of the time.  Trainings that are expected to diverge run alone: running statistics
pass over a minibatch in which any value is not finite.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from bioren.nn import BatchRenorm2d, LinearLimits

NAMES = {
    "none": "no normalization",
    "group": "GroupNorm",
    "batch": "BatchNorm",
    "batch .1": "BatchNorm, momentum .1",
    "renorm": "BatchRenorm",
    "averaged": "BatchRenorm, averaged backward",
}
PALETTE = ("0.6", "tab:green", "tab:orange", "tab:red", "tab:blue", "tab:purple")
COLORS = dict(zip(NAMES, PALETTE, strict=True))


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return scikit-learn's 1,797 digits, 8 x 8 in [0, 1], and their labels."""
    found = load_digits()
    return torch.tensor(found.images / 16, dtype=torch.float32), torch.tensor(found.target)


def warm_up(batches: int) -> LinearLimits:
    """Return the paper's limits, spread over a training of so many (micro-)batches."""
    return LinearLimits(batches // 10, batches * 4 // 10, batches // 4, 3.0, 5.0)


def normalizer(name: str, batches: int):
    """Return a function from a number of channels to the layer called `name`."""
    limits = warm_up(batches)
    return {
        "none": lambda channels: nn.Identity(),
        "group": lambda channels: nn.GroupNorm(channels // 4, channels),  # 4 channels a group
        "batch": lambda channels: nn.BatchNorm2d(channels, momentum=0.01),
        "batch .1": lambda channels: nn.BatchNorm2d(channels, momentum=0.1),
        "renorm": lambda channels: BatchRenorm2d(channels, limits=limits, initial="unit"),
        "averaged": lambda channels: BatchRenorm2d(
            channels, limits=limits, initial="unit", average_backward=16
        ),
    }[name]


def conv(copies: int, inside: int, outside: int, **options) -> nn.Conv2d:
    """Return one 3 x 3 convolution for each copy; `options` go to `nn.Conv2d`."""
    return nn.Conv2d(
        copies * inside, copies * outside, **{"kernel_size": 3, **options}, groups=copies
    )


def classifier(copies: int, normal, width: int = 16) -> nn.Sequential:
    """Return a network of three convolutions, each normalized by what `normal` returns."""
    layers: list[nn.Module] = []
    for inside, outside, stride in ((1, width, 1), (width, 2 * width, 2), (2 * width,) * 2 + (2,)):
        layers += [
            conv(copies, inside, outside, padding=1, stride=stride),
            normal(copies * outside),
            nn.ReLU(),
        ]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), conv(copies, 2 * width, 10, kernel_size=1)
    )


class Pixels(nn.Module):
    """Makes the pixels of each image channels, one copy behind the other."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.reshape(len(images), -1, 1, 1)


def dense(copies: int, normal, width: int = 64) -> nn.Sequential:
    """Return three dense layers, normalized: statistics of as many values as there are images."""
    layers: list[nn.Module] = [Pixels()]
    for inside in (64, width, width):
        layers += [
            conv(copies, inside, width, kernel_size=1),
            normal(copies * width),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, conv(copies, width, 10, kernel_size=1))


def beside(images: torch.Tensor) -> torch.Tensor:
    """Return images of shape (copies, rows, 8, 8) as (rows, copies, 8, 8)."""
    return images.transpose(0, 1).contiguous()


def logits(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the logits, (copies, rows, classes), of images of shape (copies, rows, 8, 8)."""
    out = network(beside(images))
    return out.view(len(out), images.shape[0], -1).transpose(0, 1)


def loss(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of each copy; labels of shape (copies, rows)."""
    out = logits(network, images)
    return (
        F.cross_entropy(out.flatten(0, 1), labels.flatten(), reduction="none")
        .view(labels.shape)
        .mean(dim=1)
    )


@torch.no_grad()
def accuracy(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Return the accuracy of each copy in evaluation; the training mode is restored."""
    was = network.training
    right = logits(network.eval(), images).argmax(dim=-1) == labels
    network.train(was)
    return right.double().mean(dim=1).numpy()
