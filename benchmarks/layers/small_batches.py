"""Classification where only a few images fit into memory: micro-batches of 2, 4 and 32.

    python benchmarks/layers/small_batches.py [--network dense] [--seeds 5] [--steps 300] [--quick]

A network of three convolutions, or of three dense layers of 64 units, learns scikit-learn's
digits (1,797 images of 8 x 8).  A statistic of the former is over 64, 16 or 4 positions of each
image, one of the latter over as many values as there are images in a micro-batch.  Each step
of Adam averages the gradients of 64 images, which pass through the network in micro-batches; the
layers see nothing but these.  A micro-batch is either drawn evenly ("iid") or holds images of
one class only ("one class").  All see the same images, start from the same seeds, and have the
same grid of learning rates, of which the one with the best accuracy on 200 images held out is
taken for each method and kind of micro-batch.  The test set (500 images) is then looked at once,
in evaluation: with running statistics.  Splits differ by seed.

"BatchNorm" has the momentum of BatchRenorm, 0.01; torch's usual 0.1 is a row of its own.
BatchRenorm's limits go from (1, 0) to (3, 5) as in the paper: 10% of the training are plain batch
normalization, d reaches its limit after 25%, r after 40%.  "Averaged backward" has the means in
its gradient averaged over 16 micro-batches, too (Yan et al. 2020, arXiv:2001.06838).
"""

from __future__ import annotations

import numpy as np
import torch
from common import figure, interval, parser, plus_minus, save, seconds, set_up, show
from copies import COLORS, NAMES, accuracy, classifier, dense, digits, loss, normalizer

RATES = (1e-3, 3e-3, 1e-2)
IMAGES = 64  # per step of the optimizer
TEST, HELD_OUT = 500, 200
NETWORKS = {"conv": classifier, "dense": dense}


def split(seeds: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return images, (seeds, rows, 8, 8), and labels of each part, drawn anew for each seed."""
    images, labels = digits()
    order = np.stack([np.random.default_rng(s).permutation(len(labels)) for s in range(seeds)])
    ends = {
        "test": (0, TEST),
        "held out": (TEST, TEST + HELD_OUT),
        "train": (TEST + HELD_OUT, None),
    }
    return {part: (images[order[:, a:b]], labels[order[:, a:b]]) for part, (a, b) in ends.items()}


def drawn(labels: np.ndarray, size: int, one_class: bool, rng: np.random.Generator) -> np.ndarray:
    """Return the rows of the micro-batches of one step for one seed: (micro-batches, size)."""
    shape = IMAGES // size, size
    if not one_class:
        return rng.choice(len(labels), shape, replace=False)
    classes = [np.flatnonzero(labels == c) for c in range(10)]
    order = np.concatenate([rng.permutation(10) for _ in range(-(-shape[0] // 10))])
    return np.stack([rng.choice(classes[c], size, replace=False) for c in order[: shape[0]]])


def trained(parts, build, method: str, size: int, one_class: bool, rate: float, steps: int) -> dict:
    """Train all seeds side by side; return accuracies, each of shape (looks, seeds)."""
    rng = set_up(0)
    images, labels = parts["train"]
    seeds, codes = len(labels), labels.numpy()
    network = build(seeds, normalizer(method, steps * IMAGES // size))
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    copy = torch.arange(seeds)[:, None]
    looks: dict[str, list] = {"step": [], "held out": [], "test": []}
    for step in range(1, steps + 1):
        rows = np.stack([drawn(codes[s], size, one_class, rng) for s in range(seeds)])
        for micro in torch.tensor(rows).unbind(dim=1):  # seeds x size
            batch = loss(network, images[copy, micro], labels[copy, micro])
            (batch.sum() * size / IMAGES).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % max(steps // 15, 1) == 0:
            looks["step"].append(step)
            for part in ("held out", "test"):
                looks[part].append(accuracy(network, *parts[part]))
    return {name: np.array(values) for name, values in looks.items()}


def best(parts, build, method: str, size: int, one_class: bool, steps: int, rates) -> dict:
    """Return the run with the learning rate that does best on the images held out."""
    runs = {rate: trained(parts, build, method, size, one_class, rate, steps) for rate in rates}
    rate = max(runs, key=lambda r: runs[r]["held out"][-1].mean())
    return {**runs[rate], "rate": rate}


def draw(found: dict, sizes, path) -> None:
    """Draw test accuracy against the step, one panel for each kind of micro-batch."""
    fig, axes = figure(2, len(sizes), figsize=(4 * len(sizes), 6.5), sharex=True, sharey=True)
    for axis_row, one_class in zip(axes, (False, True), strict=True):
        for axis, size in zip(axis_row, sizes, strict=True):
            for method, name in NAMES.items():
                run = found[method, size, one_class]
                mean, half = np.array([interval(values) for values in run["test"] * 100]).T
                axis.plot(run["step"], mean, color=COLORS[method], label=name)
                axis.fill_between(
                    run["step"], mean - half, mean + half, color=COLORS[method], alpha=0.15, lw=0
                )
            axis.set(title=f"micro-batches of {size}, {'one class' if one_class else 'iid'}")
            axis.set_ylim(0, 100)
            axis.grid(alpha=0.3)
    fig.supxlabel("step of the optimizer (64 images each)")
    fig.supylabel("test accuracy in evaluation, %")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    save(fig, path)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=300, help="steps of the optimizer")
    options.add_argument("--network", choices=NETWORKS, default="conv", help="what is trained")
    args = options.parse_args()
    build, path = NETWORKS[args.network], args.output / f"small_batches_{args.network}"
    sizes, steps, rates = (2, 4, 32), args.steps, RATES
    if args.quick:
        args.seeds, sizes, steps, rates = 2, (2, 32), 15, (3e-3,)
    parts = split(args.seeds)
    found, rows = {}, []
    for one_class in (False, True):
        for method, name in NAMES.items():
            row = {"micro-batches": "one class" if one_class else "iid", "method": name}
            for size in sizes:
                run = found[method, size, one_class] = best(
                    parts, build, method, size, one_class, steps, rates
                )
                row[f"of {size}"] = plus_minus(run["test"][-1] * 100)
                row[f"rate at {size}"] = f"{run['rate']:g}"
            print(row, f"{seconds():.0f} s", flush=True)
            rows.append(row)
    title = f"{args.network}: test accuracy in %, mean ± 95% interval, {args.seeds} seeds"
    show(rows, path.with_suffix(".csv"), title)
    draw(found, sizes, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
