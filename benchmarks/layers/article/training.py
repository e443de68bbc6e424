"""Limits and warm-up: what they do to the first minibatch, and to a training on small ones."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from common import figure, interval, plus_minus, save, set_up, show
from copies import accuracy, classifier, digits, loss, warm_up

from article import claim
from bioren.nn import BatchRenorm1d, BatchRenorm2d, ConstantLimits

IMAGES, RATE, TEST = 16, 0.03, 500
LIMITS = {
    "BatchNorm": "tab:orange",
    "no limits": "tab:red",
    "(3, 5) at once": "tab:green",
    "warm-up to (3, 5)": "tab:blue",
}


class Panel(NamedTuple):
    """A kind of training."""

    size: int = 4
    one_class: bool = False
    far: bool = False  # data far from where the statistics begin
    rate: float = RATE


PANELS = {
    "micro-batches of 4": Panel(),
    "micro-batches of 2": Panel(size=2),
    "of 4, one class each": Panel(one_class=True),
    "of 4, data far off": Panel(far=True),
    "of 4, rate 0.3": Panel(rate=0.3),
}


def limits_of(name: str, batches: int):
    return {
        "BatchNorm": ConstantLimits(1.0, 0.0),
        "no limits": ConstantLimits(math.inf, math.inf),
        "(3, 5) at once": ConstantLimits(3.0, 5.0),
        "warm-up to (3, 5)": warm_up(batches),
    }[name]


def first_batch_claims(args) -> list[dict]:
    """Show a layer that starts at mean 0 and variance 1 a first minibatch from N(200, 50)."""
    rows = []
    for name in LIMITS:
        means, stds = [], []
        for seed in range(max(args.seeds, 3)):
            set_up(seed)
            layer = BatchRenorm1d(16, limits=limits_of(name, 1000), initial="unit")
            out = layer(torch.randn(32, 16) * 50 + 200).detach()
            means.append(float(out.mean()))
            stds.append(float(out.std(dim=0).mean()))
        (mean, half), (std, half_std) = interval(means), interval(stds)
        normal = abs(mean) < 0.1 and 0.8 < std < 1.2
        expected = "0, 1" if name in ("BatchNorm", "warm-up to (3, 5)") else "not 0, 1"
        text = f"mean, std of the first minibatch from N(200, 50), {name}"
        width = f"± {half:.1e}, ± {half_std:.1e}"
        agrees = normal == (expected == "0, 1")
        rows.append(claim(text, expected, f"{mean:.1f}, {std:.1f}", width, agrees))
    return rows


def micro_batches(labels: np.ndarray, size: int, one_class: bool, rng) -> np.ndarray:
    """Return the rows of one step: (micro-batches, size)."""
    number = IMAGES // size
    if not one_class:
        return rng.choice(len(labels), (number, size), replace=False)
    classes = rng.choice(10, number, replace=False)
    return np.stack([rng.choice(np.flatnonzero(labels == c), size) for c in classes])


def trained(name: str, panel: str, seeds: int, steps: int) -> dict:
    """Train one network per seed; losses, (looks, seeds), in training and in evaluation.

    One after the other, not side by side in the channels of one network (copies.py): a layer's
    statistics pass over a minibatch with values that are not finite, so that one copy that
    diverges would stop the statistics of all.
    """
    runs = [trained_alone(name, panel, seed, steps) for seed in range(seeds)]
    return {
        "step": runs[0]["step"],
        **{key: np.hstack([run[key] for run in runs]) for key in ("train", "test", "accuracy")},
    }


def trained_alone(name: str, panel: str, seed: int, steps: int) -> dict:
    """Train the network of one seed; losses, (looks, 1), in training and in evaluation."""
    size, one_class, far, rate = PANELS[panel]
    rng = set_up(seed)
    images, labels = digits()
    images = images * 50 + 200 if far else images
    order = rng.permutation(len(labels))
    test, train = order[:TEST], order[TEST:]
    schedule = limits_of(name, steps * IMAGES // size)
    network = classifier(
        1, lambda channels: BatchRenorm2d(channels, limits=schedule, initial="unit")
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)
    codes = labels.numpy()[train]
    every = max(steps // 20, 1)
    train_losses, looks, test_losses = [], [], []
    for step in range(1, steps + 1):
        total = 0.0
        for micro in micro_batches(codes, size, one_class, rng):
            chosen = train[micro][None]
            batch = loss(network, images[chosen], labels[chosen])
            (batch.sum() * size / IMAGES).backward()
            total = total + batch.item() * size / IMAGES
        train_losses.append(total)
        optimizer.step()
        optimizer.zero_grad()
        if step % every == 0:
            looks.append(step)
            with torch.no_grad():
                test_losses.append(loss(network.eval(), images[test][None], labels[test][None]))
            network.train()
    mean_losses = np.array(train_losses)[: every * len(looks)].reshape(-1, every).mean(axis=1)
    return {
        "step": np.array(looks),
        "train": finite(mean_losses)[:, None],
        "test": finite(torch.stack(test_losses).numpy()),
        "accuracy": accuracy(network, images[test][None], labels[test][None]) * 100,
    }


def finite(losses: np.ndarray) -> np.ndarray:
    """Return the losses with at most 100 in the place of what is larger or not a number."""
    return np.nan_to_num(losses, nan=100, posinf=100).clip(max=100)


def training_claims(args) -> list[dict]:
    seeds = max(args.seeds, 2 if args.quick else 5)
    steps = 20 if args.quick else 400
    found = {(n, p): trained(n, p, seeds, steps) for p in PANELS for n in LIMITS}
    table = [
        {
            "micro-batches": panel,
            "limits": name,
            "training loss, mean of the way": plus_minus(run["train"].mean(axis=0), 3),
            "training loss, worst of the way": plus_minus(run["train"].max(axis=0), 2),
            "test loss, at the end": plus_minus(run["test"][-1], 3),
            "test loss, worst after 20%": plus_minus(run["test"][4:].max(axis=0), 2),
            "test accuracy, %": plus_minus(run["accuracy"]),
            "diverged": f"{diverged(run).sum()} of {seeds}",
        }
        for panel in PANELS
        for name in LIMITS
        for run in (found[name, panel],)
    ]
    show(table, args.output / "limits.csv", f"Limits, mean ± 95% interval, {seeds} seeds")
    draw(found, args.output)
    return [row for panel in PANELS for row in compared(found, panel)]


def diverged(run: dict) -> np.ndarray:
    """Return for which seeds the training loss was ever above 10; guessing has 2.3."""
    return (run["train"] > 10).any(axis=0)


def compared(found: dict, panel: str) -> list[dict]:
    """Return how much better one kind of limits does than another, seed by seed."""
    rows = []
    for one, other in (
        ("warm-up to (3, 5)", "no limits"),
        ("(3, 5) at once", "no limits"),
        ("warm-up to (3, 5)", "BatchNorm"),
    ):
        tame, wild = found[one, panel], found[other, panel]
        for part, values, places in (
            ("test accuracy, %", tame["accuracy"] - wild["accuracy"], 1),
            ("training loss on the way", wild["train"].mean(0) - tame["train"].mean(0), 3),
        ):
            mean, half = interval(values)
            agrees = "yes" if mean > half else "no" if mean < -half else "undecided"
            text = f"{panel}: {one} better than {other} by, {part}"
            width = f"{mean - half:.{places}f} to {mean + half:.{places}f}"
            rows.append(claim(text, "above 0", f"{mean:.{places}f}", width, agrees))
    return rows


def draw(found: dict, output) -> None:
    fig, axes = figure(2, len(PANELS), figsize=(15.5, 6.2), sharex=True, sharey=True)
    for column, panel in zip(axes.T, PANELS, strict=True):
        column[0].set_title(panel)
        for axis, part in zip(column, ("train", "test"), strict=True):
            for name, color in LIMITS.items():
                run = found[name, panel]
                # The interval of the logarithm: a mean of losses would be that of the largest.
                logs = np.array([interval(np.log10(v.clip(min=1e-3))) for v in run[part]])
                mean, half = logs.T
                axis.plot(run["step"], 10**mean, color=color, label=name)
                band = 10 ** (mean - half), 10 ** (mean + half)
                axis.fill_between(run["step"], *band, color=color, alpha=0.15, lw=0)
            axis.set(yscale="log", ylim=(0.008, 120))
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("loss in training")
    axes[1, 0].set_ylabel("loss on the test set, in evaluation")
    fig.supxlabel(f"step of the optimizer ({IMAGES} images each)")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    save(fig, output / "limits.png")
