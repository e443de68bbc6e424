"""Does the mapping score find cells of a type that the reference does not have?

    python benchmarks/mapping/held_out_types.py [--methods "pca; bioren"] [--data NAME ...]

Each batch in turn is the query and the others are the reference, from which each type in turn is
taken out: every one that both have, with 20 cells or more in the query.  Its query cells are novel,
those whose type the reference still has are known; cells of types that it never had count for
nothing.  By the score of each cell (mappers.py says what it is; higher: known):

- AUC of known against novel cells;
- share of novel cells below the score that 5% of the known cells are below, which at random is .05;
- mean score of both, in the method's own units.

Means over the seeds, then over the types of all batches.  Written are held_out_types.csv, a row per
run, and held_out_types.md, which is printed as well.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from cases import Case, parser_of, paths_of, read, runs, split, tabulate
from mappers import METHODS
from run import markdown, number
from sklearn.metrics import roc_auc_score

MOST_FALSE = 0.05
FEWEST_CELLS = 20
MEANS = ["auc", "found", "mean_known", "mean_novel"]
HEADER = ["AUC", "novel found at 5% false", "mean score, known", "mean score, novel"]


def judged(score: np.ndarray, novel: np.ndarray, known: np.ndarray) -> dict[str, float]:
    """Return how well the score tells known cells from novel ones; NaN where there is none."""
    if np.isnan(score).any():
        return dict.fromkeys(MEANS, np.nan)
    either = known | novel
    return {
        "auc": roc_auc_score(known[either], score[either]),
        "found": float((score[novel] < np.quantile(score[known], MOST_FALSE)).mean()),
        "mean_known": float(score[known].mean()),
        "mean_novel": float(score[novel].mean()),
    }


def cases(path: Path):
    """Yield every case of a data set."""
    obs = read(path).obs
    sizes = obs.groupby(["batch", "cell_type"], observed=False).size().unstack()
    for batch, here in sizes.iterrows():
        there = sizes.drop(batch).sum()
        for kind in sizes.columns[(here >= FEWEST_CELLS) & (there > 0)]:
            yield Case(path, batch, kind)


def rows_of(case: Case, options, failed: list[str]):
    """Yield a row per run on one case."""
    reference, query = (part.obs["cell_type"].to_numpy(dtype=str) for part in split(case))
    novel, known = query == case.without, np.isin(query, reference)
    about = {
        "data": case.path.stem,
        "batch": case.batch,
        "type": case.without,
        "known": int(known.sum()),
        "novel": int(novel.sum()),
    }
    for name, arrays, record in runs(case, options, failed):
        yield {**about, **record, "method": name, **judged(arrays["score"], novel, known)}


def report(rows: pd.DataFrame) -> str:
    """Return all tables as Markdown."""
    per_case = rows.groupby(["data", "batch", "type", "method"], sort=False)[MEANS].mean()
    means = per_case.groupby(["data", "method"], sort=False).mean()
    parts = ["# Cell types that the reference does not have"]
    for data, group in rows.groupby("data", sort=False):
        lines = [[name, *map(number, row)] for name, row in means.loc[data].iterrows()]
        parts += [f"## {data}", markdown(["", *HEADER], lines), "AUC (novel found) by case:"]
        names = list(group["method"].unique())
        lines = []
        for (batch, kind), case in group.groupby(["batch", "type"], sort=False):
            found = case.groupby("method")[["auc", "found"]].mean().reindex(names)
            cells = [f"{number(auc)} ({number(share)})" for auc, share in found.to_numpy()]
            lines.append([f"{batch}, {kind}", str(case["novel"].iloc[0]), *cells])
        parts.append(markdown(["query, type", "cells", *names], lines))
    return "\n\n".join(parts) + "\n"


def line(row: dict) -> str:
    return (
        f"{row['data']}, {row['batch']} without {row['type']}: {row['method']}, "
        f"seed {row['seed']}: AUC {row['auc']:.3f}, found {row['found']:.3f}"
    )


def main() -> None:
    parser = parser_of(__doc__, list(METHODS))
    options = parser.parse_args()
    options.methods = [name for name in options.methods if METHODS[name].scores]
    paths = paths_of(options.data, parser)
    tabulate("held_out_types", options, map(cases, paths), rows_of, line, report)


if __name__ == "__main__":
    main()
