"""Gradients: with frozen statistics, with those of the minibatch, and renormalized.

In a testable form.  Let g be the gradient of the loss by the normalized values of one unit in one
minibatch, and P the removal of what lies along the constant and along z.  The gradients by the
values before the normalization are then

    population, frozen      g / std
    minibatch               P g / std_B
    renormalized            P g / std        (r and d constant, no limits)

so that the minibatch's and the renormalized differ by std_B / std exactly; and of a frozen one,
the part that P leaves is the minibatch's times std_B / std.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from common import figure, interval, save, set_up
from torch.nn import functional as F

from article import claim, close
from bioren.nn.functional import batch_renorm

SIZES = (2, 4, 8, 16, 32, 128)
FEATURES, UNITS, CLASSES = 10, 4, 3
KINDS = {
    "frozen": "tab:red",
    "minibatch (BatchNorm)": "tab:orange",
    "renormalized (BatchRenorm)": "tab:blue",
}


def normalized(kind: str, s: torch.Tensor, mean: torch.Tensor, var: torch.Tensor) -> torch.Tensor:
    """Return the columns of `s` normalized in one of three ways; no eps, no momentum."""
    limits = (1.0, 0.0) if kind.startswith("minibatch") else (math.inf, math.inf)
    return batch_renorm(
        s,
        mean.clone(),
        var.clone(),
        training=kind != "frozen",
        momentum=0.0,
        eps=0.0,
        r_max=limits[0],
        d_max=limits[1],
    )


def input_gradients(size: int, rng_columns: int = 4000) -> dict[str, torch.Tensor]:
    """Return the gradient by the values, (rows, columns), for one upstream gradient."""
    s = torch.randn(size, rng_columns).double() * 2 + 1
    upstream = torch.randn(size, rng_columns).double()
    mean, var = torch.ones(rng_columns).double(), torch.full((rng_columns,), 4.0).double()
    found = {"ratio": s.std(dim=0, unbiased=False) / 2, "z": (s - s.mean(0)) / s.std(0)}
    for kind in KINDS:
        x = s.clone().requires_grad_()
        (found[kind],) = torch.autograd.grad(normalized(kind, x, mean, var), x, upstream)
    return found


def without(g: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Return `g` without what lies along the constant and along `z`, column by column."""
    g = g - g.mean(dim=0)
    return g - z * (g * z).sum(dim=0) / (z * z).sum(dim=0)


def ratio_claims(args) -> list[dict]:
    set_up(3)
    rows = []
    frozen, minibatch, renorm = KINDS
    for size in (4, 32):
        found = input_gradients(size)
        off = (found[minibatch] * found["ratio"] - found[renorm]).abs().max()
        text = f"BatchNorm's gradient × std_B/std − BatchRenorm's, largest, B = {size}"
        rows.append(claim(text, "0", f"{off:.0e}", "largest of 4,000 units", bool(off < 1e-10)))
        off = (without(found[frozen], found["z"]) - found[minibatch] * found["ratio"]).abs().max()
        text = f"P(frozen gradient) − BatchNorm's × std_B/std, largest, B = {size}"
        rows.append(claim(text, "0", f"{off:.0e}", "largest of 4,000 units", bool(off < 1e-10)))
    for size in (2, 4, 32):
        found = input_gradients(size)
        square = {kind: found[kind].square().sum(dim=0) for kind in KINDS}
        share = (square[minibatch] * found["ratio"] ** 2).numpy() / square[frozen].mean().numpy()
        text = f"(|minibatch| std_B/std / |frozen|)², B = {size}: P leaves (B-2)/B of random g"
        rows.append(close(text, (size - 2) / size, *interval(share)))
    return rows


class Population:
    """A layer with readout whose gradient over the whole population is known."""

    def __init__(self, seed: int, number: int) -> None:
        set_up(seed)
        mixing = torch.randn(FEATURES, FEATURES).double()
        self.x = torch.randn(number, FEATURES).double() @ mixing + torch.randn(FEATURES).double()
        teacher = torch.randn(FEATURES, CLASSES).double()
        self.labels = ((self.x - self.x.mean(0)) @ teacher).argmax(dim=1)
        self.weight = torch.randn(FEATURES, UNITS).double()
        self.readout = torch.randn(UNITS, CLASSES).double()
        s = self.x @ self.weight
        self.mean, self.var = s.mean(dim=0), s.var(dim=0, unbiased=False)

    def gradient(self, kind: str, size: int | None = None) -> torch.Tensor:
        """Return the mean gradient over all minibatches of `size`; None for the population."""
        weight = self.weight.clone().requires_grad_()
        size = size or len(self.x)
        batches = len(self.x) // size
        # A minibatch has its own columns, so that one call normalizes them all.
        s = (self.x @ weight)[: batches * size].view(batches, size, UNITS)
        columns = s.transpose(0, 1).reshape(size, batches * UNITS)
        z = normalized(kind, columns, self.mean.repeat(batches), self.var.repeat(batches))
        z = z.view(size, batches, UNITS).transpose(0, 1).reshape(-1, UNITS)
        loss = F.cross_entropy(z.relu() @ self.readout, self.labels[: batches * size])
        return torch.autograd.grad(loss, weight)[0]


