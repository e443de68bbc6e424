"""Time of forward and backward of the layers beside torch's batch normalisation and the peers.

    python benchmarks/layers/speed.py [--rounds 200] [--compiled] [--threads 2] [--device cuda]

All candidates take turns in every round, so that whatever else the machine does hits them alike;
a figure is the median over the rounds as a ratio to that of ``F.batch_norm`` (compiled: to the
compiled ``nn.BatchNorm``), with its milliseconds beside it.  Inputs, weights and biases have a
gradient.  Limits are those of a trained network, (3, 5).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable

os.environ.setdefault("KERAS_BACKEND", "torch")

import torch
from torch import Tensor, nn

from bioren.nn import BatchRenorm1d, BatchRenorm2d
from bioren.nn.functional import batch_renorm

SHAPES = {
    "(256, 512)": (256, 512),
    "(4096, 256)": (4096, 256),
    "(64, 64, 32, 32)": (64, 64, 32, 32),
    "(64, 64, 32, 32) channels-last": (64, 64, 32, 32),
    "(2, 64, 64, 64)": (2, 64, 64, 64),
}
Step = Callable[[], object]


def bioren_layer(channels: int, positions: bool, *, limits=(3.0, 5.0)) -> nn.Module:
    return (BatchRenorm2d if positions else BatchRenorm1d)(channels, limits=limits)


def torch_layer(channels: int, positions: bool) -> nn.Module:
    return (nn.BatchNorm2d if positions else nn.BatchNorm1d)(channels, momentum=0.01)


def torchrl_layer(channels: int, positions: bool) -> nn.Module:
    from torchrl.modules import BatchRenorm1d as Peer

    layer = Peer(channels, warmup_steps=1)
    layer.num_batches_tracked.fill_(2)  # past its warm-up, whose counter runs on
    return layer


def sb3_layer(channels: int, positions: bool) -> nn.Module | None:
    from sb3_contrib.common.torch_layers import BatchRenorm1d as Peer

    return None if positions else Peer(channels, warmup_steps=0)


def keras_layer(channels: int, positions: bool) -> Callable[[Tensor], Tensor]:
    import keras

    limits = {"rmax": 3.0, "rmin": 1 / 3.0, "dmax": 5.0}
    layer = keras.layers.BatchNormalization(axis=1, renorm=True, renorm_clipping=limits)
    return lambda x: layer(x, training=True)


def functional(name: str, channels: int) -> Callable[[Tensor], Tensor]:
    weight, bias = torch.ones(channels).requires_grad_(), torch.zeros(channels).requires_grad_()
    mean, var = torch.zeros(channels), torch.ones(channels)
    if name == "F.batch_norm":
        return lambda x: nn.functional.batch_norm(x, mean, var, weight, bias, True, 0.01)
    return lambda x: batch_renorm(x, mean, var, weight, bias)


def candidates(shape: tuple[int, ...], peers: bool) -> dict[str, Callable[[Tensor], Tensor]]:
    channels, positions = shape[1], len(shape) > 2
    found = {
        "F.batch_norm": functional("F.batch_norm", channels),
        "bioren batch_renorm": functional("bioren", channels),
        "nn.BatchNorm": torch_layer(channels, positions),
        "bioren BatchRenorm": bioren_layer(channels, positions),
        "bioren BatchRenorm, warm-up": bioren_layer(channels, positions, limits=(1.0, 0.0)),
    }
    if peers:
        for name, build in (
            ("torchrl", torchrl_layer),
            ("sb3-contrib", sb3_layer),
            ("Keras 3", keras_layer),
        ):
            try:
                layer = build(channels, positions)
            except ImportError:
                continue
            if layer is not None:
                found[name] = layer
    return found


def step(layer: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> Step:
    def once() -> None:
        layer(x).backward(gradient)

    return once


def medians(steps: dict[str, Step], rounds: int, device: str) -> dict[str, float]:
    """Return milliseconds of each step, run several times in a row each time its turn comes."""
    for once in steps.values():
        for _ in range(3):
            once()
    start = time.perf_counter()
    next(iter(steps.values()))()
    repeats = max(3, round(1e-2 / (time.perf_counter() - start)))
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, once in steps.items():
            wait(device)
            start = time.perf_counter()
            for _ in range(repeats):
                once()
            wait(device)
            taken[name].append((time.perf_counter() - start) / repeats * 1e3)
    return {name: statistics.median(values) for name, values in taken.items()}


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def eager(shape: tuple[int, ...], x: Tensor, options: argparse.Namespace) -> dict[str, float]:
    layers = candidates(shape, peers=not options.no_peers)
    return medians(
        {k: step(v, x, torch.randn_like(x)) for k, v in layers.items()},
        options.rounds,
        options.device,
    )


def compiled(shape: tuple[int, ...], x: Tensor, options: argparse.Namespace) -> dict[str, float]:
    torch._dynamo.reset()
    channels, positions = shape[1], len(shape) > 2
    layers = {
        "nn.BatchNorm": torch_layer(channels, positions),
        "bioren BatchRenorm": bioren_layer(channels, positions),
    }
    built = {k: torch.compile(v.to(x.device), fullgraph=True) for k, v in layers.items()}
    return medians(
        {k: step(v, x, torch.randn_like(x)) for k, v in built.items()},
        options.rounds,
        options.device,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compiled", action="store_true", help="torch.compile, instead of eager")
    parser.add_argument("--no-peers", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    torch.set_default_device(options.device)
    columns: dict[str, dict[str, str]] = {}
    for name, shape in SHAPES.items():
        x = torch.randn(shape).requires_grad_()
        if "channels-last" in name:
            x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        times = (compiled if options.compiled else eager)(shape, x, options)
        base = next(iter(times.values()))
        columns[name] = {k: f"{t / base:.2f} ({t:.3f} ms)" for k, t in times.items()}
    rows = list(dict.fromkeys(k for column in columns.values() for k in column))
    print("| | " + " | ".join(columns) + " |\n|---" * 1 + "|---" * len(columns) + "|")
    for row in rows:
        print(f"| {row} | " + " | ".join(c.get(row, "") for c in columns.values()) + " |")


if __name__ == "__main__":
    main()
