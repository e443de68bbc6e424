"""The batch-effect report: one HTML page that needs nothing else, neither files nor a network."""

from __future__ import annotations

import base64
import datetime
import io
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

import bioren
from bioren import plotting
from bioren.adata.obs import list_of
from bioren.adata.record import (
    Effects,
    has_diagnosis,
    has_history,
    read_diagnosis,
    read_effects,
    read_mapping,
)
from bioren.effects.sizes import EffectSizes, beyond_chance, clipped, effect_sizes
from bioren.plotting.style import height_for
from bioren.report.mapping import mapping_section
from bioren.report.warnings import not_checked, warning_signs
from bioren.wording import listed

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["render"]

#: Rows of the table of genes, over all samples, and how many a sample has at least and at most.
ROWS, MIN_ROWS, MAX_ROWS = 2000, 10, 100

#: So many rows of each sample are printed.
PRINTED_ROWS = 10

#: Dots per inch: sharp on a screen of twice the usual density.
RESOLUTION = 144

#: How settings are called on the page.
SETTINGS = {
    "reference": "reference samples",
    "layer": "layer",
    "standardize": "compared within cell states",
    "center": "shifted as well as scaled",
    "labels_key": "known cell types",
    "controls_key": "control cells",
    "covariates": "covariates",
    "condition_key": "condition",
    "strength": "strength (share to remove)",
    "max_removed": "limits on what is removed (r, d)",
    "max_kept": "limits on what is kept (r, d)",
    "n_latent": "dimensions of the embedding",
    "rng": "seed",
}


class Plot(NamedTuple):
    """A picture on the page.

    Attributes
    ----------
    title, caption, alt
        Heading; how to read it; and what stands for it where it cannot be seen.
    image
        PNG in base64.
    width
        Of the picture as drawn, in CSS pixels.
    """

    title: str
    caption: str
    alt: str
    image: str
    width: int


