"""What a reader of batch effects should know before trusting them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bioren.adata.obs import read_batches, read_labels
from bioren.adata.record import Effects
from bioren.effects.alignment import isolation_messages
from bioren.effects.diagnosis import (
    MIN_CELLS,
    confounded_message,
    confounding,
    structure_message,
)
from bioren.effects.sizes import EffectSizes, outlier_message
from bioren.wording import listed

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["warning_signs"]

#: Samples of which more than such a share is so, by column of the diagnosis, and what is said of
#: them.  In public sets whose samples have all types in common, up to .11 of a sample is
#: sample-specific.
MUCH = {
    "unmatched": (
        0.1,
        "Much of these samples lies in cell states that no other sample has: {}. These cells had "
        "nothing to be compared with. Either the sample alone has such cells, or they should have "
        "been integrated and were not: look at their markers.",
    ),
    "sample_specific": (
        0.2,
        "Much of these samples is sample-specific: it lies in states that others share, but "
        "farther from the others' cells there than the rest of the sample does: {}. It was taken "
        "for cell types that the others lack, and left where it was. If it is none, name the "
        "types (labels_key=...).",
    ),
}


def warning_signs(
    adata: AnnData,
    effects: Effects,
    sizes: EffectSizes,
    *,
    diagnosis: pd.DataFrame | None = None,
    condition_key: str | None = None,
) -> list[str]:
    """Return what speaks against taking the effects at face value, the gravest first.

    Parameters
    ----------
    adata
        Its ``obs`` is read if there is a condition, and nothing else.
    effects, sizes
        The effects and how large they are.
    diagnosis
        See `bioren.tl.diagnose`; None: there is none.
    condition_key
        Column of ``adata.obs`` that is to be studied; None: none was named.

    Raises
    ------
    KeyError
        There is no such column.
    """
    found = []
    names = np.array(effects.samples, dtype=object)
    if condition_key is not None:
        batches = read_batches(adata, effects.batch_key)
        condition, _ = read_labels(adata, condition_key)
        degree = confounding(batches.codes, condition)
        found.append(confounded_message(batches.key, condition_key, degree))
    if diagnosis is not None:
        overlap, before = (diagnosis[key].to_numpy() for key in ("overlap", "overlap_before"))
        found += isolation_messages(effects.samples, overlap, before)
        structure = diagnosis["structure_removed"].to_numpy()
        found.append(structure_message(effects.samples, structure, effects.cells))
        for name, (most, message) in MUCH.items():
            share = diagnosis[name].to_numpy()
            much = share > most
            if much.any():
                found.append(message.format(_with_numbers(names[much], share[much], ".0%")))
    tiny = effects.cells < MIN_CELLS
    if tiny.any():
        found.append(
            f"{int(tiny.sum())} of {len(names)} samples have fewer than {MIN_CELLS} cells: "
            f"{_with_numbers(names[tiny], effects.cells[tiny], ',')}. Their effects are uncertain; "
            "what may be chance was left in place."
        )
    found.append(outlier_message(effects.samples, effects.cells, sizes))
    return [message for message in found if message]


def _with_numbers(names: np.ndarray, numbers: np.ndarray, form: str) -> str:
    return listed(f"{name} ({number:{form}})" for name, number in zip(names, numbers, strict=True))
