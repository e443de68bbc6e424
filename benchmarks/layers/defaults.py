"""Which limits are a good default: from the first step on, in short and in long trainings.

    python benchmarks/layers/defaults.py [--only first accuracy stability] [--network dense]
        [--lengths 300 1400] [--methods NAME ...] [--seeds 5] [--quick]

The paper's schedule is plain batch normalization for 5,000 steps, however long the training is.
Compared with it are limits without a length in them, and limits that know it ("known length": the
paper's in proportion).  With m the momentum and t the number of
minibatches seen, those that follow the running average are (1 + 2a, 5a), where a is

- "filled": 1 - (1 - m)^t, the part of the running average that minibatches make up;
- "effective": its effective number of minibatches, (sum w)² / sum w², over the final one;
- "horizon": the paper's ratios 1 : 8 : 5 with 1/m minibatches in the place of 5,000;
- "gradual": the same with the ramps from the first step on, the default of the layers.

"Share" has the limits (3, 5) at once and applies the share a ("filled") of r and d.  All but
"paper", BatchNorm and "(3, 5), unit" begin with debiased statistics.

- first: the first outputs of a layer that sees N(200, 50), in minibatches of 32 and of 2.
- accuracy: digits, as in `small_batches.py` (splits by seed; the rate of Adam that does best on
  200 images held out, 500 test images in evaluation), in so many micro-batches.  Each step of the
  optimizer averages over 16 images, or over one micro-batch of 32.
- stability: SGD (momentum 0.9), three convolutions, micro-batches of 4, 16 images per step, 400
  steps, each seed by itself; "far off" has pixels from 200 to 250.  "Failed" are runs with less
  than 50% or a loss that is not finite, "spiked" those whose loss, averaged over 20 steps, was
  ever above 10.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch
from common import parser, plus_minus, seconds, set_up, show
from copies import accuracy, classifier, dense, loss
from small_batches import split
from torch import nn

from bioren.nn import PAPER, BatchRenorm1d, BatchRenorm2d, LinearLimits

NETWORKS = {"dense": dense, "conv": classifier}
SETTINGS = {
    "2 one class": (2, True),
    "2 iid": (2, False),
    "4 one class": (4, True),
    "32 iid": (32, False),
}
RATES = {  # of Adam, by the number of micro-batches
    300: (1e-3, 3e-3, 1e-2, 3e-2),
    1400: (3e-4, 1e-3, 3e-3, 1e-2),
    12000: (3e-3,),
}
TRIALS = {f"rate {rate:g}": (rate, False) for rate in (0.03, 0.1, 0.3, 1)} | {
    "far off": (0.03, True)
}
STEPS = 400  # of a trial
IMAGES = 16  # at least, per step of the optimizer


def filled(momentum: float):
    return lambda step: 1 - (1 - momentum) ** int(step)


def effective(momentum: float):
    return lambda step: math.tanh(-0.5 * math.log1p(-momentum) * int(step))  # (1 - q^t) / (1 + q^t)


def opening(share):
    return lambda step: (1 + 2 * share(step), 5 * share(step))


def horizon(momentum: float) -> LinearLimits:
    h = round(1 / momentum)
    return LinearLimits(h, 8 * h, 5 * h, 3.0, 5.0)


def options(method: str, batches: int) -> dict:
    """Return the options of a layer: what is compared and, behind the comma, its momentum."""
    name, _, momentum = method.rpartition(" ")
    m = float(momentum)
    return {"momentum": m, "initial": "debiased"} | {
        "BatchNorm": {"limits": (1.0, 0.0), "initial": "unit"},
        "paper": {"limits": PAPER, "initial": "unit"},
        "(3, 5), unit": {"limits": (3.0, 5.0), "initial": "unit"},
        "(3, 5)": {"limits": (3.0, 5.0)},
        "filled": {"limits": opening(filled(m))},
        "effective": {"limits": opening(effective(m))},
        "horizon": {"limits": horizon(m)},
        "gradual": {},
        "share": {"limits": (3.0, 5.0), "mixing": filled(m)},
        "known length": {"limits": LinearLimits.paper(batches)},
    }[name]


METHODS = [
    *("BatchNorm .01", "BatchNorm .1", "paper .01", "(3, 5), unit .01", "(3, 5) .01", "(3, 5) .1"),
    *("filled .01", "filled .1", "effective .01", "effective .1", "horizon .01", "horizon .1"),
    *("gradual .01", "gradual .1", "share .01", "known length .01"),
]


def layer(method: str, batches: int):
    """Return a function from a number of channels to the layer of `method`."""
    return lambda channels: BatchRenorm2d(channels, **options(method, batches))


def first_outputs(args) -> list[dict]:
    rows = []
    for method in args.methods:
        row = {"method": method}
        for size in (32, 2):
            set_up(0)
            one = BatchRenorm1d(256, **options(method, 1400))
            out = [one(torch.randn(size, 256) * 50 + 200).detach() for _ in range(300)]
            row[f"of {size}: mean"] = f"{out[0].mean():.3f}"
            row[f"sd of {size}"] = f"{out[0].var(dim=0, correction=0).mean().sqrt():.3f}"
            largest = torch.stack([o.square().mean().sqrt() for o in out]).max()
            row[f"of {size}: largest r.m.s. in 300"] = f"{largest:.2f}"
        rows.append(row)
    return rows


def drawn(codes: np.ndarray, size: int, one_class: bool, number: int, rng) -> np.ndarray:
    """Return the rows of so many micro-batches, (number, size); classes take turns."""
    if not one_class:
        return np.stack([rng.choice(len(codes), size, replace=False) for _ in range(number)])
    of = [np.flatnonzero(codes == c) for c in range(10)]
    turns = np.concatenate([rng.permutation(10) for _ in range(-(-number // 10))])
    return np.stack([rng.choice(of[c], size, replace=False) for c in turns[:number]])


def trained(network: nn.Module, optimizer, part, rows: torch.Tensor) -> np.ndarray:
    """Train on the rows, (micro-batches, copies, size); losses, (steps, copies)."""
    images, labels = part
    copy = torch.arange(len(labels))[:, None]
    together = max(IMAGES // rows.shape[2], 1)
    losses = []
    for step in rows.split(together):
        total = 0
        for micro in step:
            batch = loss(network, images[copy, micro], labels[copy, micro]) / len(step)
            batch.sum().backward()
            total = total + batch.detach()
        losses.append(total.numpy())
        if not np.isfinite(losses[-1]).all():
            break  # statistics that are not finite would be left out, those of other copies too
        optimizer.step()
        optimizer.zero_grad()
    return np.array(losses)


def best(parts, build, method: str, rows: torch.Tensor, rates) -> tuple[float, np.ndarray]:
    """Return the rate that does best on the images held out, and its test accuracies."""
    runs = {}
    for rate in rates:
        set_up(0)
        network = build(rows.shape[1], layer(method, len(rows)))
        optimizer = torch.optim.Adam(network.parameters(), lr=rate)
        trained(network, optimizer, parts["train"], rows)
        runs[rate] = [100 * accuracy(network, *parts[part]) for part in ("held out", "test")]
    rate = max(runs, key=lambda r: runs[r][0].mean())
    return rate, runs[rate][1]


def accuracies(args) -> tuple[list[dict], list[dict]]:
    """Return the table and each seed's accuracy."""
    parts, table, single = split(args.seeds), [{"method": m} for m in args.methods], []
    codes = parts["train"][1].numpy()
    for length in args.lengths:
        for setting in args.settings:
            size, one_class = SETTINGS[setting]
            rng = np.random.default_rng(0)
            rows = [drawn(c, size, one_class, length, rng) for c in codes]
            rows = torch.tensor(np.stack(rows, axis=1))
            for row in table:
                rates = RATES.get(length, (1e-2,))
                rate, found = best(parts, NETWORKS[args.network], row["method"], rows, rates)
                row[f"{setting}, {length}"] = plus_minus(found)
                what = {"setting": setting, "length": length, "method": row["method"], "rate": rate}
                single += [what | {"seed": s, "accuracy": f"{a:.1f}"} for s, a in enumerate(found)]
                print(what, plus_minus(found), f"{seconds():.0f} s", flush=True)
    return table, single


