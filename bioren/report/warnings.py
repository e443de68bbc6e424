"""What a reader of batch effects should know before trusting them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bioren.adata.obs import condition_message, read_batches
from bioren.adata.record import Effects, MappingRecord
from bioren.effects.alignment import isolation_messages
from bioren.effects.diagnosis import MIN_CELLS, structure_message
from bioren.effects.gene_programs import names_symbols, program_messages
from bioren.effects.sizes import MIN_SAMPLES, EffectSizes, outlier_message
from bioren.reference.confidence import low_score_message
from bioren.wording import listed

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["not_checked", "warning_signs"]

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
    mapping: MappingRecord | None = None,
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
    mapping
        How the samples were mapped; None: they were integrated.

    Raises
    ------
    KeyError
        There is no such column.
    """
    found = []
    if mapping is not None:
        found.append(low_score_message(effects.samples, mapping.score))
    names = np.array(effects.samples, dtype=object)
    if condition_key is not None:
        batches = read_batches(adata, effects.batch_key, single=True)
        found.append(condition_message(adata, condition_key, batches))
    error = effects.standard_error_d
    found += program_messages(effects.samples, effects.genes, effects.d, error_d=error)
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


def not_checked(
    effects: Effects,
    *,
    diagnosis: pd.DataFrame | None = None,
    condition_key: str | None = None,
    mapping: MappingRecord | None = None,
) -> list[str]:
    """Return what was not looked at, and why: nothing said of it is no good sign.

    Parameters
    ----------
    effects, diagnosis, condition_key, mapping
        See `warning_signs`.
    """
    reasons = []
    if condition_key is None:
        reasons.append(
            "whether the samples are confounded with what you study: no condition was named "
            "(condition_key=...)."
        )
    if diagnosis is None and mapping is None:
        reasons.append(
            "overlap of samples and changes of their structure: bioren.tl.integrate does that."
        )
    if mapping is not None:
        reasons.append("changes of the samples' structure: this is not done for mapped samples.")
        n_unscored = int(np.isnan(mapping.score).sum())
        if n_unscored:
            reasons.append(
                f"how well the reference knows {n_unscored} of {len(effects.samples)} samples: "
                "they, or the reference, are too small for a mapping score."
            )
    if len(effects.samples) < MIN_SAMPLES:
        reasons.append(f"which samples stand out: that takes {MIN_SAMPLES} samples or more.")
    if not names_symbols(effects.genes):
        reasons.append(
            "known gene programs, such as interferon-stimulated genes, among the largest effects: "
            "genes do not go by symbols of humans or mice."
        )
    return reasons


def _with_numbers(names: np.ndarray, numbers: np.ndarray, form: str) -> str:
    return listed(f"{name} ({number:{form}})" for name, number in zip(names, numbers, strict=True))
