"""What a fit knows, and what follows from it for a cell: plain data, and nothing of AnnData."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
import pandas as pd

from bioren.adata.matrix import Cells
from bioren.adata.study import Columns
from bioren.arrays.blocks import Block, is_lazy
from bioren.arrays.lazy import columns_of
from bioren.arrays.shapes import (
    AnyCellsByGenes,
    CellsByDims,
    CellsByStates,
    CellsByVariable,
    SampleCodes,
)
from bioren.effects.alignment import MAX_REMOVED, Alignment, Removal
from bioren.effects.denoising import Denoiser
from bioren.effects.diagnosis import Diagnosis
from bioren.effects.expression import ExpressionBridge
from bioren.effects.limits import embedding_of_retained
from bioren.effects.states import CellFacts, ConditionalBridge, Placed, log_genes_detected
from bioren.network.bridge_network import BridgeNetwork
from bioren.network.training import NO_TRAINING, TrainingOptions, decode, embed
from bioren.reference.mapper import Mapper
from bioren.reference.population import Population

__all__ = ["Fitted", "OwnSamples", "Placement", "Results", "Settings", "network_facts"]


class Settings(NamedTuple):
    """What a model is fitted with; see `bioren.RenormAutoencoder`."""

    n_latent: int = 20
    n_hidden: int = 256
    strength: float = 1.0
    max_removed: tuple[float, float] | None = MAX_REMOVED
    training: TrainingOptions = NO_TRAINING

    @property
    def removal(self) -> Removal:
        """Return how much of the samples' differences is removed."""
        return Removal(self.strength, max_removed=self.max_removed)


class OwnSamples(NamedTuple):
    """What a model knows of the samples that it was fitted on; a published one knows none.

    Attributes
    ----------
    names
        Of the samples.
    alignment
        Effects and bridges, axes samples and genes.
    expression
        The bridge of expression by state.
    diagnosis
        Signs of over-correction.
    history
        Reconstruction error by epoch.
    """

    names: list[str]
    alignment: Alignment
    expression: ExpressionBridge
    diagnosis: Diagnosis
    history: pd.DataFrame


class Placement(NamedTuple):
    """Cells of the model's own samples in the reference population: the network has seen them.

    Attributes
    ----------
    cells
        Expression, and which genes the network sees.
    variable
        Expression of these genes, in memory.
    codes
        Sample of each cell.
    placed
        The cells in the embedding.
    """

    cells: Cells
    variable: Block
    codes: SampleCodes
    placed: Placed


class Results(NamedTuple):
    """What a model makes of cells.

    Attributes
    ----------
    embedding
        Coordinates in the reference population, shape ``(cells, n_latent)``.
    corrected
        Expression on the reference's scale, shape ``(cells, genes)``, or ``(cells, variable)``;
        None if it was not asked for.
    decoded
        Denoised expression of the variable genes; None if it was not asked for.
    states
        Each cell's share in each state, shape ``(cells, states)``.
    """

    embedding: CellsByDims
    corrected: AnyCellsByGenes | None
    decoded: CellsByVariable | None
    states: CellsByStates