def mean_gradients(seed: int, number: int) -> dict:
    """Return (bias, length, angle) of the mean gradient against the truth, by kind and size.

    Bias is |mean gradient - true gradient| / |true gradient|, and length the same of the mean
    gradient alone; the angle is in degrees.
    """
    population = Population(seed, number)
    right = population.gradient("minibatch (BatchNorm)")
    found = {}
    for kind in KINDS:
        for size in SIZES[-1:] if kind == "frozen" else SIZES:
            mean = population.gradient(kind, size)
            cosine = (mean * right).sum() / (mean.norm() * right.norm())
            found[kind, size] = (
                float((mean - right).norm() / right.norm()),
                float(mean.norm() / right.norm()),
                float(torch.rad2deg(cosine.clamp(-1, 1).arccos())),
            )
    return found


def bias_claims(args) -> list[dict]:
    number = 2**13 if args.quick else 2**17
    runs = [mean_gradients(seed, number) for seed in range(10, 13 if args.quick else 30)]
    found = {key: np.array([run[key] for run in runs]) for key in runs[0]}  # populations x 3
    _, minibatch, renorm = KINDS
    rows = []
    for (kind, size), values in found.items():
        text = f"mean gradient, {kind}"
        if kind == "frozen":
            center, low, high = geometric(values[:, 0])
            at = f"{center:.2f}", f"{low:.2f} to {high:.2f}"
            rows.append(claim(f"{text}, any B: relative bias", "not 0", *at, low > 0.05))
        elif size > 2:  # of two values nothing passes P
            center, low, high = geometric(values[:, 0])
            at = f"{center:.3f}", f"{low:.3f} to {high:.3f}"
            smaller = center < geometric(found[kind, 4][:, 0])[0] or size == 4
            row = claim(f"{text}, B = {size}: relative bias", "falls with B", *at, smaller)
            rows.append(row)
            if kind == renorm:
                length = interval(values[:, 1])
                rows.append(close(f"{text}, B = {size}: length 1 - 2/B", 1 - 2 / size, *length, 3))
    for size in (4, 8, 32):
        gap = found[minibatch, size][:, 0] - found[renorm, size][:, 0]
        mean, half = interval(gap)
        agrees = "yes" if mean > half else "no" if mean < -half else "undecided"
        width = f"{mean - half:.3f} to {mean + half:.3f}"
        text = f"BatchRenorm's mean gradient less biased than BatchNorm's by, B = {size}"
        rows.append(claim(text, "above 0", f"{mean:.3f}", width, agrees))
    draw_bias(found, args.output)
    return rows


def geometric(values: np.ndarray) -> tuple[float, float, float]:
    """Return the geometric mean and its interval: the bias is skewed, as true gradients are small
    now and then."""
    mean, half = interval(np.log(values))
    return tuple(float(np.exp(x)) for x in (mean, mean - half, mean + half))


def draw_bias(found: dict, output) -> None:
    """Draw bias, length and angle against the size; medians, and the middle half."""
    fig, axes = figure(1, 3, figsize=(12, 4))
    names = ("|mean − true| / |true|", "|mean| / |true|", "angle of mean and true, degrees")
    for part, (axis, name) in enumerate(zip(axes, names, strict=True)):
        for kind, color in KINDS.items():
            sizes = [size for k, size in found if k == kind and size > 2]
            low, middle, high = np.array(
                [np.percentile(found[kind, size][:, part], (25, 50, 75)) for size in sizes]
            ).T
            if kind == "frozen":
                axis.axhline(middle[0], color=color, label="frozen")
                axis.axhspan(low[0], high[0], color=color, alpha=0.15, lw=0)
                continue
            axis.plot(sizes, middle, "o-", color=color, label=kind)
            axis.fill_between(sizes, low, high, color=color, alpha=0.15, lw=0)
        axis.set(xscale="log", xlabel="size of the minibatch B", ylabel=name)
        axis.set_xticks(SIZES[1:], SIZES[1:])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_yscale("log")
    axes[1].plot(SIZES[1:], [1 - 2 / size for size in SIZES[1:]], "k--", label="1 − 2/B")
    fig.legend(*axes[1].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    save(fig, output / "gradient_bias.png")
