"""Segmentation of 3-D volumes at batch 1 and 2, as memory forces it upon medical imaging.

A small MONAI UNet (8, 16, 32 channels, one residual unit each) learns to find spheres in MONAI's
synthetic volumes (24 x 24 x 24) under noise, of two kinds:

- "uncalibrated", like MR: each volume has its own gain (log-normal, 0.3) and offset (normal, 0.3),
  as scanners differ.  To normalize each volume by itself removes just that;
- "calibrated", like CT: dense spheres are wanted, soft ones are not, and a volume has soft ones,
  dense ones or both.  To normalize each volume by itself hides which.  Noise differs by volume.

24 volumes to train on, 16 held out, new for each seed; Dice and cross-entropy loss, Adam at a
learning rate that falls from 0.003 to 0, the same for all and untuned; the same number of steps
at either batch size.  The figure of merit is the Dice coefficient over all voxels of the held-out
volumes, in evaluation mode:

- "BatchNorm": torch's layers as MONAI sets them (momentum 0.1).  "Dice, train mode" is with the
  statistics of the minibatch, as in training; the difference is the gap between the two modes.
  A row of its own has running statistics computed anew over the training volumes, a known remedy;
- "BatchRenorm": the same network after `bioren.nn.convert_batchnorm`, momentum 0.01, limits that
  open between 1/8 and 5/8 of the run;
- "BatchRenorm from half-way": trained with BatchNorm for half of the run, then converted, limits
  opening over the next quarter;
- "GroupNorm" (4 groups) and "InstanceNorm" (affine), the same in both modes.

    python benchmarks/layers/segmentation.py [--seeds 4] [--steps 600]
"""

from __future__ import annotations

import copy
import itertools
import time

import numpy as np
import torch
from common import figure, interval, parser, plus_minus, save, set_up, show
from monai.data import create_test_image_3d
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from torch import nn

from bioren.nn import LinearLimits, convert_batchnorm

NORMS = {
    "BatchNorm": "batch",
    "BatchRenorm": "batch",
    "BatchRenorm from half-way": "batch",
    "GroupNorm": ("group", {"num_groups": 4}),
    "InstanceNorm": ("instance", {"affine": True}),
}

SIZES = (1, 2)  # of minibatches
SPHERES = {"num_objs": 4, "rad_max": 6, "rad_min": 3}
BRN = {"momentum": 0.01, "initial": "debiased"}  # so short a run has no time for a slow start


def volumes(count, seed, kind):
    """Return `count` volumes and their masks, each (count, 1, 24, 24, 24)."""
    random = np.random.RandomState(seed)  # the kind of generator that MONAI takes
    pairs = [KINDS[kind](random) for _ in range(count)]
    images, masks = (np.stack(part)[:, None] for part in zip(*pairs, strict=True))
    return torch.from_numpy(images).float(), torch.from_numpy(masks).float()


def uncalibrated(random):
    image, mask = create_test_image_3d(24, 24, 24, noise_max=0.3, random_state=random, **SPHERES)
    image = image + random.normal(0, 0.6, image.shape)
    gain, offset = np.exp(random.normal(0, 0.3)), random.normal(0, 0.3)
    return gain * image + offset, mask > 0


def calibrated(random):
    _, kind = create_test_image_3d(
        24, 24, 24, num_seg_classes=2, noise_max=0, random_state=random, **SPHERES
    )
    shown = random.choice(["soft", "dense", "both"])
    if shown != "both":
        kind = np.where(kind > 0, 1 if shown == "soft" else 2, 0)
    density = np.array([0, 0.6, 1.0])[kind.astype(int)]
    return density + random.normal(0, random.uniform(0.1, 0.5), kind.shape), kind == 2


KINDS = {"uncalibrated": uncalibrated, "calibrated": calibrated}


def network(name):
    """Return a network that ends in eight normalized channels and a convolution of its own.

    MONAI would normalize the single output channel too, which GroupNorm cannot.
    """
    unet = UNet(3, 1, 8, (8, 16, 32), (2, 2), num_res_units=1, norm=NORMS[name])
    return nn.Sequential(unet, nn.Conv3d(8, 1, 1))


