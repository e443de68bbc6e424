"""Cost of forward and backward of the layers beside torch's batch normalization and the peers.

    python benchmarks/layers/speed.py [--rounds 30] [--threads 1] [--compiled] [--device cuda]

All candidates take turns in every round, and each runs for some milliseconds in a row when its turn
comes; a figure is the median over the rounds as a ratio to that of `nn.BatchNorm`, with its
milliseconds beside it: processor time on a CPU, which a busy machine disturbs least, and time by
the clock on a GPU.  Input, weight and bias have a gradient.  Limits are those of a trained
network, (3, 5), unless a row says otherwise.

A second table holds what autograd saves from the forward to the backward pass, in units of the
input.

On Linux the C library is told to keep freed memory: where it hands memory back to the system, the
same kernels take up to twice as long in one process and not in the next.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import torch
from torch import Tensor, nn

from bioren.nn import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from bioren.nn.functional import batch_renorm

KEPT = {"MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_MMAP_THRESHOLD_": str(2**32)}
RESULTS = Path("benchmarks/results/layers")
SHAPES = {
    "(16, 64)": (16, 64),
    "(256, 512)": (256, 512),
    "(4096, 256)": (4096, 256),
    "(32, 64, 32, 32)": (32, 64, 32, 32),
    "the same, channels-last": (32, 64, 32, 32),
    "(2, 32, 16, 32, 32)": (2, 32, 16, 32, 32),
}
Layer = Callable[[Tensor], Tensor]
BIOREN = {2: BatchRenorm1d, 4: BatchRenorm2d, 5: BatchRenorm3d}
TORCH = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
OPTIONS = {
    "bioren BatchRenorm": {},
    "bioren BatchRenorm, limits (1, 0)": {"limits": (1.0, 0.0)},
    "bioren BatchRenorm, default": None,
    "bioren BatchRenorm, learned mixing": {"mixing": "learned"},
    "bioren BatchRenorm, average_backward": {"average_backward": 16},
}


def bioren_layer(shape: tuple[int, ...], options: dict[str, Any] | None) -> nn.Module:
    options = {} if options is None else {"limits": (3.0, 5.0)} | options
    return BIOREN[len(shape)](shape[1], **options)


def masked_layer(shape: tuple[int, ...]) -> Layer:
    layer = bioren_layer(shape, {})
    mask = torch.rand(shape[0], *shape[2:]) < 0.8
    return lambda x: layer(x, mask)


def torch_layer(shape: tuple[int, ...]) -> nn.Module:
    return TORCH[len(shape)](shape[1], momentum=0.01)


def torchrl_layer(channels: int, positions: bool) -> nn.Module:
    from torchrl.modules import BatchRenorm1d as Peer

    layer = Peer(channels, warmup_steps=1)
    layer.num_batches_tracked.fill_(2)  # its limits go on growing past the warm-up
    return layer


def sb3_layer(channels: int, positions: bool) -> nn.Module | None:
    from sb3_contrib.common.torch_layers import BatchRenorm1d as Peer

    return None if positions else Peer(channels, warmup_steps=0)


def keras_layer(channels: int, positions: bool) -> Layer:
    import keras

    limits = {"rmax": 3.0, "rmin": 1 / 3.0, "dmax": 5.0}
    layer = keras.layers.BatchNormalization(axis=1, renorm=True, renorm_clipping=limits)
    return lambda x: layer(x, training=True)


PEERS = {"torchrl": torchrl_layer, "sb3-contrib": sb3_layer, "Keras 3": keras_layer}


def functions(channels: int) -> dict[str, Layer]:
    weight, bias = torch.ones(channels).requires_grad_(), torch.zeros(channels).requires_grad_()
    mean, var = torch.zeros(channels), torch.ones(channels)
    return {
        "F.batch_norm": lambda x: nn.functional.batch_norm(x, mean, var, weight, bias, True, 0.01),
        "bioren batch_renorm": lambda x: batch_renorm(x, mean, var, weight, bias),
    }


def eager(shape: tuple[int, ...], peers: bool) -> dict[str, Layer]:
    channels, positions = shape[1], len(shape) > 2
    found: dict[str, Layer] = {"nn.BatchNorm": torch_layer(shape)} | functions(channels)
    found |= {name: bioren_layer(shape, options) for name, options in OPTIONS.items()}
    found["bioren BatchRenorm, mask"] = masked_layer(shape)
    for name, build in PEERS.items() if peers else ():
        try:
            layer = build(channels, positions)
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        if layer is not None:
            found[name] = layer
    return found


def compiled(shape: tuple[int, ...]) -> dict[str, Layer]:
    torch._dynamo.reset()
    candidates = {
        "nn.BatchNorm": torch_layer(shape),
        "bioren BatchRenorm": bioren_layer(shape, {}),
    }
    return {name: torch.compile(layer, fullgraph=True) for name, layer in candidates.items()}


def medians(layers: dict[str, Layer], x: Tensor, rounds: int) -> dict[str, float]:
    """Return milliseconds of one forward and backward pass of each layer."""
    gradient = torch.randn_like(x)
    for layer in layers.values():
        seconds(layer, x, gradient, 3)
    times = max(3, round(1e-2 / seconds(next(iter(layers.values())), x, gradient, 3)))
    taken: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(rounds):
        for name, layer in layers.items():
            taken[name].append(seconds(layer, x, gradient, times) * 1e3)
    return {name: statistics.median(values) for name, values in taken.items()}


def seconds(layer: Layer, x: Tensor, gradient: Tensor, times: int) -> float:
    clock = time.perf_counter if x.is_cuda else time.process_time
    wait(x)
    start = clock()
    for _ in range(times):
        layer(x).backward(gradient)
    wait(x)
    return (clock() - start) / times


def wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def saved(layer: Layer, x: Tensor) -> float:
    """Return the bytes that wait for the backward pass, as a multiple of the input's."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = layer(x)
    del y
    return sum(storages.values()) / x.untyped_storage().nbytes()


