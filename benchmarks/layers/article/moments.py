"""Statistics of small minibatches: how wrong they are, and how far training and test lie apart."""

from __future__ import annotations

import numpy as np
from common import figure, interval, save, set_up
from scipy.special import gammaln

from article import claim, close

SIZES = (2, 3, 4, 8, 16, 32)
BLOCKS = 50


def expected_std(size) -> np.ndarray:
    """Return the mean of the (biased) standard deviation of `size` standard normal values."""
    size = np.asarray(size, dtype=float)
    return np.sqrt(2 / size) * np.exp(gammaln(size / 2) - gammaln((size - 1) / 2))


def exact_mismatch(size) -> np.ndarray:
    """Return E[(z_train - z_test)²] of normal values: both squares are 1, the product E[std_B]."""
    return 2 - 2 * expected_std(size)


def in_blocks(draw, measure, number: int) -> np.ndarray:
    """Return the mean of `measure` over each block of minibatches."""
    return np.array([measure(draw(number // BLOCKS)).mean() for _ in range(BLOCKS)])


def variance_claims(args) -> list[dict]:
    rng = set_up(1)
    number = 100_000 if args.quick else 2_000_000
    rows = []
    for size in SIZES:
        error = in_blocks(
            lambda n, size=size: rng.standard_normal((n, size)),
            lambda x: (x.var(axis=1, ddof=1) - 1) ** 2,
            number if size < 8 else number // 5,
        )
        text = f"relative squared error of the unbiased variance, B = {size}: 2/(B-1)"
        rows.append(close(text, 2 / (size - 1), *interval(error)))
    return rows


def mismatch(x: np.ndarray) -> np.ndarray:
    """Return (z_train - z_test)² of values with mean 0 and variance 1 in the population."""
    z = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)
    return (z - x) ** 2


def mismatch_claims(args) -> list[dict]:
    rng = set_up(2)
    number = 100_000 if args.quick else 1_000_000
    kinds = {
        "normal": lambda shape: rng.standard_normal(shape),
        "exponential": lambda shape: rng.standard_exponential(shape) - 1,
    }
    found, rows = {}, []
    for kind, draw in kinds.items():
        for size in (*SIZES, 64, 128):
            blocks = in_blocks(
                lambda n, size=size, draw=draw: draw((n, size)), mismatch, number * 2 // size
            )
            mean, half = found[kind, size] = interval(blocks)
            text = f"E[(z_train - z_test)²], {kind} data, B = {size}: about 3/(2B)"
            rows.append(approximately(text, 1.5 / size, mean, half))
            if kind == "normal":
                text = f"the same, exactly: 2 - 2 E[std_B], B = {size}"
                rows.append(close(text, float(exact_mismatch(size)), mean, half))
    draw_mismatch(found, args.output)
    return rows


def approximately(text: str, expected: float, mean: float, half: float) -> dict:
    """Return a row that agrees within 5%, and says how far it is off."""
    off = mean / expected - 1
    return claim(
        text,
        f"{expected:.4f}",
        f"{mean:.4f}",
        f"{mean - half:.4f} to {mean + half:.4f}",
        f"{'yes' if abs(off) < 0.05 else 'no'}, {off:+.0%}",
    )


def draw_mismatch(found: dict, output) -> None:
    fig, (left, right) = figure(1, 2, figsize=(9, 3.8))
    size = np.arange(2, 129)
    left.plot(size, 1.5 / size, "k--", label="3/(2B)")
    left.plot(size, exact_mismatch(size), color="tab:blue", label="exact for normal data")
    right.plot(size, 100 * (1.5 / size / exact_mismatch(size) - 1), color="tab:blue")
    for kind, color in (("normal", "tab:blue"), ("exponential", "tab:orange")):
        sizes = [b for k, b in found if k == kind]
        values = [found[kind, b][0] for b in sizes]
        left.plot(sizes, values, "o", color=color, ms=5, label=f"simulated, {kind}")
    left.set(xscale="log", yscale="log", ylabel="E[(z_train − z_test)²]")
    right.set(xscale="log", ylabel="3/(2B) against the exact value, %")
    right.axhline(0, color="k", lw=0.8)
    for axis in (left, right):
        axis.set_xlabel("size of the minibatch B")
        axis.set_xticks([2, 4, 8, 16, 32, 64, 128], [2, 4, 8, 16, 32, 64, 128])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    left.legend()
    save(fig, output / "mismatch.png")