def convert(net, name, step, steps):
    """Turn BatchNorm to BatchRenorm if `step` is when this method does."""
    if name == "BatchRenorm" and step == 0:
        convert_batchnorm(net, limits=opening(steps // 8, steps // 2), **BRN)
    if name == "BatchRenorm from half-way" and step == steps // 2:
        convert_batchnorm(net, limits=opening(steps // 2, steps // 4), **BRN)


def opening(start, length):
    """Return limits like the paper's, which opens d before r, in a run as short as this."""
    return LinearLimits(start, start + length, start + length // 2, 3.0, 5.0)


def train(kind, name, batch, seed, options):
    """Return Dice along the way (evaluations x modes), and with recomputed statistics or None."""
    set_up(seed)
    held_out = volumes(options.held_out, 1000 + seed, kind)
    images, masks = volumes(options.volumes, seed, kind)
    net, loss = network(name), DiceCELoss(sigmoid=True)
    optimizer = torch.optim.Adam(net.parameters(), lr=options.rate)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, options.steps)
    curve = []
    for step, rows in zip(
        range(options.steps), minibatches(len(images), batch, seed), strict=False
    ):
        convert(net, name, step, options.steps)
        net.train()
        optimizer.zero_grad()
        loss(net(images[rows]), masks[rows]).backward()
        optimizer.step()
        falling.step()
        if (step + 1) % options.every == 0:
            curve.append([dice(net, *held_out, mode) for mode in modes(name, batch)])
    again = dice(recomputed(net, images, batch), *held_out) if name == "BatchNorm" else None
    return np.array(curve), again


def modes(name, batch):
    """Return the sizes of minibatches for the statistics; 0 for evaluation mode."""
    return (0, batch) if NORMS[name] == "batch" else (0,)


def minibatches(count, size, seed):
    """Yield rows for ever; every pass through the volumes has an order of its own."""
    order = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=order).split(size)


@torch.no_grad()
def dice(net, images, masks, train_mode=0):
    """Return the Dice of all voxels; with `train_mode` > 0 in training mode, so many at once."""
    net = copy.deepcopy(net)  # passes in training mode move the running statistics
    net.train(bool(train_mode))
    parts = [net(part) for part in images.split(train_mode or 2)]
    found = torch.cat(parts) > 0
    return float(2 * (found * masks).sum() / (found.sum() + masks.sum()))


@torch.no_grad()
def recomputed(net, images, batch):
    """Return a copy with running statistics averaged over the training volumes, weights fixed."""
    net = copy.deepcopy(net).train()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm3d):
            layer.reset_running_stats()
            layer.momentum = None
    for part in images.split(batch):
        net(part)
    return net


def run(kind, name, batch, options):
    """Return Dice (seeds x evaluations x modes), that with recomputed statistics, and seconds."""
    curves, again, started = [], [], time.process_time()
    for seed in range(options.seeds):
        curve, value = train(kind, name, batch, seed, options)
        curves.append(curve)
        again.append(value)
    print(f"{kind}, batch {batch}, {name}: {np.array(curves)[:, -1, 0].round(3)}", flush=True)
    return np.array(curves), again, (time.process_time() - started) / options.seeds


def rows_of(kind, batch, results, again, seconds):
    """Return the rows of the table for volumes of one kind and minibatches of one size."""
    plain = results[kind, batch, "BatchNorm"][:, -1, 0]
    rows = []
    for name in NORMS:
        evaluated, *trained = results[kind, batch, name][:, -1].T
        about = {"volumes": kind, "batch": batch, "layers": name}
        rows.append(about | scores(evaluated, plain, trained) | {"CPU s": f"{seconds[name]:.0f}"})
        if name == "BatchNorm":
            about["layers"] = "BatchNorm, recomputed"
            rows.append(about | scores(np.array(again[name]), plain, []) | {"CPU s": ""})
    return rows


def scores(evaluated, plain, trained):
    return {
        "Dice": plus_minus(evaluated, 3),
        "worst seed": f"{evaluated.min():.3f}",
        "minus BatchNorm, by seed": plus_minus(evaluated - plain, 3),
        "Dice, train mode": plus_minus(trained[0], 3) if trained else "",
        "train minus eval": plus_minus(trained[0] - evaluated, 3) if trained else "",
    }


def draw(results, options, path):
    fig, axes = figure(len(KINDS), 2, figsize=(9, 7), sharex=True, sharey="row")
    steps = options.every * np.arange(1, options.steps // options.every + 1)
    for ax, (kind, batch) in zip(axes.flat, itertools.product(KINDS, SIZES), strict=True):
        for name in NORMS:
            band(ax, steps, results[kind, batch, name][:, :, 0], name)
        mean = results[kind, batch, "BatchNorm"][:, :, 1].mean(axis=0)
        ax.plot(steps, mean, color="C0", ls="--", label="BatchNorm, train mode")
        ax.set(title=f"{kind} volumes, batch {batch}", ylim=(0.3, 1))
    for ax in axes[-1]:
        ax.set_xlabel("steps")
    for ax in axes[:, 0]:
        ax.set_ylabel("Dice of held-out volumes")
    axes[-1, -1].legend(frameon=False, loc="lower right", fontsize=8)
    save(fig, path)


def band(ax, steps, values, label):
    mean, half = np.array([interval(column) for column in values.T]).T
    (line,) = ax.plot(steps, mean, label=label)
    ax.fill_between(steps, mean - half, mean + half, color=line.get_color(), alpha=0.12, lw=0)


def main(options):
    results, rows = {}, []
    for kind, batch in itertools.product(KINDS, SIZES):
        again, seconds = {}, {}
        for name in NORMS:
            found = run(kind, name, batch, options)
            results[kind, batch, name], again[name], seconds[name] = found
        rows += rows_of(kind, batch, results, again, seconds)
    title = f"Segmentation after {options.steps} steps, {options.seeds} seeds"
    show(rows, options.output / "segmentation.csv", title)
    draw(results, options, options.output / "segmentation.png")


if __name__ == "__main__":
    arguments = parser(__doc__, seeds=4)
    arguments.add_argument("--steps", type=int, default=600)
    arguments.add_argument("--rate", type=float, default=3e-3, help="learning rate, for all")
    arguments.add_argument("--every", type=int, default=100, help="steps between evaluations")
    chosen = arguments.parse_args()
    chosen.volumes, chosen.held_out = (4, 4) if chosen.quick else (24, 16)
    if chosen.quick:
        chosen.seeds, chosen.steps, chosen.every = 2, 8, 4
    main(chosen)
