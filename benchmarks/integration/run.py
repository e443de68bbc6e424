"""Score bioren beside its peers on real data.

    python benchmarks/integration/run.py [FILE.h5ad ...] [--methods "pca; bioren"] [--seeds 3]

Each file holds counts, with obs["batch"] and obs["cell_type"]; without files, the six public sets
in the folder BIOREN_DATA are taken.  data.py says how they are prepared, methods.py what is run,
measure.py what seconds and memory mean, scores.py and further.py how results are scored.

Runs are kept under runs/ in the folder of results.  Those of the peers are not repeated, so that
an interrupted comparison goes on where it stopped; bioren is run each time.  Written are scores.csv
and metrics.csv, a row per run, and scores.md, which is printed as well.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from further import CLUSTERS, FURTHER, TOTAL, further_scores
from measure import MethodFailed, Store
from methods import COMPARED, METHODS
from scores import STARTS, scored_cells, scores

from data import CORE, is_embedding, prepared, public_files

RESULTS = Path("benchmarks/results/integration")
RUN = ["data", "method", "seed"]
MEANS = ["total", "steady", "steady without regression", "bio", "batch"]
COSTS = {"seconds": "seconds", "cpu_seconds": "CPU s", "peak_gb": "peak GB"}
SCORER = "scib-metrics"


def compare(path: Path, methods: list[str], seeds: dict[bool, int], again: list[str], output: Path):
    """Return the records of all runs on one data set, and the names of methods that failed."""
    adata = prepared(path)
    store = Store(output / "runs", path)
    np.savez_compressed(  # for figures.py
        store.folder / "cells.npz",
        batch=adata.obs["batch"].to_numpy(dtype=str),
        cell_type=adata.obs["cell_type"].to_numpy(dtype=str),
        scored=scored_cells(adata.obs["cell_type"]),
    )
    records, failed = [], []
    for name in methods:
        method = METHODS[name]
        if is_embedding(adata) and not method.embedding:
            continue
        for seed in range(seeds[method.slow] if method.random else 1):
            try:
                result, record = store.run(name, seed, again=method.ours or name in again)
            except MethodFailed as error:
                print(f"{path.stem}: {name} failed: {error}", file=sys.stderr, flush=True)
                failed.append(f"{name} on {path.stem}")
                break
            scorer = f"{version(SCORER)}, {STARTS} starts, {len(MEANS)} means, {len(FURTHER)} more"
            if record.get("scorer") != scorer:
                found = scores(adata, result)
                found |= further_scores(adata, result, found)
                record |= {"scorer": scorer, "scores": found}
                store.write(record)
            records.append({"data": path.stem, **record})
            total = record["scores"].get("total", float("nan"))
            print(
                f"{path.stem}: {name}, seed {seed}: {total:.3f}, {record['seconds']:.1f} s",
                flush=True,
            )
    return records, failed


def tables(records: list[dict]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return means and costs, and the single metrics, with a row per run."""
    runs = pd.DataFrame(records)
    found = pd.DataFrame(list(runs.pop("scores")), index=runs.index)
    means = found.reindex(columns=MEANS)
    metrics = found.drop(columns=MEANS, errors="ignore")
    known = metrics.columns.union(["BRAS", *FURTHER], sort=False)
    metrics = metrics.reindex(columns=known)  # graphs alone lack some
    others = [name for name in (*COSTS, "cores", "version") if name in runs]
    return runs[RUN].join([means, runs[others]]), runs[RUN].join(metrics)


def number(value: float, digits: int = 3) -> str:
    """Return a number for a table, without the zero before the point; blank where unknown."""
    if pd.isna(value):
        return ""
    text = f"{value:.{digits}f}"
    return text.removeprefix("0") if digits == 3 else text


