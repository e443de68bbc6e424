"""What the constants of the method change when each is halved and doubled, or has another value.

    python benchmarks/integration/constants.py [NAME ...] [NAME=VALUE ...] [--seeds 2]

Without names, each is halved and doubled; OUTLYING=inf takes all shifts for batch effects,
STANDARD_ERRORS=0 nothing for chance, ISOLATED=0 matches no sample's plain moments.

Needs the public sets in the folder BIOREN_DATA.  Told are steady totals (scores.py) of the core
sets on at most 1,500 cells; the share of 15 neighbors of the own type that NK cells and monocytes
have whom one study alone holds; and the share of neighbors that stay in random halves of one donor
(the last two as in safety.py).  Rows of (constant, value, question, answer) are written to
constants.csv; rows that are there already are not measured again.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import scores
from run import RESULTS, markdown
from safety import integrate, overlap, public, purity

from bioren.effects import constants
from bioren.effects.states import ConditionalBridge, StateOptions
from data import CORE

#: Constants of the module bioren.effects.constants, and fields of StateOptions.  MAX_RATIO is the
#: default of an argument, max_removed, and cannot be changed here.
NAMES = [name for name in dir(constants) if name.isupper() and name != "MAX_RATIO"]
OPTIONS = [name for name in StateOptions._fields if name != "iterations"]
AS_THEY_ARE = "as they are"
ALONE = {"NK": "NK cells", "CD14+ Mono": "monocytes"}


def value_of(name: str) -> float:
    return getattr(constants if name in NAMES else StateOptions(), name)


def replaced(name: str, value: float) -> AbstractContextManager:
    """Return a context in which a constant has another value."""
    if name in NAMES:
        return patch.object(constants, name, value)
    fit = ConditionalBridge.fit.__func__

    def with_option(cls, *args, **options):
        return fit(cls, *args, **{"options": StateOptions(**{name: value}), **options})

    return patch.object(ConditionalBridge, "fit", classmethod(with_option))


def changes(texts: list[str]) -> Iterator[tuple[str, float]]:
    """Yield constants with the value that a text names, or half and twice the present one."""
    for text in texts:
        name, _, value = text.partition("=")
        present = value_of(name)
        yield from [(name, float(value))] if value else [(name, present / 2), (name, present * 2)]


@cache
def cells_of(name: str):
    return public(name)


def answers(seeds: int) -> Iterator[tuple[str, float]]:
    """Yield each question and its answer, the mean over seeds."""
    for name in CORE:
        adata = cells_of(name)
        found = [integrate(adata, "batch", rng=seed).obsm["X_bioren"] for seed in range(seeds)]
        yield name, float(np.mean([scores.scores(adata, z)["steady"] for z in found]))
    adata = cells_of(CORE[0])
    adata = adata[np.random.default_rng(0).permutation(adata.n_obs)[:5000]].copy()
    kinds, study = (adata.obs[key].to_numpy(dtype=str) for key in ("cell_type", "batch"))
    for kind, name in ALONE.items():
        here = (kinds != kind) | (study != "kang_ctrl")
        part, labels = adata[here].copy(), kinds[here]
        found = [integrate(part, "batch", rng=seed).obsm["X_bioren"] for seed in range(2 * seeds)]
        yield name, float(np.mean([purity(z, labels, labels == kind) for z in found]))
    donor = cells_of("kang_pbmc_ctrl_8donors")
    donor = donor[donor.obs["batch"] == "1015"].copy()
    donor.obs["half"] = pd.Categorical((np.random.default_rng(0).permutation(donor.n_obs) % 2) > 0)
    even, untouched = (integrate(donor, "half", strength=s).obsm["X_bioren"] for s in (1, 0))
    yield "null halves", overlap(untouched, even)


def table_of(found: pd.DataFrame) -> str:
    """Return the answers as a table, those of the present values first."""
    wide = found.pivot_table(
        index=["constant", "value"], columns="question", values="answer", sort=False
    )
    lines = [
        [str(name), f"{value:g}", *(f"{answer:.3f}".removeprefix("0") for answer in row)]
        for (name, value), row in zip(wide.index, wide.to_numpy(), strict=True)
    ]
    return markdown(["", "value", *wide.columns], lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="NAME or NAME=VALUE; none: all constants")
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds, from 0 on")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results")
    options = parser.parse_args()
    names = [text.split("=")[0] for text in options.names]
    unknown = sorted(set(names) - {*NAMES, *OPTIONS})
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; choose from {', '.join(NAMES + OPTIONS)}")
    warnings.simplefilter("ignore")
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "constants.csv"
    rows = pd.read_csv(path).to_dict("records") if path.exists() else []
    done = {(row["constant"], row["value"]) for row in rows}
    wanted = [(AS_THEY_ARE, 0.0), *changes(options.names or NAMES + OPTIONS)]
    with patch.object(scores, "MOST_CELLS", 1500):
        for name, value in wanted:
            if (name, value) in done:
                continue
            with nullcontext() if name == AS_THEY_ARE else replaced(name, value):
                found = dict(answers(options.seeds))
            for question, answer in found.items():
                rows.append(
                    {"constant": name, "value": value, "question": question, "answer": answer}
                )
            pd.DataFrame(rows).to_csv(path, index=False)
            print(name, value, {q: round(a, 3) for q, a in found.items()}, flush=True)
    print("\n" + table_of(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()
