"""The bridge z_infer = r z_train + d, how r and d spread, and the way from instance to batch."""

from __future__ import annotations

import math

import numpy as np
import torch
from common import figure, interval, save, set_up

from article import claim, close
from article.moments import expected_std
from bioren import nn as layers
from bioren.bridge import renorm_terms

SIZES = (2, 3, 4, 8, 16, 32, 64, 128)
SHAPES = (
    (2, 3),
    (3, 1),
    (64, 17),
    (256, 64),
    (2, 5, 7),
    (8, 3, 4, 4),
    (2, 16, 9, 9),
    (4, 2, 3, 3, 3),
)


def largest_error(shape: tuple[int, ...], dtype: torch.dtype, rng: np.random.Generator) -> float:
    """Return max |training - evaluation| of a layer without limits, on data N(3, 2)."""
    kind = {2: "1d", 3: "1d", 4: "2d", 5: "3d"}[len(shape)]
    layer = getattr(layers, f"BatchRenorm{kind}")(
        shape[1], momentum=0.0, affine=False, limits=(math.inf, math.inf), dtype=dtype
    )
    mean, std = rng.normal(3, 1, shape[1]), rng.uniform(1, 3, shape[1])
    layer.running_mean.copy_(torch.tensor(mean))
    layer.running_var.copy_(torch.tensor(std**2))
    x = torch.tensor(rng.normal(3, 2, shape)).to(dtype)
    return float((layer.train()(x) - layer.eval()(x)).abs().max())


def identity_claims(args) -> list[dict]:
    rng = set_up(4)
    rows = []
    for dtype, most in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        errors = [largest_error(s, dtype, rng) for s in SHAPES for _ in range(5 * args.seeds)]
        worst = max(errors)
        name = str(dtype).removeprefix("torch.")
        text = f"max |z_infer - (r z_train + d)|, {name}, {len(errors)} inputs"
        rows.append(claim(text, "0", f"{worst:.1e}", "largest of all", worst < most))
    return rows


