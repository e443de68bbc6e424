"""Two comparisons of time on one real data set, side by side on the same machine.

    python benchmarks/integration/speed.py [FILE.h5ad] [--rounds 5] [--without-scvi]

bioren.pp.bridge and scanpy's ComBat take turns on the same log-expression, each time in a process
of its own after its imports: medians over the rounds, and their ratio.  Then bioren.tl.integrate
and scVI with its default number of epochs, once each.  Written is speed.csv, a row per run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from measure import cores, in_own_process, integration
from run import RESULTS
from scaling import TASKS

from data import named_or_main, prepared

BRIDGE, COMBAT = "bioren.pp.bridge", "combat"


def corrected(name: str, path: Path):
    """Return a correction of expression as a function, all made ready."""
    adata = prepared(path)
    del adata.layers["counts"]
    return TASKS[name](adata)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=Path, help="data set; none: pbmc_kang_10x3k")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without-scvi", action="store_true", help="leave out the slow comparison")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results")
    options = parser.parse_args()
    path = named_or_main(options.file, parser)

    options.output.mkdir(parents=True, exist_ok=True)
    rows = []

    def add(name: str, made_ready, *args) -> None:
        _, cost = in_own_process(made_ready, *args)
        print(f"{name}: {cost.seconds:.2f} s, {cost.cpu_seconds:.2f} s CPU", flush=True)
        rows.append({"data": path.stem, "task": name, "cores": cores(), **cost._asdict()})
        pd.DataFrame(rows).to_csv(options.output / "speed.csv", index=False)

    for _ in range(options.rounds):
        for name in (BRIDGE, COMBAT):
            add(name, corrected, name, path)
    seconds = pd.DataFrame(rows).groupby("task")["seconds"]
    median, low, high = seconds.median(), seconds.min(), seconds.max()
    for name in (BRIDGE, COMBAT):
        print(f"{name}: median {median[name]:.2f} s ({low[name]:.2f}–{high[name]:.2f})")
    print(f"{COMBAT} takes {median[COMBAT] / median[BRIDGE]:.2f} times as long as {BRIDGE}")

    if not options.without_scvi:
        for name in ("bioren", "scvi"):
            add(name, integration, path, name, 0)
        ours, theirs = rows[-2]["seconds"], rows[-1]["seconds"]
        print(f"scVI takes {theirs / ours:.1f} times as long as bioren.tl.integrate")


if __name__ == "__main__":
    main()
