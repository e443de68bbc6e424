"""Time and memory of `bioren integrate` from raw counts on disk to a whole output.

    python benchmarks/integration/on_disk.py [FILE.h5ad] [--cells 20000 100000] [--folder FOLDER]

Real cells are grown to each size (grow.py), then the command runs once for each choice of what is
corrected, in a process of its own.  Told are seconds, the peak of its resident memory, Python and
libraries included, and the sizes of both files.  Written is on_disk.csv.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from grow import grow
from run import RESULTS

from data import named_or_main

COMMAND = "from bioren.cli import app; app()"


def integrate(source: Path, target: Path, corrected: str) -> dict:
    """Run the command, and return what it cost."""
    options = ["--batch-key", "batch", "--corrected", corrected, "--quiet"]
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "integrate", str(source), str(target), *options]
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise RuntimeError(f"bioren integrate {source} ended with status {status}")
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_gb": usage.ru_maxrss * unit / 1e9,
        "input_gb": source.stat().st_size / 1e9,
        "output_gb": target.stat().st_size / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=Path, help="counts; none: pbmc_kang_10x3k")
    parser.add_argument("--cells", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--corrected", nargs="+", default=["all", "none"])
    parser.add_argument("--folder", type=Path, help="where files are put meanwhile")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results")
    options = parser.parse_args()
    path = named_or_main(options.file, parser)
    options.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for n_cells in options.cells:
        with TemporaryDirectory(dir=options.folder) as folder:
            source, target = Path(folder, "grown.h5ad"), Path(folder, "integrated.h5ad")
            grow(path, source, n_cells)
            for corrected in options.corrected:
                cost = integrate(source, target, corrected)
                target.unlink()
                rows.append({"cells": n_cells, "corrected": corrected, **cost})
                print(rows[-1], flush=True)
                pd.DataFrame(rows).to_csv(options.output / "on_disk.csv", index=False)


if __name__ == "__main__":
    main()
