"""A small DCGAN on scikit-learn's digits: how steady it trains, and how good its samples are.

    python benchmarks/layers/gan.py [--seeds 5] [--steps 3000] [--minibatches 4 32] [--quick]

Generator and discriminator (three convolutions each; Radford et al. 2016) have BatchNorm, the
same turned into Batch Renormalization by `convert_batchnorm`, or no normalization, and are
trained with minibatches of 4 and of 32 (or others).  As usual, the discriminator sees real and
drawn images in separate minibatches.  Adam with betas (0.5, 0.999); both learning rates that were
tried are shown, and nothing is selected.  Momentum is 0.01 for both kinds of normalization, the
limits of Batch Renormalization go to (3, 5) as in `copies.warm_up`.  ``--methods`` also takes
"renorm in generator", with BatchNorm in the discriminator.

Samples are scored by the features (32, before the last layer) and the labels of a classifier
trained on all digits:

- Fréchet distance: between Gaussians fitted to the features of 2,000 samples and of the 1,797
  digits.  "deployed" has the generator in evaluation, with running statistics; "in training" has
  it normalize by minibatches of the training's size.
- classes: the exponential of the entropy of the labels of the samples; 10 is all digits alike.
- failed: share of seeds whose deployed generator is not finite, has fewer than 5 classes, or is
  further off than the digits of one class alone are (mean over the classes).
- wobble: how far the deployed Fréchet distance moves from look to look within the last third of
  the training (standard deviation), mean over the seeds.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from common import figure, interval, parser, plus_minus, save, seconds, set_up, show
from copies import COLORS, NAMES, accuracy, beside, classifier, conv, digits, loss, warm_up
from torch import nn
from torch.nn import functional as F

from bioren.nn import convert_batchnorm

LATENT, WIDTH, SAMPLES = 32, 16, 2000
ONE_SIDED = "renorm in generator"
METHODS = ("none", "batch", "renorm", ONE_SIDED)
NAMES = {**NAMES, ONE_SIDED: "BatchRenorm, generator only"}
COLORS = {**COLORS, ONE_SIDED: "tab:purple"}


def transposed(copies: int, inside: int, outside: int, **options) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(copies * inside, copies * outside, groups=copies, **options)


def networks(copies: int, method: str, steps: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Return generators and discriminators of all copies."""

    def normal(channels: int) -> nn.Module:
        return nn.Identity() if method == "none" else nn.BatchNorm2d(copies * channels)

    twice = {"kernel_size": 4, "stride": 2, "padding": 1}
    generator = nn.Sequential(
        transposed(copies, LATENT, 4 * WIDTH, kernel_size=2),
        normal(4 * WIDTH),
        nn.ReLU(),
        transposed(copies, 4 * WIDTH, 2 * WIDTH, **twice),
        normal(2 * WIDTH),
        nn.ReLU(),
        transposed(copies, 2 * WIDTH, 1, **twice),
        nn.Tanh(),
    )
    discriminator = nn.Sequential(
        conv(copies, 1, WIDTH, padding=1),
        nn.LeakyReLU(0.2),
        conv(copies, WIDTH, 2 * WIDTH, **twice),
        normal(2 * WIDTH),
        nn.LeakyReLU(0.2),
        conv(copies, 2 * WIDTH, 4 * WIDTH, **twice),
        normal(4 * WIDTH),
        nn.LeakyReLU(0.2),
        conv(copies, 4 * WIDTH, 1, kernel_size=2),
    )
    for network, batches in ((generator, steps), (discriminator, 3 * steps)):
        bridged = method == "renorm" or (method == ONE_SIDED and network is generator)
        limits = warm_up(batches) if bridged else (1.0, 0.0)  # the latter is BatchNorm
        convert_batchnorm(network, limits=limits, initial="unit", momentum=0.01)
    return generator, discriminator


