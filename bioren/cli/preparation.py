"""What the commands do before the work: counts normalized, variable genes marked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from bioren.cli.shared_options import Corrected

if TYPE_CHECKING:
    from anndata import AnnData

    from bioren.adata.matrix import Values
    from bioren.arrays.groups import BatchKey

__all__ = ["chosen_genes", "normalize", "prepare"]


def normalize(
    adata: AnnData,
    say: Callable[[str], None],
    target_sum: float | None = None,
    *,
    values: Values | None = None,
) -> None:
    """Bring counts in X to log-expression, and say so; `values` as for `normalize_counts`."""
    from bioren.adata.normalize import TARGET_SUM, normalize_counts

    target_sum = target_sum or TARGET_SUM
    if normalize_counts(adata, target_sum, values=values):
        done = f"brought to {target_sum:,.0f} per cell, log1p; kept in layers['counts']"
        say(f"X holds counts: {done}")


def prepare(
    adata: AnnData,
    batch_key: BatchKey,
    layer: str | None,
    *,
    genes: int,
    say: Callable[[str], None],
    single: bool = False,
) -> None:
    """Bring counts to log-expression and mark variable genes, where need be, and say so."""
    from bioren.adata.matrix import read_cells
    from bioren.adata.normalize import mark_variable_genes
    from bioren.adata.obs import read_batches

    samples = read_batches(adata, batch_key, single=single).names
    cells = read_cells(adata, layer)
    say(f"{len(samples)} samples in obs[{batch_key!r}]")
    if layer is None:
        normalize(adata, say, values=cells.values)
    elif cells.values.like_counts:
        msg = (
            f"layers[{layer!r}] holds counts, and --layer names log-expression. Counts are "
            "normalized where they are in X: move them there, and leave out --layer."
        )
        raise ValueError(msg)
    if "highly_variable" in adata.var:
        say(f"{len(cells.variable):,} variable genes, as var['highly_variable'] marks them")
    elif mark_variable_genes(adata, batch_key, genes, layer=layer):
        say(f"{genes:,} variable genes chosen by batch, in var['highly_variable']")


def chosen_genes(adata: AnnData, corrected: Corrected) -> Literal["all", "highly_variable"] | None:
    """Return `corrected` as `bioren.tl.integrate` takes it; where no gene is marked, all are."""
    if corrected is Corrected.none:
        return None
    if corrected is Corrected.all:
        return "all"
    if "highly_variable" not in adata.var:
        adata.var["highly_variable"] = True
    return "highly_variable"
