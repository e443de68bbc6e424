"""The cases, each a batch to map onto the others, and the runs of methods on them.

Counts become CP10k and log1p; up to 2,000 variable genes by batch are chosen on the reference
alone, all genes where there are no more.  The counts of these genes stay in layers["counts"].  The
query is one sample; no method sees its cell types.

Each run has a process of its own.  Its embeddings are kept in a folder, DATA/BATCH/METHOD-SEED.npz
and, once it is whole, .json; those of the peers are not repeated unless the file or the version of
the package has changed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from mappers import METHODS
from scipy.sparse import csr_matrix

sys.path.append(str(Path(__file__).parents[1] / "integration"))
from measure import MethodFailed, cores, cpu_seconds, file_stem, in_own_process

from data import read

if TYPE_CHECKING:
    from anndata import AnnData

DATA = ("pbmc_kang_10x3k", "cellbench_5batch", "pancreas_5tech_panc8")
RESULTS = Path("benchmarks/results/mapping")


class Case(NamedTuple):
    """A batch to map onto the others, from which a cell type may have been taken out."""

    path: Path
    batch: str
    without: str | None = None

    @property
    def folder(self) -> str:
        name = self.batch if self.without is None else f"{self.batch} without {self.without}"
        return f"{self.path.stem}/{name.replace('/', '-')}"


def split(case: Case) -> tuple[AnnData, AnnData]:
    """Return reference and query, as they are in the file."""
    adata = read(case.path)
    in_query = adata.obs["batch"] == case.batch
    in_reference = ~in_query & (adata.obs["cell_type"] != case.without)
    return adata[in_reference].copy(), adata[in_query].copy()


def prepared(case: Case) -> tuple[AnnData, AnnData]:
    """Return reference and query as log-expression of the reference's variable genes."""
    import scanpy as sc

    parts = split(case)
    for part in parts:
        part.X = csr_matrix(part.X, dtype=np.float32)
        part.layers["counts"] = part.X.copy()
        sc.pp.normalize_total(part, target_sum=1e4)
        sc.pp.log1p(part)
    reference, query = parts
    if reference.n_vars > 2000:
        sc.pp.highly_variable_genes(reference, n_top_genes=2000, batch_key="batch")
        chosen = reference.var["highly_variable"].to_numpy()
        reference.var = reference.var[[]]
        reference, query = reference[:, chosen].copy(), query[:, chosen].copy()
    del query.obs["cell_type"]
    return reference, query


def mapping(case: Case, name: str, seed: int) -> Callable[[], tuple[dict, dict]]:
    """Return method `name` as a function that gives arrays and costs, all made ready."""
    method = METHODS[name]
    reference, query = prepared(case)
    for module in method.modules:
        importlib.import_module(module)

    def run():
        clocks = [clock()]
        fitted = method.fit(reference, seed)
        clocks.append(clock())
        mapped = method.map(query, reference, fitted)
        clocks.append(clock())
        arrays = {"reference": np.asarray(fitted.embedding, dtype=np.float32)}
        for field, array in mapped._asdict().items():
            if array is not None:
                arrays[field] = array.astype(np.float32) if array.dtype.kind == "f" else array
        fit, map_ = np.diff(clocks, axis=0)
        costs = {"seconds": map_[0], "cpu_seconds": map_[1], "fit_seconds": fit[0]}
        return arrays, costs

    return run


def clock() -> tuple[float, float]:
    return time.perf_counter(), cpu_seconds()


def run(case: Case, name: str, seed: int, folder: Path, *, again: bool) -> tuple[dict, dict]:
    """Return the arrays and the record of a run: the stored one, or that of a run now."""
    stem = folder / case.folder / file_stem(name, seed)
    with case.path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    made_of = {"content": content, "version": version(METHODS[name].package)}
    arrays, record = stem.with_name(stem.name + ".npz"), stem.with_name(stem.name + ".json")
    if not again and record.exists():
        found = json.loads(record.read_text())
        if made_of.items() <= found.items():
            with np.load(arrays) as stored:
                return dict(stored), found
    (result, costs), _ = in_own_process(mapping, case, name, seed)
    found = {"method": name, "seed": seed, **made_of, "cores": cores(), **costs}
    stem.parent.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    np.savez_compressed(arrays, **result)
    record.write_text(json.dumps(found, indent=1))
    return result, found


def runs(
    case: Case, options: argparse.Namespace, failed: list[str]
) -> Iterator[tuple[str, dict, dict]]:
    """Yield name, arrays and record of every run that the options ask for; append what failed."""
    for name in options.methods:
        method = METHODS[name]
        seeds = options.slow_seeds if method.slow else options.seeds
        for seed in range(seeds if method.random else 1):
            again = method.ours or name in options.again
            try:
                arrays, record = run(case, name, seed, options.output / "runs", again=again)
            except MethodFailed as error:
                print(f"{case.folder}: {name} failed: {error}", file=sys.stderr, flush=True)
                failed.append(f"{name} on {case.folder}")
                break
            yield name, arrays, record


def parser_of(text: str, methods: list[str]) -> argparse.ArgumentParser:
    """Return the options that the comparisons share."""

    def names(option: str) -> list[str]:
        found = [name.strip() for name in option.split(";")]
        unknown = [name for name in found if name not in methods]
        if unknown:
            msg = f"unknown methods {unknown}; choose from {methods}"
            raise argparse.ArgumentTypeError(msg)
        return found

    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", type=names, default=methods, help='"pca; bioren"')
    parser.add_argument("--data", nargs="+", default=DATA, help="names in BIOREN_DATA, or files")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--slow-seeds", type=int, default=1, help="seeds of scarches")
    parser.add_argument("--again", type=names, default=[], help="methods to run anew")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results")
    return parser


def paths_of(data: list[str], parser: argparse.ArgumentParser) -> list[Path]:
    """Return the files that are named; end with usage where one is missing."""
    folder = Path(os.environ.get("BIOREN_DATA", "."))
    paths = [Path(one) if one.endswith(".h5ad") else folder / f"{one}.h5ad" for one in data]
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        parser.error(f"there is no {', '.join(missing)}: name files, or set BIOREN_DATA")
    return paths


def tabulate(
    name: str,
    options: argparse.Namespace,
    cases: Iterable[Iterable[Case]],
    rows_of: Callable[[Case, argparse.Namespace, list[str]], Iterator[dict]],
    line: Callable[[dict], str],
    report: Callable[[pd.DataFrame], str],
) -> None:
    """Run all cases, printing a line per row; after each data set write NAME.csv and NAME.md.

    Parameters
    ----------
    name
        Of the tables.
    options
        See `parser_of`.
    cases
        Those of each data set.
    rows_of
        Yields the rows of a case, and appends what failed.
    line, report
        Return what is printed of a row, and the tables as Markdown.
    """
    warnings.simplefilter("ignore")
    options.output.mkdir(parents=True, exist_ok=True)
    rows, failed, text = [], [], ""
    for of_one_set in cases:
        for case in of_one_set:
            for row in rows_of(case, options, failed):
                rows.append(row)
                print(line(row), flush=True)
        if rows:
            table = pd.DataFrame(rows)
            table.to_csv(options.output / f"{name}.csv", index=False)
            text = report(table)
            (options.output / f"{name}.md").write_text(text, encoding="utf-8")
    print("\n" + text)
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}")