def markdown(header: list[str], lines: list[list[str]]) -> str:
    """Return a Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def table_of(runs: pd.DataFrame) -> str:
    """Return the table of one data set: means over the seeds, and the range of the total."""
    lines = []
    for name, group in runs.groupby("method", sort=False):
        mean = group[[*MEANS, *COSTS]].mean()
        total = number(mean["total"])
        if len(group) > 1 and total:
            total += f" ({number(group['total'].min())}–{number(group['total'].max())})"
        costs = [number(mean[cost], 2 if cost == "peak_gb" else 1) for cost in COSTS]
        lines.append([name, total, *(number(mean[of]) for of in MEANS[1:]), *costs])
    return markdown(["", "Total (range)", *MEANS[1:], *COSTS.values()], lines)


def further_table(metrics: pd.DataFrame) -> str:
    """Return the table of further scores of one data set, means over the seeds."""
    means = metrics.groupby("method", sort=False)[["BRAS", *FURTHER]].mean()
    digits = [1 if column == CLUSTERS else 3 for column in means.columns]
    lines = [
        [name, *(number(value, n) for value, n in zip(row, digits, strict=True))]
        for name, row in means.iterrows()
    ]
    return markdown(["", *means.columns], lines)


def summary(runs: pd.DataFrame, values: str) -> str:
    """Return the table of totals, the best of each data set in bold."""
    totals = runs.pivot_table(index="method", columns="data", values=values, sort=False)
    totals = totals.reindex(index=runs["method"].unique(), columns=runs["data"].unique())
    if set(CORE) <= set(totals.columns):
        totals["mean of the core sets"] = totals[list(CORE)].mean(axis=1, skipna=False)
    totals = totals.dropna(how="all")  # graphs have no total
    best = totals.max()
    lines = [
        [name, *(f"**{number(v)}**" if v == best[c] else number(v) for c, v in row.items())]
        for name, row in totals.iterrows()
    ]
    return markdown(["", *totals.columns], lines)


def report(runs: pd.DataFrame, metrics: pd.DataFrame) -> str:
    """Return all tables as Markdown."""
    cores = " or ".join(str(n) for n in sorted(runs["cores"].unique()))
    seeds = runs["seed"].max() + 1
    parts = [
        "# bioren and its peers",
        f"Scores of scib-metrics {version(SCORER)}; seeds, where a method depends on one: {seeds}; "
        f"cores: {cores}.",
        "## Totals",
        summary(runs, "total"),
        "## Steady totals: means over eight starts of k-means",
        summary(runs, "steady"),
        "## Steady totals without principal component regression",
        summary(runs, "steady without regression"),
        "## Totals without silhouettes (further.py)",
        summary(metrics, TOTAL),
    ]
    for name, group in runs.groupby("data", sort=False):
        further = further_table(metrics[metrics["data"] == name])
        parts += [f"## {name}", table_of(group), further]
    return "\n\n".join(parts) + "\n"


def names(text: str) -> list[str]:
    """Return the methods named in an option: "all", or names between semicolons."""
    found = list(METHODS) if text == "all" else [name.strip() for name in text.split(";")]
    unknown = [name for name in found if name not in METHODS]
    if unknown:
        msg = f"unknown methods {unknown}; choose from {list(METHODS)}"
        raise argparse.ArgumentTypeError(msg)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, help="data sets; none: the public ones")
    parser.add_argument("--methods", type=names, default=COMPARED, help='"pca; bioren", or "all"')
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--slow-seeds", type=int, help="seeds of scvi and scalex; as --seeds")
    parser.add_argument("--again", type=names, default=[], help="methods to run anew")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results")
    options = parser.parse_args()
    files = options.files or public_files()
    if not files:
        parser.error("name .h5ad files, or set BIOREN_DATA to the folder of the public sets")
    missing = [str(path) for path in files if not path.exists()]
    if missing:
        parser.error(f"there is no {', '.join(missing)}")

    slow_seeds = options.seeds if options.slow_seeds is None else options.slow_seeds
    seeds = {False: options.seeds, True: slow_seeds}
    warnings.simplefilter("ignore")
    options.output.mkdir(parents=True, exist_ok=True)
    records, failed = [], []
    for path in files:
        found = compare(path, options.methods, seeds, options.again, options.output)
        records += found[0]
        failed += found[1]
        if records:  # after each data set, so that a long comparison can be looked at
            runs, metrics = tables(records)
            runs.to_csv(options.output / "scores.csv", index=False)
            metrics.to_csv(options.output / "metrics.csv", index=False)
            (options.output / "scores.md").write_text(report(runs, metrics), encoding="utf-8")
    if records:
        print("\n" + report(runs, metrics))
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