class Judge:
    """Scores samples by a classifier of the digits."""

    def __init__(self, steps: int = 600) -> None:
        rng = set_up(0)
        images, labels = digits()
        self.real = images
        images, labels = images[None], labels[None]
        self.network = classifier(1, lambda channels: nn.GroupNorm(channels // 4, channels))
        optimizer = torch.optim.Adam(self.network.parameters(), lr=3e-3)
        for _ in range(steps):
            rows = rng.choice(labels.shape[1], 64)
            loss(self.network, images[:, rows], labels[:, rows]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        self.accuracy = accuracy(self.network, images, labels)[0]
        features = self.features(self.real)
        self.moments = features.mean(axis=0), np.cov(features.T)
        half = rng.permutation(len(features))[: len(features) // 2]
        self.floor = self.frechet(features[half])
        self.one_class = np.mean(
            [self.frechet(features[labels[0].numpy() == digit]) for digit in range(10)]
        )

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> np.ndarray:
        return self.network[:-1](images[:, None]).flatten(1).double().numpy()

    def frechet(self, features: np.ndarray) -> float:
        """Return the Fréchet distance of the features to those of the digits."""
        if not np.isfinite(features).all():
            return float("inf")
        (mean, cov), off = self.moments, np.cov(features.T)
        cross = np.linalg.eigvals(cov @ off).real.clip(min=0)
        square = ((mean - features.mean(axis=0)) ** 2).sum()
        return float(square + np.trace(cov) + np.trace(off) - 2 * np.sqrt(cross).sum())

    @torch.no_grad()
    def classes(self, images: torch.Tensor) -> float:
        """Return the exponential of the entropy of the labels."""
        labels = self.network(images[:, None]).flatten(1).argmax(dim=1)
        share = np.bincount(labels.numpy(), minlength=10) / len(labels)
        return float(np.exp(-(share[share > 0] * np.log(share[share > 0])).sum()))


@torch.no_grad()
def samples(generator: nn.Module, copies: int, number: int, minibatch: int | None) -> torch.Tensor:
    """Return (copies, number, 8, 8) in [0, 1]: deployed, or as in training with this minibatch."""
    generator = copy.deepcopy(generator).train(minibatch is not None)
    noise = torch.Generator().manual_seed(1)
    parts = []
    for rows in torch.arange(number).split(minibatch or 500):
        z = torch.randn(len(rows), copies * LATENT, 1, 1, generator=noise)
        parts.append(generator(z).transpose(0, 1))
    return (torch.cat(parts, dim=1) + 1) / 2


def trained(method: str, minibatch: int, rate: float, args, judge: Judge) -> dict:
    """Train all seeds side by side; return scores of shape (seeds,) and a look at the way."""
    rng = set_up(0)
    copies, steps = args.seeds, args.steps
    generator, discriminator = networks(copies, method, steps)
    optimizers = [
        torch.optim.Adam(n.parameters(), lr=rate, betas=(0.5, 0.999))
        for n in (generator, discriminator)
    ]
    real = judge.real * 2 - 1
    way: dict[str, list] = {"step": [], "frechet": []}
    for step in range(1, steps + 1):
        rows = torch.tensor(rng.integers(len(real), size=(copies, minibatch)))
        one_step(generator, discriminator, optimizers, beside(real[rows]))
        if step % max(steps // 15, 20) == 0:
            drawn = samples(generator, copies, 1000, None)
            way["step"].append(step)
            way["frechet"].append([judge.frechet(judge.features(x)) for x in drawn])
    found = scores(generator, minibatch, copies, judge)
    last = np.array(way["frechet"])[-5:]
    found["wobble"] = last.std(axis=0, ddof=1)
    return {**found, **{name: np.array(values) for name, values in way.items()}}


def one_step(generator, discriminator, optimizers, real: torch.Tensor) -> None:
    """Improve the discriminators, then the generators."""

    def fooled(images: torch.Tensor, target: float) -> torch.Tensor:
        out = discriminator(images)
        goal = torch.full_like(out, target)
        # The mean over the minibatch, the sum over the copies.
        return F.binary_cross_entropy_with_logits(out, goal, reduction="sum") / len(images)

    drawn = generator(torch.randn(len(real), real.shape[1] * LATENT, 1, 1))
    of_generator, of_discriminator = optimizers
    of_discriminator.zero_grad()
    (fooled(real, 1.0) + fooled(drawn.detach(), 0.0)).backward()
    of_discriminator.step()
    of_generator.zero_grad()
    fooled(drawn, 1.0).backward()
    of_generator.step()


def scores(generator: nn.Module, minibatch: int, copies: int, judge: Judge) -> dict:
    deployed = samples(generator, copies, SAMPLES, None)
    training = samples(generator, copies, SAMPLES, minibatch)
    distance = np.array([judge.frechet(judge.features(x)) for x in deployed])
    classes = np.array([judge.classes(x) for x in deployed])
    return {
        "deployed": distance,
        "in training": np.array([judge.frechet(judge.features(x)) for x in training]),
        "classes": classes,
        "failed": ~((classes >= 5) & (distance <= judge.one_class)),
        "images": deployed[:, :6].numpy(),
    }


def row(method: str, minibatch: int, rate: float, run: dict) -> dict:
    return {
        "minibatch": minibatch,
        "rate": f"{rate:g}",
        "method": NAMES[method],
        "Fréchet, deployed": plus_minus(run["deployed"], 2),
        "std over seeds": f"{run['deployed'].std(ddof=1):.2f}",
        "Fréchet, in training": plus_minus(run["in training"], 2),
        "classes": plus_minus(run["classes"], 2),
        "failed": f"{run['failed'].sum()} of {len(run['failed'])}",
        "wobble": f"{run['wobble'].mean():.2f}",
    }


def draw_ways(found: dict, methods, minibatches, rates, output) -> None:
    """Draw the deployed Fréchet distance against the step."""
    shape = len(rates), len(minibatches)
    fig, axes = figure(
        *shape, figsize=(9, 3.4 * len(rates)), sharex="col", sharey=True, squeeze=False
    )
    for axis_row, rate in zip(axes, rates, strict=True):
        for axis, minibatch in zip(axis_row, minibatches, strict=True):
            for method in methods:
                run = found[method, minibatch, rate]
                mean, half = np.array([interval(values) for values in run["frechet"]]).T
                line = {"color": COLORS[method]}
                axis.plot(run["step"], mean, label=NAMES[method], **line)
                low = (mean - half).clip(min=1e-2)
                axis.fill_between(run["step"], low, mean + half, alpha=0.15, lw=0, **line)
            axis.set(title=f"minibatches of {minibatch}, rate {rate:g}", yscale="log")
            axis.grid(alpha=0.3)
    fig.supxlabel("step")
    fig.supylabel("Fréchet distance, deployed")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    save(fig, output / "gan_training.png")


def draw_samples(
    found: dict, methods, minibatches, rate: float, real: torch.Tensor, output
) -> None:
    """Draw six samples of each of the first four seeds, deployed, and real digits."""
    fig, axes = figure(
        len(minibatches),
        len(methods) + 1,
        figsize=(2.75 * len(methods) + 2.75, 2.3 * len(minibatches)),
        squeeze=False,
    )
    for axis_row, minibatch in zip(axes, minibatches, strict=True):
        images = {NAMES[m]: found[m, minibatch, rate]["images"][:4] for m in methods}
        images["digits"] = real[:24].view(4, 6, 8, 8).numpy()
        for axis, (name, grid) in zip(axis_row, images.items(), strict=True):
            tiles = np.pad(grid, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=0.3)
            rows, columns, side, _ = tiles.shape
            sheet = tiles.transpose(0, 2, 1, 3).reshape(rows * side, columns * side)
            axis.imshow(sheet, cmap="gray_r", vmin=0, vmax=1)
            axis.set(title=name, xticks=[], yticks=[])
        axis_row[0].set_ylabel(f"minibatches of {minibatch}\n(a row for each seed)")
    save(fig, output / "gan_samples.png")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=3000, help="steps of a training")
    options.add_argument("--minibatches", type=int, nargs="+", default=[4, 32], help="their sizes")
    options.add_argument("--rates", type=float, nargs="+", default=[2e-4, 1e-3], help="of Adam")
    options.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS[:3], help="what")
    args = options.parse_args()
    minibatches, rates = args.minibatches, args.rates
    if args.quick:
        args.seeds, args.steps, rates = 2, 60, [1e-3]
    judge = Judge(60 if args.quick else 600)
    print(
        f"Judge: accuracy {judge.accuracy:.3f} on its digits; Fréchet distance of half of the "
        f"digits {judge.floor:.2f}, of one class alone {judge.one_class:.1f} (mean)."
    )
    found, rows = {}, []
    for minibatch in minibatches:
        for rate in rates:
            for method in args.methods:
                run = found[method, minibatch, rate] = trained(method, minibatch, rate, args, judge)
                rows.append(row(method, minibatch, rate, run))
                print(rows[-1], f"{seconds():.0f} s", flush=True)
    title = f"Digits drawn by DCGANs, {args.steps} steps, {args.seeds} seeds"
    show(rows, args.output / "gan.csv", f"{title}, mean ± 95% interval")
    draw_ways(found, args.methods, minibatches, rates, args.output)
    draw_samples(found, args.methods, minibatches, rates[-1], judge.real, args.output)


if __name__ == "__main__":
    main()