@dataclass(frozen=True)
class Fitted:
    """A fitted model.

    Attributes
    ----------
    settings
        What it was fitted with.
    columns
        Where its samples were read from.
    labels
        Names of the known cell types; None: there were none.
    signed
        Whether its expression had values below 0.
    mapper
        What maps other samples; holds the reference population, the network and the states.
    own
        What is known of its own samples; None: it was published without them.
    """

    settings: Settings
    columns: Columns
    labels: list[str] | None
    signed: bool
    mapper: Mapper
    own: OwnSamples | None

    @property
    def population(self) -> Population:
        """Return the reference population."""
        return self.mapper.population

    @property
    def network(self) -> BridgeNetwork:
        """Return the network, which embeds bridged expression."""
        return self.mapper.network

    @property
    def states(self) -> ConditionalBridge:
        """Return the states of the embedding, and the bridge per state."""
        return self.mapper.states

    @property
    def denoiser(self) -> Denoiser:
        """Return what draws cells towards their states."""
        return self.mapper.denoiser

    @property
    def genes(self) -> pd.Index:
        """Return the names of all genes."""
        return self.population.genes

    @property
    def variable_genes(self) -> pd.Index:
        """Return the names of the genes that the network sees."""
        return self.genes[self.population.variable]

    def with_mapper(self, mapper: Mapper) -> Self:
        """Return the model that maps by another mapper."""
        return replace(self, mapper=mapper)

    def samples(self) -> OwnSamples:
        """Return what is known of the model's own samples.

        Raises
        ------
        RuntimeError
            The model was published without them.
        """
        if self.own is None:
            msg = (
                "This model was published without its samples: it can map others, "
                "model.map(adata) or bioren.tl.map_query(adata, model)."
            )
            raise RuntimeError(msg)
        return self.own

    def place(self, cells: Cells, facts: CellFacts) -> Placement:
        """Place cells of the model's own samples; the network and the states run once.

        Parameters
        ----------
        cells
            Expression; `Cells.variable` are the genes that the network sees, in its order.
        facts
            As `network_facts` returns them.
        """
        self.samples()
        x = cells.variable_matrix()
        facts = network_facts(x, facts)
        z = embed(self.network, x, facts.codes)
        return Placement(cells, x, facts.codes, self.states.place(z, facts))

    def apply(
        self, placement: Placement, *, corrected: str | None = "all", decoded: bool = False
    ) -> Results:
        """Return all that follows for placed cells; see `bioren.tl.integrate` for the options."""
        denoised = self._denoised(placement)
        return Results(
            self._embedding(placement, denoised),
            None if corrected is None else self.corrected(placement, corrected),
            decode(self.network, denoised) if decoded else None,
            placement.placed.share,
        )

    def embedding(self, placement: Placement) -> CellsByDims:
        """Return each cell's coordinates in the reference population, ``(cells, n_latent)``."""
        return self._embedding(placement, self._denoised(placement))

    def corrected(self, placement: Placement, which: str = "all") -> AnyCellsByGenes:
        """Return expression on the reference's scale, of the placed cells' genes or variable ones.

        Parameters
        ----------
        placement
            The cells; lazy ones have lazy results.
        which
            ``"all"`` or ``"highly_variable"``.
        """
        bridge, x = self.samples().expression, placement.cells.x
        if which == "highly_variable":
            x = columns_of(x, placement.cells.variable) if is_lazy(x) else placement.variable
            bridge = bridge.of_genes(self.population.variable)
            return bridge.apply(x, placement.codes, placement.placed.share)
        genes = placement.cells.genes
        columns = self.genes.get_indexer(genes)
        if (columns < 0).any():
            msg = (
                f"{int((columns < 0).sum())} of {len(genes)} genes were not there when the model "
                f"was fitted, such as {genes[columns < 0][0]!r}. Leave them out."
            )
            raise KeyError(msg)
        return bridge.of_genes(columns).apply(x, placement.codes, placement.placed.share)

    def decoded(self, placement: Placement) -> CellsByVariable:
        """Return denoised expression of the variable genes, as if measured in the reference."""
        return decode(self.network, self._denoised(placement))

    def _denoised(self, placement: Placement) -> CellsByDims:
        placed = placement.placed
        return self.denoiser.denoised(placed.corrected, placed.share, placed.sample_specific)

    def _embedding(self, placement: Placement, denoised: CellsByDims) -> CellsByDims:
        """Return denoised coordinates with what is retained of the samples' differences."""
        z = denoised + placement.placed.retained
        of_variable = self.samples().alignment.of_genes(self.population.variable)
        loadings = self.population.components
        z += embedding_of_retained(
            placement.variable, placement.codes, of_variable, loadings=loadings
        )
        return z


def network_facts(x: Block, facts: CellFacts) -> CellFacts:
    """Return what is known of cells with the number of genes detected as first covariate.

    Parameters
    ----------
    x
        Expression of the genes that the network sees, in memory.
    facts
        As they were read.
    """
    detected = log_genes_detected(x)
    given = np.zeros((len(detected), 0)) if facts.covariates is None else facts.covariates
    return facts._replace(covariates=np.hstack([detected, given]))
