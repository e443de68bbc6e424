"""Four ranks of two samples each, against one process with all eight.

A small network (two convolutions, a dense layer, each normalized, and a linear one) learns
scikit-learn's digits (8 x 8 pixels) on four gloo ranks under DistributedDataParallel, by SGD with
momentum 0.9 and a learning rate that falls from 0.05 to 0, the same for all and untuned.  Shards:

- "iid": each rank has a random quarter of the training images;
- "by class": each rank has classes of its own (0-2, 3-5, 6-7, 8-9), so that no minibatch of a
  rank looks like the data.

At each step every setting sees the same eight images, the one process too.  Accuracy on 500 images
held out, in evaluation mode: with the running statistics of rank 0, which a checkpoint would hold,
and with those of all ranks merged.  Momentum of the statistics is 0.1 for BatchNorm (torch's
default) and 0.01 for BatchRenorm (the paper's), whose limits open from 1/10 to 1/2 of the run.

"buffers: rank 0" is DistributedDataParallel's default: before each step rank 0's running statistics
overwrite those of all others.  "buffers: own" is forward_sync_buffers=False, which was called
broadcast_buffers before torch 2.13.  BatchNorm trains the same either way.

Before that a check: parameters and running statistics after training on four ranks with
synchronized layers, minus those of one process, in float64; with equal and unequal numbers of
samples, and with a rank that has none.

    python benchmarks/layers/distributed.py [--seeds 5] [--steps 600]
"""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from common import parser, plus_minus, set_up, show
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bioren.nn import LinearLimits, convert_batchnorm, convert_sync

RANKS = 4
EQUAL = (2, 2, 2, 2)
CHECKED = (EQUAL, (1, 2, 4, 1), (0, 1, 3, 4))
CLASSES = ((0, 1, 2), (3, 4, 5), (6, 7), (8, 9))


@dataclass(frozen=True)
class Setting:
    layers: str  # "BatchNorm", "BatchRenorm" or "SyncBatchRenorm"
    broadcast: bool = True
    ranks: int = RANKS

    def __str__(self):
        if self.ranks == 1:
            return f"{self.layers}, one process"
        if self.layers == "SyncBatchRenorm":
            return self.layers
        return f"{self.layers}, buffers: {'rank 0' if self.broadcast else 'own'}"


SETTINGS = [
    Setting("BatchNorm", broadcast=False),
    Setting("BatchRenorm"),
    Setting("BatchRenorm", broadcast=False),
    Setting("SyncBatchRenorm"),
    Setting("BatchNorm", ranks=1),
    Setting("BatchRenorm", ranks=1),
]


def digits(seed):
    """Return images and labels to train on, then those held out."""
    found = load_digits()
    images = torch.from_numpy(found.images[:, None] / 16).float()
    labels = torch.from_numpy(found.target)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=500, stratify=labels, random_state=seed
    )
    return images[train], labels[train], images[test], labels[test]