def terms(size: int, number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return r and d of minibatches of normal values against their population."""
    x = rng.standard_normal((number, size))
    return renorm_terms(x.mean(axis=1), x.std(axis=1), np.zeros(number), np.ones(number))


def spread_claims(args) -> list[dict]:
    rng = set_up(5)
    number = 20_000 if args.quick else 200_000
    rows, found = [], {size: terms(size, number, rng) for size in SIZES}
    for size in (2, 4, 32):
        r, d = (values.reshape(50, -1) for values in found[size])
        mean = float(expected_std(size))
        text = f"standard deviation of d over minibatches, B = {size}: 1/√B"
        rows.append(close(text, size**-0.5, *interval(d.std(axis=1))))
        text = f"standard deviation of r, B = {size}: √((B-1)/B - E[std_B]²), about 1/√(2B)"
        rows.append(close(text, math.sqrt((size - 1) / size - mean**2), *interval(r.std(axis=1))))
        text = f"mean of r, B = {size}: E[std_B], below 1"
        rows.append(close(text, mean, *interval(r.mean(axis=1))))
    for size in (2, 4, 8):
        r, d = found[size]
        clipped = ((r < 1 / 3) | (r > 3) | (abs(d) > 5)).reshape(50, -1).mean(axis=1)
        mean, half = interval(clipped * 100)
        text = f"minibatches of normal data that limits (3, 5) clip, B = {size}"
        width = f"{mean - half:.2f}% to {mean + half:.2f}%"
        rows.append(claim(text, "few", f"{mean:.2f}%", width, mean < 5))
    draw_spread(found, args.output)
    return rows


def draw_spread(found: dict, output) -> None:
    fig, axes = figure(1, 2, figsize=(9, 4.2))
    levels = (1, 5, 25, 50, 75, 95, 99)
    for axis, values, name in zip(
        axes, (0, 1), ("r = std_B / std", "d = (mean_B − mean) / std"), strict=True
    ):
        lines = np.array([np.percentile(found[size][values], levels) for size in SIZES]).T
        for depth, alpha in ((0, 0.15), (1, 0.25), (2, 0.4)):
            label = f"{levels[-1 - depth] - levels[depth]}%"
            band = lines[depth], lines[-1 - depth]
            axis.fill_between(SIZES, *band, color="tab:blue", alpha=alpha, lw=0, label=label)
        axis.plot(SIZES, lines[3], color="k", lw=1, label="median of the minibatches")
        axis.set(xscale="log", xlabel="size of the minibatch B", ylabel=name)
        axis.set_xticks(SIZES, SIZES)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].axhline(1 / 3, color="tab:red", lw=1, ls="--", label="limit 1/r_max = 1/3")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    save(fig, output / "spread.png")


def mixing_claims(args) -> list[dict]:
    """Follow `InstanceRenorm2d` from the statistics of each image to those of the batch."""
    if not hasattr(layers, "InstanceRenorm2d"):
        text = "one affine map leads from instance to batch statistics"
        return [claim(text, "", "InstanceRenorm2d is missing", "", "not measured")]
    rng = set_up(6)
    # Images of one channel that differ in brightness and contrast.
    level, contrast = rng.normal(0, 2, (16, 1)), rng.uniform(0.5, 2, (16, 1))
    x = torch.tensor(rng.normal(level, contrast, (16, 64))).view(16, 1, 8, 8)
    shares = np.linspace(0, 1, 21)
    outs = torch.stack([mixed(x, float(m)) for m in shares])  # shares x images x 1 x 8 x 8
    ends = {
        "instance normalization": (outs[0], torch.nn.functional.instance_norm(x)),
        "batch normalization": (
            outs[-1],
            torch.nn.functional.batch_norm(x, None, None, training=True),
        ),
    }
    rows = []
    for (name, (found, right)), share in zip(ends.items(), (0, 1), strict=True):
        off = float((found - right).abs().max())
        text = f"InstanceRenorm with mixing {share} − {name}, largest"
        rows.append(claim(text, "0", f"{off:.0e}", "16 images", off < 1e-10))
    flat = outs.flatten(2).numpy()
    means, stds = flat.mean(axis=2), flat.std(axis=2)  # shares x images
    for name, values in (("mean", means), ("standard deviation", stds)):
        steps = np.diff(values, axis=0)
        monotone = float(np.mean((steps >= -1e-12).all(axis=0) | (steps <= 1e-12).all(axis=0)))
        text = f"share of images whose {name} moves one way as mixing grows"
        rows.append(claim(text, "100%", f"{monotone:.0%}", "16 images", monotone == 1))
    total = means.var(axis=1) + (stds**2).mean(axis=1)
    rows.append(
        claim(
            "variance of all values with mixing 0, 0.5, 1",
            "1 at both ends",
            ", ".join(f"{total[at]:.2f}" for at in (0, 10, 20)),
            "16 images",
            bool(abs(total[[0, -1]] - 1).max() < 1e-3),
        )
    )
    draw_mixing(shares, means, stds, args.output)
    return rows


def mixed(x: torch.Tensor, share: float) -> torch.Tensor:
    layer = layers.InstanceRenorm2d(1, affine=False, mixing=share, target="batch").double()
    with torch.no_grad():
        return layer.train()(x)


def draw_mixing(shares: np.ndarray, means: np.ndarray, stds: np.ndarray, output) -> None:
    fig, axes = figure(1, 3, figsize=(11, 3.6))
    total = np.sqrt(means.var(axis=1) + (stds**2).mean(axis=1))
    axes[0].plot(shares, means, color="tab:blue", lw=0.8)
    axes[1].plot(shares, stds, color="tab:blue", lw=0.8)
    axes[2].plot(shares, total**2, color="k", label="all values")
    axes[2].plot(shares, (stds**2).mean(axis=1), color="tab:blue", label="within images")
    axes[2].plot(shares, means.var(axis=1), color="tab:orange", label="between images")
    names = ("mean of each image", "standard deviation of each image", "variance of the output")
    for axis, name in zip(axes, names, strict=True):
        axis.set(xlabel="mixing: 0 instance, 1 batch", ylabel=name)
        axis.grid(alpha=0.3)
    axes[2].legend()
    save(fig, output / "mixing.png")
