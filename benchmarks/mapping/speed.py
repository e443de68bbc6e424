"""The size of a model's file, and the seconds from a file to mapped cells.

    python benchmarks/mapping/speed.py [FILE.h5ad] [--queries 2000 20000] [--repeats 5]

A reference is fitted on 10,000 cells resampled from a data set, with at most 2,000 variable genes
(see integration/scaling.py), saved and published.  Loading and mapping are timed together.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.append(str(Path(__file__).parents[1] / "integration"))
from run import markdown
from scaling import resampled

from data import named_or_main


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=Path, help="data set; none: pbmc_kang_10x3k")
    parser.add_argument("--queries", type=int, nargs="+", default=[2000, 20_000], help="cells")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    path = named_or_main(options.file, parser)

    import bioren

    reference = resampled(path, 10_000)
    model = bioren.RenormAutoencoder()
    model.fit(reference, "batch").learn_labels(reference, "cell_type")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = {"saved": Path(folder) / "saved", "published": Path(folder) / "published"}
        model.save(files["saved"])
        model.publish(files["published"])
        for n_cells in options.queries:
            query = resampled(path, n_cells, seed=1)
            seconds: dict[str, list[float]] = {name: [] for name in files}
            for _ in range(options.repeats):
                for name, file in files.items():
                    start = time.perf_counter()
                    bioren.tl.map_query(query, file, batch_key="batch")
                    seconds[name].append(time.perf_counter() - start)
            for name, file in files.items():
                size = file.stat().st_size / 1e6
                rows.append([name, f"{size:.1f}", f"{n_cells:,}", f"{median(seconds[name]):.2f}"])
    genes = f"{reference.n_vars:,} genes, {reference.obs['batch'].nunique()} samples"
    print(f"Reference of {reference.n_obs:,} cells, {genes}\n")
    print(markdown(["file", "MB", "query, cells", "load and map, seconds"], rows))


if __name__ == "__main__":
    main()