def show(columns: dict[str, dict[str, str]]) -> None:
    """Print a table of columns, whose rows may differ."""
    rows = list(dict.fromkeys(row for cells in columns.values() for row in cells))
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    lines += [[row, *(cells.get(row, "") for cells in columns.values())] for row in rows]
    print("\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n")


def ratios(times: dict[str, float]) -> dict[str, str]:
    """Return the figures of one column: ratios to its first row, and milliseconds."""
    first = next(iter(times.values()))
    return {name: f"{taken / first:.2f} ({taken:.3f} ms)" for name, taken in times.items()}


def write(columns: dict[str, dict[str, float]], path: Path) -> None:
    """Write all milliseconds to a CSV file."""
    rows = list(dict.fromkeys(row for times in columns.values() for row in times))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["layer", *columns])
        writer.writerows([row, *(t.get(row, "") for t in columns.values())] for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="a smoke run of two rounds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compiled", action="store_true", help="torch.compile instead of eager")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if sys.platform == "linux" and not KEPT.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEPT)
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    # Only where it has to be: it is a mode that slows every call down.
    if options.device != "cpu":
        torch.set_default_device(options.device)
    times, memory = {}, {}
    for name, shape in SHAPES.items():
        x = torch.randn(shape)
        if "channels-last" in name:
            x = x.contiguous(memory_format=torch.channels_last)
        layers = compiled(shape) if options.compiled else eager(shape, not options.no_peers)
        x.requires_grad_()
        times[name] = medians(layers, x, 2 if options.quick else options.rounds)
        memory[name] = {row: f"{saved(layer, x):.2f}" for row, layer in layers.items()}
    print("Forward and backward")
    show({name: ratios(column) for name, column in times.items()})
    if not options.compiled:
        print("Saved for the backward pass, in units of the input")
        show(memory)
    write(times, options.output / ("speed_compiled.csv" if options.compiled else "speed.csv"))


if __name__ == "__main__":
    main()
