"""What the measurements of the layers share: seeds, intervals, tables and options."""

from __future__ import annotations

import argparse
import csv
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and numpy start their threads

import numpy as np
import torch
from scipy import stats

RESULTS = Path("benchmarks/results/layers")


def set_up(seed: int) -> np.random.Generator:
    """Seed torch, keep to one thread, and return a generator for numpy."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    return np.random.default_rng(seed)


def interval(values, confidence: float = 0.95) -> tuple[float, float]:
    """Return the mean and half the width of its t-interval; NaN width for a single value."""
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, float("nan")
    t = stats.t.ppf((1 + confidence) / 2, len(values) - 1)
    return mean, float(t * values.std(ddof=1) / np.sqrt(len(values)))


def plus_minus(values, digits: int = 1, scale: float = 1.0) -> str:
    """Return mean ± half-width as text, both times `scale`."""
    mean, half = interval(np.asarray(values, dtype=float) * scale)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def show(rows: list[dict], path: Path, title: str) -> None:
    """Print `rows` as a Markdown table under `title` and write them to the CSV file `path`."""
    names = list(rows[0])
    lines = [[str(row[name]) for name in names] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(names, *lines, strict=True)]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"

    print(f"\n{title}\n\n{line(names)}\n|{'|'.join('-' * (w + 2) for w in widths)}|")
    print("\n".join(line(cells) for cells in lines), flush=True)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=names)
        writer.writeheader()
        writer.writerows(rows)


def parser(description: str, seeds: int = 5) -> argparse.ArgumentParser:
    """Return a parser with the options that every script has; scripts may add theirs."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--seeds", type=int, default=seeds, help="number of seeds, from 0 on")
    options.add_argument("--output", type=Path, default=RESULTS, help="folder of CSV and PNG files")
    options.add_argument("--quick", action="store_true", help="a smoke run in under 20 seconds")
    return options


def seconds() -> float:
    """Return the time on the processor since the start, which neighbors do not prolong."""
    return time.process_time()


def figure(*shape, **options):
    """Return matplotlib's figure and axes as `plt.subplots` does, without a screen; see `save`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(*shape, layout="constrained", **options)


def save(fig, path: Path) -> None:
    """Write the figure to `path` and forget it."""
    import matplotlib.pyplot as plt

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=120)
    plt.close(fig)
    print(f"wrote {path}", flush=True)
