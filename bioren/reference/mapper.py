"""Queries mapped onto a fitted reference: embedding, corrected expression, score, labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd

from bioren.arrays.apply import result_dtype
from bioren.arrays.blocks import Block, is_lazy, row_blocks, stacked, to_dense
from bioren.arrays.groups import TINY, Batches
from bioren.arrays.lazy import by_rows, columns_of
from bioren.arrays.moments import Moments
from bioren.arrays.shapes import (
    AnyCellsByGenes,
    CellsByCovariates,
    CellsByDims,
    CellsByGenes,
    CellsByStates,
    LabelPerCell,
    PerCell,
    Positions,
)
from bioren.arrays.threads import with_one_blas_thread
from bioren.bridge import AffineBridge
from bioren.effects.alignment import Alignment, Removal
from bioren.effects.denoising import Denoiser
from bioren.effects.expression import ExpressionBridge
from bioren.effects.limits import embedding_of_retained, expression_bridge, within_limits
from bioren.effects.state_profile import profile_of
from bioren.effects.states import CellFacts, ConditionalBridge, Placed, log_genes_detected
from bioren.network.bridge_network import BridgeNetwork
from bioren.network.training import embed_bridged
from bioren.reference.confidence import MappingConfidence, averaging, calibrate, distances
from bioren.reference.labels import LabelTransfer
from bioren.reference.mapping import Frame, map_sample, stack
from bioren.reference.matched_genes import MatchedGenes
from bioren.reference.population import Population
from bioren.wording import listed

__all__ = ["Mapped", "Mapper"]

#: The iterations in gene space look at so many cells of a sample.
SKETCH = 2000

#: Distances are means over neighbors: in smaller samples they are not comparable.
MIN_CELLS_TO_JUDGE = 5

#: Iterations of states and bridge in the embedding that follow.  A second one changes nothing.
EMBEDDED_ITERATIONS = 1


class Mapped(NamedTuple):
    """Cells of a query in the reference population.

    Attributes
    ----------
    embedding
        Shape ``(cells, n_latent)``, float32.
    corrected
        Expression on the reference's scale of the genes in common, in the reference's order.
    score
        Probability that the reference holds the cell's type, shape ``(cells,)``; NaN where the
        reference was too small to learn it from, and in samples of fewer than five cells.
    labels
        Per kind of label the most probable one of each cell, and its probability.
    samples
        A row per sample: ``cells``, and ``mapping_score``, the mean of its cells.
    genes
        Which genes are in common.
    alignment
        Effects and bridges of the samples against the reference; the genes in common.
    by_state
        Moments of each sample as measured, groups ``(samples, states)``.
    reference
        The population that it was mapped onto.
    batches
        Sample of each cell.
    """

    embedding: CellsByDims
    corrected: AnyCellsByGenes
    score: PerCell
    labels: dict[str, tuple[LabelPerCell, PerCell]]
    samples: pd.DataFrame
    genes: MatchedGenes
    alignment: Alignment
    by_state: Moments
    reference: Population
    batches: Batches

    def expression(self, x: Any) -> AnyCellsByGenes:
        """Return the corrected expression of all genes of a query, those not in common as in `x`.

        Parameters
        ----------
        x
            What was mapped, shape ``(cells, genes)``.
        """

        def whole(block: Block, corrected: CellsByGenes) -> CellsByGenes:
            dense = np.array(to_dense(block), dtype=corrected.dtype)
            dense[:, self.genes.query] = corrected
            return dense

        like = np.empty((0, 0), dtype=self.corrected.dtype)
        return by_rows(whole, x, self.corrected, n_columns=x.shape[1], like=like)


class SampleResults(NamedTuple):
    """One sample of a query in the reference population.

    `expression` corrects its cells by their shares in the states; other fields as of `Mapped`.
    """

    embedding: CellsByDims
    expression: ExpressionBridge
    share: CellsByStates
    score: PerCell
    alignment: Alignment
    by_state: Moments


@dataclass(frozen=True)
class Mapper:
    """All that mapping needs; no cell, and of the reference's samples their moments.

    Attributes
    ----------
    population
        The reference in gene space.
    network
        Its encoder embeds bridged expression.
    states
        The states in the embedding.
    embedded
        Groups ``(states,)``: the reference's cells in the corrected embedding, without what is
        sample-specific: there states are compared.
    coordinates
        The same with it: there the reference has cells.
    denoiser
        Draws cells towards their states.
    confidence
        Judges how well the reference knows a cell, if that was asked for.
    removal
        How much of a query's effect is removed.
    labels
        What is known of the reference's cells, by the name of the column.
    """

    population: Population
    network: BridgeNetwork
    states: ConditionalBridge
    embedded: Moments
    coordinates: Moments
    denoiser: Denoiser
    confidence: MappingConfidence
    removal: Removal
    labels: dict[str, LabelTransfer]

    @classmethod
    def fit(
        cls,
        population: Population,
        network: BridgeNetwork,
        states: ConditionalBridge,
        *,
        denoiser: Denoiser,
        removal: Removal,
        x: Block,
        facts: CellFacts,
        placed: Placed,
        scored: bool = True,
        rng: np.random.Generator,
    ) -> Self:
        """Keep what mapping needs, and learn on the reference's own cells what is far.

        Parameters
        ----------
        population, network, states, denoiser, removal
            See `Mapper`.
        x
            Log-expression of the reference's cells in the variable genes, in memory.
        facts
            What is known of them.
        placed
            Where they lie.
        scored
            Whether queries are to get a score, for which the reference's own samples are mapped.
        rng
            Chooses samples and cells, where there are many.
        """
        there, n_samples = population.in_reference, len(population.samples)
        embedded, coordinates = (
            Moments.by_group(z, facts.codes, n_samples, placed.share)
            for z in (placed.corrected - placed.sample_specific, placed.corrected)
        )
        bridged = population.bridged(population.variable)

        def without(sample: int) -> Frame:
            others = there & (np.arange(n_samples) != sample)
            others = others if others.any() else there
            return Frame(
                profile_of(bridged, others),
                states,
                embedded[others].pooled(),
                coordinates[others].pooled(),
            )

        def encode(some: Block, bridge: AffineBridge) -> CellsByDims:
            blocks = (
                bridge.scale * to_dense(block) + bridge.shift for _, block in row_blocks(some)
            )
            return embed_bridged(network, blocks)

        confidence = MappingConfidence.of_nothing()
        if scored:
            confidence = calibrate(
                x,
                facts.codes,
                facts.covariates,
                share=placed.share,
                without=without,
                encode=encode,
                rng=rng,
            )
        return cls(
            population=population,
            network=network,
            states=states,
            embedded=embedded[there].pooled(),
            coordinates=coordinates[there].pooled(),
            denoiser=denoiser,
            confidence=confidence,
            removal=removal,
            labels={},
        )

    @with_one_blas_thread
    def map(
        self,
        x: Any,
        genes: MatchedGenes,
        batches: Batches,
        *,
        covariates: CellsByCovariates,
        rng: np.random.Generator,
    ) -> Mapped:
        """Map the samples of a query, each by itself.

        Parameters
        ----------
        x
            Log-expression, shape ``(cells, genes)``, any kind that `row_blocks` reads.
        genes
            Which of its genes the reference has.
        batches
            Sample of each cell.
        covariates
            Those that the model was fitted with, but for the cells' depth.
        rng
            Chooses cells among which neighbors are sought, where a sample has many.
        """
        n_cells, dims = x.shape[0], self.denoiser.centers.shape[1]
        embedding = np.empty((n_cells, dims), dtype=np.float32)
        score = np.empty(n_cells)
        parts: list[SampleResults] = []
        seed = rng.integers(2**63)
        shared = columns_of(x, genes.query)
        in_memory = None if is_lazy(x) else np.empty(shared.shape, dtype=result_dtype(x))
        for sample in range(len(batches.names)):
            cells = np.flatnonzero(batches.codes == sample)
            # The same numbers for each sample, so that none depends on how many there are.
            own = np.random.default_rng(seed)
            some = shared[cells]
            found = self._map_sample(some, genes.reference, covariates[cells], rng=own)
            embedding[cells], score[cells] = found.embedding, found.score
            parts.append(found)
            if in_memory is not None:
                one = np.zeros(len(cells), dtype=np.intp)
                in_memory[cells] = found.expression.apply(some, one, found.share)
        alignment = stack([part.alignment for part in parts])
        labels = {}
        for name, transfer in self.labels.items():
            codes, probability = transfer.predict(embedding)
            labels[name] = np.array(transfer.names, dtype=object)[codes], probability
        counts = np.bincount(batches.codes, minlength=len(batches.names))
        by_sample = pd.Series(score).groupby(batches.codes).mean()
        samples = pd.DataFrame(
            {"cells": counts, "mapping_score": by_sample.to_numpy()},
            index=pd.Index(batches.names, name="sample"),
        )
        by_state = Moments.stacked([part.by_state for part in parts])
        return Mapped(
            embedding,
            _corrected_lazily(shared, batches, parts) if in_memory is None else in_memory,
            score,
            labels,
            samples,
            genes,
            alignment,
            by_state,
            self.population,
            batches,
        )

    def add(
        self, mapped: Mapped, names: list[str] | None = None, *, in_reference: bool | None = None
    ) -> Self:
        """Return the mapper whose population holds the samples of a query as well.

        Genes that the query lacks or never measured are taken to be as the reference expects them.

        Parameters
        ----------
        mapped
            The query, mapped.
        names
            Of its samples, new ones; None: as they were in the query.
        in_reference
            See `Population.add`.

        Raises
        ------
        ValueError
            The population has a sample of that name, or the names are not one per sample; or the
            query was mapped onto another reference.
        """
        if not self.population.has_states_of(mapped.reference):
            raise ValueError("The query was mapped onto another reference: map it onto this one.")
        own = list(mapped.samples.index)
        names = own if names is None else names
        if len(names) != len(own):
            msg = f"Give one name for each of {len(own)} samples, {listed(own)}; received {names}."
            raise ValueError(msg)
        population = self.population
        known = population.profile.by_state
        for row, name in enumerate(names):
            measured = ~mapped.alignment.unmeasured[row]
            genes = mapped.genes.reference[measured]
            count = mapped.by_state.count[row]
            expected = Moments(count, known.mean.copy(), known.var() * count[:, None])
            expected.mean[:, genes] = mapped.by_state.mean[row][:, measured]
            expected.m2[:, genes] = mapped.by_state.m2[row][:, measured]
            n_genes = len(population.genes)
            bridge = AffineBridge.identity(n_genes)
            full = mapped.alignment.full
            bridge.scale[genes], bridge.shift[genes] = (
                full.scale[row, measured],
                full.shift[row, measured],
            )
            population = population.add(name, expected, bridge, in_reference=in_reference)
        return replace(self, population=population)

    def _map_sample(
        self,
        x: Any,
        columns: Positions,
        covariates: CellsByCovariates,
        *,
        rng: np.random.Generator,
    ) -> SampleResults:
        """Map one sample; `columns` are the positions of its genes in the population."""
        place = np.full(len(self.population.genes), -1)
        place[self.population.variable] = np.arange(len(self.population.variable))
        seen = np.flatnonzero(place[columns] >= 0)  # among the sample's genes
        inputs = place[columns[seen]]  # among the network's
        some = stacked(block[:, seen] for _, block in row_blocks(x)) if is_lazy(x) else x[:, seen]
        frame = Frame(self.population.profile, self.states, self.embedded, self.coordinates)
        frame = frame.of_genes(columns)
        of_variable = self._as_seen(frame.of_genes(seen), inputs)
        # In gene space first, where an iteration costs little.
        sketch = np.sort(rng.permutation(x.shape[0])[:SKETCH])
        start = self.population.place(some[sketch], columns[seen]).alignment

        def encode(bridge: AffineBridge) -> CellsByDims:
            return embed_bridged(self.network, self._inputs(some, inputs, bridge))

        mapped = map_sample(
            x,
            np.hstack([log_genes_detected(some), covariates]),
            frame,
            encode=encode,
            variable=(some, seen),
            removal=self.removal,
            start=start.filled,
            iterations=EMBEDDED_ITERATIONS,
        )
        alignment = mapped.with_errors(x)._replace(overlap_before=start.overlap_before)
        placed = mapped.placed
        one = np.zeros(x.shape[0], dtype=np.intp)

        of_some = alignment.of_genes(seen)
        loadings = self.network.components.detach().cpu().numpy()[inputs]
        shifts = placed.shifts[None]
        removed = within_limits(
            self.removal.strength * shifts, of_some, loadings, d_max=self.removal.d_max
        )
        retained = placed.share @ (shifts - removed)[0]
        retained += embedding_of_retained(some, one, of_some, loadings=loadings)
        embedding = self.denoiser.denoised(placed.corrected, placed.share, placed.sample_specific)

        expression = expression_bridge(
            mapped.by_state,
            alignment,
            self.removal,
            inlier_weight=placed.inlier_weight[None],
            onto=frame.profile,
        )
        score = np.full(x.shape[0], np.nan)
        if x.shape[0] >= MIN_CELLS_TO_JUDGE:
            # What the sample never measured is not unexpected.
            measured = np.flatnonzero(~of_some.unmeasured[0])
            some, bridge = some[:, measured], of_some.full[:, measured]
            of_measured = of_variable.of_genes(measured)
            near = averaging(some, bridge, of_measured, rng=rng)
            far = distances(
                some, bridge, mapped.bridged, frame=of_measured, near=near, among=[None]
            )[0]
            score = self.confidence.score(far)
        return SampleResults(
            embedding + retained, expression, placed.share, score, alignment, mapped.by_state
        )

    def _as_seen(self, frame: Frame, inputs: Positions) -> Frame:
        """Return the frame with its cells where, and as far apart as, these genes tell."""
        everything = np.arange(len(self.population.variable))
        if len(inputs) == len(everything):
            return frame
        by_state = self.population.profile.by_state.of_genes(self.population.variable)
        squared = self.network.components.detach().cpu().numpy() ** 2
        nothing = AffineBridge.identity(1, 1)
        (whole, width), (seen, seen_width) = (
            (
                embed_bridged(self.network, self._inputs(by_state.mean[:, of], of, nothing)),
                by_state.m2[:, of] @ squared[of],
            )
            for of in (everything, inputs)
        )
        known = frame.coordinates
        m2 = known.m2 * seen_width / np.maximum(width, TINY)
        return frame._replace(coordinates=Moments(known.count, known.mean + seen - whole, m2))

    def _inputs(self, x: Block, inputs: Positions, bridge: AffineBridge) -> Iterator[CellsByGenes]:
        """Yield bridged expression of the network's genes; those that `x` lacks are at the mean."""
        center = self.network.center.detach().cpu().numpy()
        for _, block in row_blocks(x):
            whole = np.tile(center, (block.shape[0], 1))
            whole[:, inputs] = bridge.scale * to_dense(block) + bridge.shift
            yield whole


def _corrected_lazily(x: Any, batches: Batches, parts: list[SampleResults]) -> AnyCellsByGenes:
    """Return the corrected expression of all samples of a lazy matrix as a dask array."""
    expression = ExpressionBridge.stacked([part.expression for part in parts])
    share = np.empty((x.shape[0], parts[0].share.shape[1]), dtype=parts[0].share.dtype)
    for sample, part in enumerate(parts):
        share[batches.codes == sample] = part.share
    return expression.apply(x, batches.codes, share)
