"""The scale of the weights before a normalization: what it changes, and what the gradient says."""

from __future__ import annotations

import math

import torch
from common import interval, set_up
from torch import nn
from torch.nn import functional as F

from article import claim
from bioren.nn import BatchRenorm1d

ROWS, FEATURES, UNITS, CLASSES = 32, 10, 8, 3
FACTOR = 10.0
UNLIMITED = (math.inf, math.inf)


class Case:
    """A linear layer, a normalization and a readout, on one minibatch, in double precision."""

    def __init__(self, seed: int, normal: nn.Module) -> None:
        set_up(seed)
        self.x = torch.randn(ROWS, FEATURES).double() + 1
        self.labels = torch.randint(CLASSES, (ROWS,))
        self.weight = torch.randn(UNITS, FEATURES).double()
        self.readout = torch.randn(CLASSES, UNITS).double()
        self.normal = normal.double().train()
        with torch.no_grad():
            s = self.x @ self.weight.T
            # As after a long training: the running statistics are near to, not at, the minibatch's.
            self.normal.running_mean.copy_(s.mean(dim=0) + 0.2 * s.std(dim=0))
            self.normal.running_var.copy_(s.var(dim=0) * 1.3)

    def outputs(self, factor: float = 1.0) -> torch.Tensor:
        with torch.no_grad():
            return self.normal(self.x @ (factor * self.weight).T)

    def change(self) -> float:
        """Return how far the output moves, relative to its size, as the weights grow."""
        before, after = self.outputs(), self.outputs(FACTOR)
        return float((after - before).norm() / before.norm())

    def loss(self, weight: torch.Tensor) -> torch.Tensor:
        hidden = self.normal(self.x @ weight.T).relu()
        return F.cross_entropy(hidden @ self.readout.T, self.labels)

    def cosine(self) -> float:
        """Return |cosine| between the weights of all units and their gradient."""
        weight = self.weight.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(weight), weight)
        along = (gradient * self.weight).sum()
        return float(along.abs() / gradient.norm() / self.weight.norm())

    def slope(self, step: float = 1e-4) -> float:
        """Return |change of the loss| per relative growth of the weights, by differences."""
        with torch.no_grad():
            up, down = (self.loss(self.weight * (1 + s)) for s in (step, -step))
        return float((up - down).abs() / (2 * step))


def layer(eps: float = 1e-30, limits=None) -> nn.Module:
    # Momentum 0, so that looking does not change the statistics.
    if limits is None:
        return nn.BatchNorm1d(UNITS, eps=eps, momentum=0.0)
    return BatchRenorm1d(UNITS, eps=eps, momentum=0.0, limits=limits, initial="unit")


def after_adaptation(seed: int) -> float:
    """Return the change of the output once the statistics have followed the larger weights."""
    case = Case(seed, layer(limits=(3.0, 5.0)))
    case.normal.momentum = 0.01
    for _ in range(2000):
        case.outputs()
    before = case.outputs()
    for _ in range(2000):
        case.outputs(FACTOR)
    return float((case.outputs(FACTOR) - before).norm() / before.norm())


def scale_claims(args) -> list[dict]:
    seeds = range(max(args.seeds, 3))

    def over_seeds(measure, **options) -> tuple[float, float]:
        return interval([measure(Case(seed, layer(**options))) for seed in seeds])

    rows = []

    def add(text: str, expected: str, found: tuple[float, float], agrees) -> None:
        mean, half = found
        low, high = max(mean - half, 0.0), mean + half
        rows.append(claim(text, expected, f"{mean:.1e}", f"{low:.1e} to {high:.1e}", agrees(mean)))

    zero, some = (lambda m: m < 1e-12), (lambda m: m > 1e-3)
    times = f"weights × {FACTOR:g}"
    change, cosine, slope = Case.change, Case.cosine, Case.slope
    add(f"BatchNorm: {times} moves the output by (eps = 1e-30)", "0", over_seeds(change), zero)
    add(
        f"BatchNorm: {times} moves the output by (eps = 1e-5)",
        "about eps / 2 var",
        over_seeds(change, eps=1e-5),
        lambda m: m < 1e-5,
    )
    add("BatchNorm: |cos(gradient, weight)| (eps = 1e-30)", "0", over_seeds(cosine), zero)
    add(
        "BatchNorm: slope of the loss along the weights", "0", over_seeds(slope), lambda m: m < 1e-9
    )
    free = {"limits": UNLIMITED}
    clipped = {"limits": (3.0, 5.0)}
    text = "BatchRenorm"
    add(
        f"{text}, no limits: {times} moves the output by", "not 0", over_seeds(change, **free), some
    )
    add(
        f"{text}, (3, 5): {times} moves the output by", "not 0", over_seeds(change, **clipped), some
    )
    add(f"{text}: |cos(gradient, weight)|, r and d constant", "0", over_seeds(cosine, **free), zero)
    add(f"{text}: slope of the loss along the weights", "not 0", over_seeds(slope, **free), some)
    adapted = interval([after_adaptation(seed) for seed in seeds])
    add(f"{text}: {times}, once the statistics have followed", "0", adapted, lambda m: m < 1e-6)
    return rows