def render(
    adata: AnnData,
    *,
    key: str = "bioren",
    condition_key: str | None = None,
    source: str = "",
    table: str | None = None,
    wording: Callable[[str], str] = str,
) -> str:
    """Return the report of a record as HTML.

    Parameters
    ----------
    adata
        After `bioren.tl.integrate` or `bioren.pp.bridge`.
    key
        Name of the record in ``adata.uns``.
    condition_key
        Column of ``adata.obs`` that is to be studied; None: the one that the record names.
    source
        Where the data come from, for the heading.
    table
        Where the full table was written, if it was.
    wording
        Says a warning in the words of the caller, such as the command line's options.

    Raises
    ------
    KeyError
        There is no such record or column.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    effects = read_effects(adata, key)
    condition_key = condition_key or effects.settings.get("condition_key")
    sizes = effect_sizes(
        effects.r, effects.d, effects.standard_error_r, error_d=effects.standard_error_d
    )
    diagnosis = read_diagnosis(adata, key) if has_diagnosis(adata, key) else None
    mapping = read_mapping(adata, key)
    found: dict[str, Any] = {
        "diagnosis": diagnosis,
        "condition_key": condition_key,
        "mapping": mapping,
    }
    environment = Environment(
        loader=PackageLoader("bioren.report", "template"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("report.html.jinja").render(
        source=source,
        batch_key=" + ".join(list_of(effects.batch_key)),
        condition_key=condition_key,
        date=datetime.date.today().isoformat(),
        version=bioren.__version__,
        record_version=effects.version,
        effects=effects,
        overall=_overall(effects, sizes),
        warnings=[wording(text) for text in warning_signs(adata, effects, sizes, **found)],
        unchecked=[wording(text) for text in not_checked(effects, **found)],
        mapping=None if mapping is None else mapping_section(adata, effects, mapping),
        diagnosed=diagnosis is not None,
        summary=_summary(effects, sizes, diagnosis),
        plots=[*_plots_of_mapping(adata, key, effects), *_plots(adata, key, effects, sizes=sizes)],
        genes=_most_affected(effects),
        printed_rows=PRINTED_ROWS,
        reference=_listing((mapping and mapping.model) or effects.settings.get("reference")),
        settings=_settings(effects.settings),
        table=table,
    )


def _overall(effects: Effects, sizes: EffectSizes) -> dict[str, float]:
    """Return the few numbers that say how large the effects are altogether."""
    square = np.square(effects.d, dtype=np.float64)
    return {
        "beyond": float((beyond_chance(effects.d, effects.standard_error_d) > 0).mean()),
        "shift": float(np.median(sizes.shift)),
        "scale": float(2 ** np.median(sizes.scale)),
        "removed": float((square * effects.removed).sum() / max(square.sum(), 1e-12)),
    }


def _summary(
    effects: Effects, sizes: EffectSizes, diagnosis: pd.DataFrame | None
) -> list[dict[str, Any]]:
    """Return a row per sample."""
    of_r, of_d = clipped(
        effects.removable_r, effects.d, effects.standard_error_d, settings=effects.settings
    )
    columns: dict[str, Any] = {
        "sample": effects.samples,
        "cells": effects.cells,
        "shift": sizes.shift,
        "scale": sizes.scale,
        "outlier": sizes.outlier,
        "held_back": np.maximum(of_r, of_d),
    }
    if diagnosis is not None:
        columns |= {
            name: diagnosis[name].to_numpy()
            for name in ("overlap", "unmatched", "sample_specific", "structure_removed")
        }
    return _rows(pd.DataFrame(columns))


def _most_affected(effects: Effects) -> list[dict[str, Any]]:
    """Return the rows of the genes that each sample measures most differently."""
    n_samples = len(effects.samples)
    most = min(max(ROWS // n_samples, MIN_ROWS), MAX_ROWS, len(effects.genes))
    excess = beyond_chance(effects.d, effects.standard_error_d)
    rows = []
    for sample in range(n_samples):
        order = np.lexsort([-np.abs(effects.d[sample]), -excess[sample]])[:most]
        columns = {
            "sample": effects.samples[sample],
            "gene": [effects.genes[i] for i in order],
            "printed": np.arange(len(order)) < PRINTED_ROWS,
        }
        for name in ("r", "standard_error_r", "d", "standard_error_d", "removed"):
            columns[name] = getattr(effects, name)[sample, order]
        rows += _rows(pd.DataFrame(columns))
    return rows


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return table.to_dict("records")


def _plots_of_mapping(adata: AnnData, key: str, effects: Effects) -> Iterator[Plot]:
    if read_mapping(adata, key) is None or "bioren_mapping_score" not in adata.obs:
        return
    yield Plot(
        "How well does the reference know the cells?",
        "The mapping scores of each sample's cells, by histogram; the stroke is their mean. Left "
        "of the dotted line a cell looks more like cells whose type was withheld from the "
        "reference than like known ones.",
        "Histograms of the mapping score by sample; the table of mapping has the means.",
        *_image(
            lambda ax: plotting.mapping_scores(adata, key=key, ax=ax),
            7.2,
            height_for(2 * len(effects.samples)),
        ),
    )


def _plots(adata: AnnData, key: str, effects: Effects, *, sizes: EffectSizes) -> Iterator[Plot]:
    height = height_for(len(effects.samples))
    outliers = listed([effects.samples[i] for i in np.flatnonzero(sizes.outlier)])
    yield Plot(
        "How large is each sample's effect?",
        "Per sample the root mean square of d (shift) and of log2 r (scale) over all genes, beyond "
        "what the standard errors explain. A sample stands out beyond the dotted line, at three "
        "robust standard deviations above the median of the samples (of four or more), and farther "
        "out for samples of few cells.",
        f"Sizes of the effects by sample. Standing out: {outliers}.",
        *_image(lambda ax: plotting.samples(adata, key=key, ax=ax), 7.2, height),
    )
    yield Plot(
        "Which genes are affected?",
        "The most affected genes, found for each sample in turn. Red: the sample measures more of "
        "the gene than the reference; blue: less. A dot: within two standard errors of 0, so that "
        "it may be chance.",
        "Heatmap of the shift d, samples by genes; the table of genes holds the numbers.",
        *_image(lambda ax: plotting.batch_effects(adata, key=key, ax=ax), 9.5, height + 1.1),
    )
    for of, title in (("d", "How do shifts spread?"), ("r", "How do scales spread?")):
        yield Plot(
            title,
            "Over the genes of each sample: median (point), middle half (thick), all but the "
            "outermost hundredths (thin). Dashed, where there is one: the limit on what may be "
            "removed; on the right the share of genes that it held back.",
            f"Spread of {of} over the genes of each sample; the table of samples has the shares "
            "that were held back.",
            *_image(
                lambda ax, of=of: plotting.limits(adata, of=of, key=key, ax=ax),  # type: ignore[misc]
                7.2,
                height,
            ),
        )
    # Records of pp.bridge have no embedding, those of earlier versions one of this name.
    known = "X_bioren" if "n_latent" in effects.settings else None
    after = effects.settings.get("embedding", known)
    if after is not None and after in adata.obsm:
        yield Plot(
            "The cells before and after",
            "Each point is a cell, colored by sample, along two principal components of the "
            "expression as it was, and of the corrected embedding. Where samples hold the same "
            "kinds of cells, their colors should mix.",
            "Two scatter plots of cells, before and after the correction, colored by sample.",
            *_image(
                lambda ax: plotting.before_after(adata, after=after, key=key, ax=ax),
                11.5,
                5.0,
                columns=2,
            ),
        )
    if has_history(adata, key):
        yield Plot(
            "Training of the embedding",
            "Reconstruction error by epoch. Epoch 0 is the start, the principal components; the "
            "network stays there where training does not lower the error of held-out cells beyond "
            "chance.",
            "Reconstruction error of training and held-out cells by epoch.",
            *_image(lambda ax: plotting.training_history(adata, key=key, ax=ax), 6.0, 3.6),
        )


def _image(
    draw: Callable[[Any], object], width: float, height: float, *, columns: int = 1
) -> tuple[str, int]:
    """Draw without pyplot, whose figures and settings belong to the caller."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    draw(figure.subplots(1, columns))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=RESOLUTION, metadata={"Software": None})
    return base64.b64encode(buffer.getvalue()).decode(), round(width * 96)


def _settings(settings: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: _listing(settings[slot])
        for slot, name in SETTINGS.items()
        if settings.get(slot) is not None
    }


def _listing(value: Any) -> str:
    """Write a setting for a reader."""
    if value is None:
        return ""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if np.ndim(value):
        return ", ".join(map(_listing, value))
    if isinstance(value, float | np.floating):
        return "none" if np.isinf(value) else f"{value:g}"
    return str(value)
