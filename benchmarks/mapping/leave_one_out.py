"""Map each batch onto the others, and transfer their cell types.

    python benchmarks/mapping/leave_one_out.py [--methods "pca; bioren"] [--data NAME ...]

Needs the public sets in the folder BIOREN_DATA.  cases.py says how cells are prepared and runs are
kept, mappers.py what is run.  The types of the query are those of the majority of the 15 nearest
reference cells in the joint embedding; "labels in the model" are those that bioren itself gives,
without the reference's cells.  Query cells whose type the reference does not have count for nothing
but their number, "unknown".  Macro-F1 is the mean over the types that the query has; some of its
types have one or two cells.

Seconds and processor time are those of the mapping; the reference was fitted before.  Written are
leave_one_out.csv, a row per run, and leave_one_out.md, which is printed as well.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from cases import Case, parser_of, paths_of, read, runs, split, tabulate
from mappers import METHODS, NEIGHBORS
from run import markdown, number
from sklearn.metrics import accuracy_score, f1_score
from sklearn.neighbors import KNeighborsClassifier

MEANS = {"accuracy": 3, "macro_f1": 3, "seconds": 1, "cpu_seconds": 1, "fit_seconds": 1}
HEADER = ["accuracy", "macro-F1", "seconds", "CPU s", "seconds of fitting"]


def judged(labels: np.ndarray, true: np.ndarray, known: np.ndarray) -> dict[str, float]:
    """Return how well labels agree with the truth, among the cells whose type is known."""
    labels, true = labels[known], true[known]
    macro = f1_score(true, labels, labels=np.unique(true), average="macro")
    return {"accuracy": accuracy_score(true, labels), "macro_f1": macro}


def rows_of(case: Case, options, failed: list[str]):
    """Yield a row per run on one case, and one more where the method gives labels itself."""
    reference, query = (part.obs["cell_type"].to_numpy(dtype=str) for part in split(case))
    known = np.isin(query, reference)
    about = {
        "data": case.path.stem,
        "batch": case.batch,
        "reference_cells": len(reference),
        "query_cells": len(query),
        "unknown": int((~known).sum()),
    }
    for name, arrays, record in runs(case, options, failed):
        nearest = KNeighborsClassifier(NEIGHBORS).fit(arrays["reference"], reference)
        found = {name: nearest.predict(arrays["embedding"])}
        if "labels" in arrays:
            found[f"{name}, labels in the model"] = arrays["labels"]
        for row, labels in found.items():
            yield {**about, **record, "method": row, **judged(labels, query, known)}


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """Return means over the seeds, then over the batches, a row per method and data set."""
    per_batch = rows.groupby(["data", "method", "batch"], sort=False)[list(MEANS)].mean()
    return per_batch.groupby(["data", "method"], sort=False).mean()


def report(rows: pd.DataFrame) -> str:
    """Return all tables as Markdown."""
    found = means(rows)
    cores = " or ".join(str(n) for n in sorted(rows["cores"].unique()))
    parts = ["# Each batch mapped onto the others", f"Cores: {cores}. Accuracy, mean over batches:"]
    sets = list(rows["data"].unique())
    totals = found["accuracy"].unstack("data").reindex(rows["method"].unique())[sets]
    totals["mean"] = totals.mean(axis=1, skipna=False)
    lines = [[name, *map(number, row)] for name, row in totals.iterrows()]
    parts.append(markdown(["", *totals.columns], lines))
    for data, group in rows.groupby("data", sort=False):
        lines = [
            [name, *(number(row[column], digits) for column, digits in MEANS.items())]
            for name, row in found.loc[data].iterrows()
        ]
        parts += [f"## {data}", markdown(["", *HEADER], lines), "Accuracy (macro-F1) by batch:"]
        about = group.groupby("batch", sort=False)[["query_cells", "unknown"]].first()
        header = [
            f"{batch} ({row['query_cells']} cells, {row['unknown']} unknown)"
            for batch, row in about.iterrows()
        ]
        by_batch = group.groupby(["method", "batch"], sort=False)[["accuracy", "macro_f1"]].mean()
        lines = [
            [name, *(cell(by_batch, name, batch) for batch in about.index)]
            for name in group["method"].unique()
        ]
        parts.append(markdown(["", *header], lines))
    return "\n\n".join(parts) + "\n"


def cell(by_batch: pd.DataFrame, name: str, batch: str) -> str:
    if (name, batch) not in by_batch.index:
        return ""
    accuracy, macro = by_batch.loc[(name, batch)]
    return f"{number(accuracy)} ({number(macro)})"


def line(row: dict) -> str:
    return (
        f"{row['data']}, {row['batch']}: {row['method']}, seed {row['seed']}: "
        f"{row['accuracy']:.3f}, {row['macro_f1']:.3f}, {row['seconds']:.1f} s "
        f"after {row['fit_seconds']:.1f} s"
    )


def main() -> None:
    parser = parser_of(__doc__, list(METHODS))
    options = parser.parse_args()
    paths = paths_of(options.data, parser)
    cases = ((Case(path, b) for b in read(path).obs["batch"].cat.categories) for path in paths)
    tabulate("leave_one_out", options, cases, rows_of, line, report)


if __name__ == "__main__":
    main()