def network(setting, steps):
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64, bias=False),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    if setting.layers != "BatchNorm":
        limits = LinearLimits(steps // 10, steps // 2, steps // 3, 3.0, 5.0)
        convert_batchnorm(net, limits=limits, initial="unit", momentum=0.01)
    return convert_sync(net) if setting.layers == "SyncBatchRenorm" else net


def plan(labels, shards, seed, steps, sizes=EQUAL):
    """Return the rows of each rank at each step, the same wherever it is called."""
    draw = np.random.default_rng([seed, 1])
    if shards == "iid":
        parts = np.array_split(draw.permutation(len(labels)), RANKS)
    else:
        parts = [np.flatnonzero(np.isin(labels, own)) for own in CLASSES]
    return [
        [draw.choice(part, size, replace=False) for part, size in zip(parts, sizes, strict=True)]
        for _ in range(steps)
    ]


def train(setting, shards, seed, steps, sizes=EQUAL, dtype=torch.float32):
    """Return the network of this process after `steps`, and the data held out."""
    set_up(seed)
    images, labels, *held_out = digits(seed)
    net = network(setting, steps).to(dtype)
    several = setting.ranks > 1
    model = net
    if several:
        model = DistributedDataParallel(net, forward_sync_buffers=setting.broadcast)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for rows in plan(labels.numpy(), shards, seed, steps, sizes):
        mine = rows[dist.get_rank()] if several else np.concatenate(rows)
        loss = nn.functional.cross_entropy(
            model(images[mine].to(dtype)), labels[mine], reduction="sum"
        )
        # The gradients of the ranks are averaged, so this is the mean over all samples.
        loss = loss * setting.ranks / sum(sizes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
    return net, held_out


@torch.no_grad()
def accuracy(net, images, labels):
    return float((net.eval()(images).argmax(1) == labels).float().mean())


@torch.no_grad()
def merge_statistics(net):
    """Give each layer the running statistics of all ranks together."""
    for layer in net.modules():
        if hasattr(layer, "running_mean"):
            means, variances = everywhere(layer.running_mean), everywhere(layer.running_var)
            layer.running_mean.copy_(means.mean(0))
            layer.running_var.copy_(variances.mean(0) + means.var(0, correction=0))


def everywhere(values):
    parts = [torch.empty_like(values) for _ in range(RANKS)]
    dist.all_gather(parts, values)
    return torch.stack(parts)


def flat(net):
    """Return all parameters and running statistics in one vector."""
    return torch.cat([value.double().ravel() for value in net.state_dict().values()])


def jobs(options):
    """Return what is to be run: setting, shards, seed."""
    seeds = range(options.seeds)
    return list(itertools.product(SETTINGS, ("iid", "by class"), seeds))


def work(rank, options, folder):
    """Run all that needs several ranks; rank 0 writes what was found into `folder`."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS
    )
    found = {}
    for sizes in CHECKED:
        setting = Setting("SyncBatchRenorm")
        net, _ = train(setting, "by class", 0, options.check_steps, sizes, torch.float64)
        found[sizes] = flat(net)
    for setting, shards, seed in jobs(options):
        if setting.ranks == 1:
            continue
        net, held_out = train(setting, shards, seed, options.steps)
        own = accuracy(net, *held_out)
        merge_statistics(net)
        found[setting, shards, seed] = own, accuracy(net, *held_out)
        if rank == 0:
            print(f"{setting}, {shards}, seed {seed}: {own:.3f}", flush=True)
    if rank == 0:
        torch.save(found, Path(folder) / "found")
    dist.destroy_process_group()


def on_ranks(options):
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (options, folder), nprocs=RANKS)
        return torch.load(Path(folder) / "found", weights_only=False)


def in_one_process(options):
    for setting, shards, seed in jobs(options):
        if setting.ranks == 1:
            net, held_out = train(setting, shards, seed, options.steps)
            found = accuracy(net, *held_out)
            yield (setting, shards, seed), (found, found)


def show_check(found, options):
    rows = []
    for sizes in CHECKED:
        one = Setting("BatchRenorm", ranks=1)
        net, _ = train(one, "by class", 0, options.check_steps, sizes, torch.float64)
        difference = (found[sizes] - flat(net)).abs().max()
        rows.append({"samples of each rank": str(sizes), "largest difference": f"{difference:.1e}"})
    title = f"Synchronized on {RANKS} ranks minus one process, {options.check_steps} steps, float64"
    show(rows, options.output / "distributed_check.csv", title)


def row(shards, setting, found, options):
    values = np.array([found[setting, shards, seed] for seed in range(options.seeds)])
    merged = plus_minus(values[:, 1], scale=100) if setting.ranks > 1 else ""
    return {
        "shards": shards,
        "layers": str(setting),
        "accuracy, %": plus_minus(values[:, 0], scale=100),
        "worst seed": f"{100 * values[:, 0].min():.1f}",
        "statistics merged, %": merged,
    }


def main(options):
    found = on_ranks(options)
    show_check(found, options)
    found.update(in_one_process(options))
    rows = [row(shards, s, found, options) for shards in ("iid", "by class") for s in SETTINGS]
    title = f"Digits on {RANKS} ranks of 2 samples, {options.steps} steps, {options.seeds} seeds"
    show(rows, options.output / "distributed.csv", title)


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("--steps", type=int, default=600)
    arguments.add_argument("--check-steps", type=int, default=100, help="steps of the check")
    chosen = arguments.parse_args()
    if chosen.quick:
        chosen.seeds, chosen.steps, chosen.check_steps = 1, 20, 10
    main(chosen)