def trials(args) -> list[dict]:
    parts, table = split(args.trials), []
    for method in args.methods:
        row = {"method": method}
        for trial, (rate, far) in TRIALS.items():
            found, spiked = [], 0
            for seed in range(args.trials):
                rng = set_up(seed)
                network = classifier(1, layer(method, args.steps * 4))
                optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)
                own = {k: (x[seed, None] * 50 + 200 if far else x[seed, None], y[seed, None])
                       for k, (x, y) in parts.items()}  # fmt: skip
                rows = drawn(own["train"][1][0].numpy(), 4, False, args.steps * 4, rng)
                losses = trained(network, optimizer, own["train"], torch.tensor(rows)[:, None])
                blocks = losses[: len(losses) // 20 * 20].reshape(-1, 20).mean(axis=1)
                complete = bool(np.isfinite(losses).all())
                spiked += not complete or bool((blocks > 10).any())
                found.append(100 * accuracy(network, *own["test"])[0] if complete else 10.0)
            failed = sum(a < 50 for a in found)
            row[trial] = f"{failed} failed, {spiked} spiked; {plus_minus(found)}"
        print(row, f"{seconds():.0f} s", flush=True)
        table.append(row)
    return table


def main() -> None:
    options = parser(__doc__)
    parts = ["first", "accuracy", "stability"]
    options.add_argument("--only", nargs="+", choices=parts, default=parts, help="parts")
    options.add_argument("--network", choices=NETWORKS, default="dense", help="of accuracy")
    options.add_argument("--lengths", nargs="+", type=int, default=[300, 1400], help="batches")
    options.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    options.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    options.add_argument("--trials", type=int, default=8, help="seeds of the stability trials")
    args = options.parse_args()
    args.steps = STEPS
    if args.quick:
        args.seeds, args.lengths, args.trials, args.steps = 2, [40], 2, 20
    if "first" in args.only:
        show(first_outputs(args), args.output / "defaults_first.csv", "First outputs, N(200, 50)")
    if "accuracy" in args.only:
        table, single = accuracies(args)
        name = f"defaults_{args.network}_{'_'.join(map(str, args.lengths))}"
        title = f"{args.network}: test accuracy in %, mean ± 95% interval, {args.seeds} seeds"
        show(table, args.output / f"{name}.csv", title)
        pd.DataFrame(single).to_csv(args.output / f"{name}_seeds.csv", index=False)
    if "stability" in args.only:
        title = f"SGD, micro-batches of 4; accuracy in %, {args.trials} seeds"
        show(trials(args), args.output / "defaults_stability.csv", title)


if __name__ == "__main__":
    main()
