"""The reference population: moments by sample and cell state, and all that follows from them.

A population holds no cell.  Per sample and state it holds a number of cells, means and variances;
levels of the states, their composition, the scale of the reference and the effect of each sample
follow, so that samples can be added, taken out or merged without the cells of any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd

from bioren.arrays.blocks import gather_rows
from bioren.arrays.components import Projection
from bioren.arrays.moments import Moments
from bioren.arrays.shapes import (
    BoolPerSample,
    PerState,
    Positions,
    SampleCodes,
    VariableByDims,
    VariableGenes,
)
from bioren.bridge import AffineBridge
from bioren.effects.alignment import Alignment, Removal, compare
from bioren.effects.standardization import standardize
from bioren.effects.state_profile import ReferenceWeights, StateProfile, profile_of
from bioren.effects.states import frozen_states
from bioren.files.container import Stored, digest, read, write
from bioren.reference.mapping import Frame, MappedSample, map_sample, stack
from bioren.reference.matched_genes import MIN_GENES
from bioren.wording import listed

__all__ = ["MIN_CELLS", "Population"]

#: What is published of fewer cells than this may be about single persons' cells.
MIN_CELLS = 10

KIND = "population"

#: Under this name files of format 1 hold the pooled samples as one sample.
POOLED = "reference"


class Pooled(NamedTuple):
    """Samples of a published population, together: of none of them anything is known by itself.

    Attributes
    ----------
    by_state
        Groups ``(states,)``, on the reference's own scale, float32.
    n_samples
        Number of samples.
    weight, composition
        See `bioren.effects.state_profile.ReferenceWeights`; shape ``(states,)``, float32.
    """

    by_state: Moments
    n_samples: int
    weight: PerState
    composition: PerState

    def merge(self, other: Pooled) -> Pooled:
        """Return both together."""
        n_samples = self.n_samples + other.n_samples
        composition = self.n_samples * self.composition + other.n_samples * other.composition
        return Pooled(
            _single(self.by_state.merge(other.by_state)),
            n_samples,
            self.weight + other.weight,
            (composition / n_samples).astype(np.float32),
        )


@dataclass(frozen=True, eq=False)
class Population:
    """Moments of samples by cell state, and what follows from them.

    Attributes
    ----------
    genes
        Names of the genes.
    samples
        Names of the samples that are known one by one: all, unless it was published.
    by_state
        Groups ``(samples, states)``: cells, means and squared deviations of log-expression as it
        was measured, float32.
    bridges
        One per sample, from its scale to the reference's; ``(samples, genes)``.
    in_reference
        Which samples make up the reference, boolean of shape ``(samples,)``.
    variable
        Columns of the genes in which states are told apart.
    components
        Orthonormal columns, ``(variable genes, dims)``: the space in which they are told apart.
    normalization
        How expression was normalized, and versions; JSON.
    published
        For a population that was reduced by `publish`, the names and cells of all its samples,
        the pooled ones among them; else None.
    pooled
        Those that are not known one by one; None: there are none.

    Examples
    --------
    >>> population = model.population_                                  # doctest: +SKIP
    >>> population.without("donor3").save("eleven_donors.bioren")       # doctest: +SKIP
    """

    genes: pd.Index
    samples: list[str]
    by_state: Moments
    bridges: AffineBridge
    in_reference: BoolPerSample
    variable: VariableGenes
    components: VariableByDims
    normalization: Mapping[str, Any]
    published: Mapping[str, int] | None = None
    pooled: Pooled | None = None

    @property
    def cells(self) -> pd.Series:
        """Return the number of cells of each sample."""
        if self.published is not None:
            return pd.Series(self.published, name="cells", dtype=np.int64)
        counts = np.rint(self.by_state.count.sum(axis=1)).astype(np.int64)
        return pd.Series(counts, index=self.samples, name="cells")

    @property
    def target_sum(self) -> float | None:
        """Return the molecules per cell that expression was brought to, if that is known."""
        return self.normalization.get("target_sum")

    @cached_property
    def profile(self) -> StateProfile:
        """Return the reference by state: composition, levels and variances on its own scale."""
        bridged, in_reference = self.bridged(), self.in_reference
        weights = ReferenceWeights.of(bridged.count)
        if self.pooled is not None:
            known, n_samples, weight, composition = self.pooled
            first = Moments(
                *(np.asarray(of, dtype=np.float64) for of in (known.count, known.mean, known.m2))
            )
            bridged = Moments.stacked([first[None], bridged])
            in_reference = np.concatenate([[True], in_reference])
            weights = ReferenceWeights(
                np.vstack([weight, weights.weight]),
                np.vstack([composition, weights.composition]),
                np.concatenate([[n_samples], weights.samples]),
            )
        return profile_of(bridged, in_reference, weights)

    def bridged(self, genes: Positions | slice = slice(None)) -> Moments:
        """Return the moments of some genes on the reference's scale."""
        scale, shift = self.bridges.scale[:, None, genes], self.bridges.shift[:, None, genes]
        moved = self.by_state.of_genes(genes).moved(scale, shift)
        return Moments(moved.count.astype(np.float64), moved.mean, moved.m2)

    @property
    def digest(self) -> str:
        """Return the SHA-256 of all that it holds, as 64 hexadecimal digits."""
        return digest(KIND, *self.contents())

    def columns_of(self, genes: pd.Index) -> Positions:
        """Return the position of each of some genes.

        Raises
        ------
        ValueError
            Some are not among its genes, or too few of them tell its states apart.
        """
        columns = self.genes.get_indexer(genes)
        missing = genes[columns < 0]
        if len(missing):
            msg = (
                f"{len(missing)} of {len(genes)} genes are not in the reference population: "
                f"{listed(missing)}. Keep the others: "
                "adata[:, adata.var_names.isin(population.genes)].copy()"
            )
            raise ValueError(msg)
        n_variable = int(np.isin(self.variable, columns).sum())
        if n_variable < MIN_GENES:
            msg = (
                f"There are {n_variable} of the {len(self.variable)} genes that tell the "
                f"reference's cell states apart, at least {MIN_GENES} are needed: give all genes "
                "that were measured."
            )
            raise ValueError(msg)
        return columns

    def align(
        self, x: Any, codes: SampleCodes, n_samples: int, *, columns: Positions, removal: Removal
    ) -> Alignment:
        """Find the bridge of samples to this population, each by itself.

        Parameters
        ----------
        x
            Log-expression, shape ``(cells, genes)``.
        codes
            Sample of each cell, in ``range(n_samples)``, each having a cell.
        n_samples
            Number of samples.
        columns
            Position of each gene of `x` among `genes`.
        removal
            How much is removed.
        """
        found = []
        for sample in range(n_samples):
            of_sample = gather_rows(x, np.flatnonzero(codes == sample))
            found.append(self.place(of_sample, columns, removal).with_errors(of_sample))
        return stack(found)

    def place(self, x: Any, columns: Positions, removal: Removal | None = None) -> MappedSample:
        """Map one sample in gene space.

        Parameters
        ----------
        x
            Log-expression of its cells, shape ``(cells, genes)``.
        columns
            Position of each gene of `x` among `genes`.
        removal
            How much of its effect is removed; None: the defaults of `Removal`.
        """
        place = np.full(len(self.genes), -1)
        place[columns] = np.arange(len(columns))
        present = place[self.variable] >= 0
        seen = place[self.variable[present]]
        some = x[:, seen]
        # The states are where these genes put them: the others would shift the sample's cells.
        profile, components = self.profile.of_genes(columns), self.components[present]
        profile = profile.of_states(np.flatnonzero(profile.by_state.count > 0))
        of_some = profile.of_genes(seen)
        center, level = of_some.whole().mean, of_some.by_state
        embedded = Moments(
            level.count, (level.mean - center) @ components, level.m2 @ components**2
        )
        projection = Projection(center, components)
        one = np.zeros(x.shape[0], dtype=np.intp)
        return map_sample(
            x,
            None,
            Frame(profile, frozen_states(embedded.mean), embedded, embedded),
            encode=lambda bridge: projection.apply(some, one, bridge),
            variable=(some, seen),
            removal=removal or Removal(),
        )

    def merge(self, other: Population) -> Self:
        """Return both populations together; a sample that both have holds the cells of both.

        Raises
        ------
        ValueError
            They were not made of the same states.
        """
        self._check_same_states(other)
        names = list(dict.fromkeys([*self.samples, *other.samples]))
        ours, theirs = self._as_samples(names), other._as_samples(names)
        known = np.isin(names, self.samples)[:, None]
        return replace(
            self,
            samples=names,
            by_state=_single(ours.by_state.merge(theirs.by_state)),
            bridges=AffineBridge(
                np.where(known, ours.bridges.scale, theirs.bridges.scale),
                np.where(known, ours.bridges.shift, theirs.bridges.shift),
            ),
            in_reference=ours.in_reference | theirs.in_reference,
            published=self._published(self.cells.add(other.cells, fill_value=0), other),
            pooled=_merged(self.pooled, other.pooled),
        )

    def add(
        self,
        name: str,
        by_state: Moments,
        bridge: AffineBridge,
        *,
        in_reference: bool | None = None,
    ) -> Self:
        """Return the population with one more sample.

        Parameters
        ----------
        name
            Of the sample, which must be new.
        by_state
            Groups ``(states,)``: its moments as measured.
        bridge
            From its scale to the reference's, shape ``(genes,)``.
        in_reference
            Whether it becomes part of the reference; None: if all others are.
        """
        if name in self.samples or name in (self.published or ()):
            msg = f"The population has a sample {name!r} already: give this one another name."
            raise ValueError(msg)
        if in_reference is None:
            in_reference = bool(self.in_reference.all())
        added = replace(
            self,
            samples=[name],
            by_state=_single(by_state[None]),
            bridges=bridge[None],
            in_reference=np.array([in_reference]),
            published=None,
            pooled=None,
        )
        return self.merge(added)

    def subtract(self, other: Population) -> Self:
        """Return the population without the cells of another, part of this one.

        Undoes `merge`.  Samples of which no cell is left are gone.

        Raises
        ------
        ValueError
            `other` is not part of this population, or nothing is left.
        """
        self._check_same_states(other)
        unknown = [name for name in other.samples if name not in self.samples]
        if unknown:
            msg = f"There are no samples {listed(unknown)}; there are {listed(self.samples)}."
            raise ValueError(msg)
        here, taken = self.by_state, other._as_samples(self.samples).by_state
        # Sums of shares in single precision seldom cancel to exactly nothing.
        nothing = np.abs(here.count - taken.count) <= 1e-3 + 1e-6 * here.count
        count = np.where(nothing & (taken.count > 0), here.count, taken.count)
        left = here.subtract(Moments(count, taken.mean, taken.m2))
        some = left.count.sum(axis=1) > 0.5  # cells are whole
        published = self._published(self.cells.sub(other.cells, fill_value=0), other)
        return replace(self, by_state=_single(left), published=published)._of_samples(some)

    def without(self, samples: str | Sequence[str]) -> Self:
        """Return the population without some samples; those that are left keep their bridges.

        The reference's scale, which all samples together made, stays: ``relative_to(None)`` finds
        it anew.  The components in which states are told apart keep a trace of all cells.

        Raises
        ------
        ValueError
            There is no such sample, or nothing is left.
        """
        return self._of_samples(~self._named(samples))

    def relative_to(self, samples: str | Sequence[str] | None) -> Self:
        """Return the population with another reference: a sample, several, or None for all.

        The bridges of all samples are found anew, from their moments.
        """
        if self.published is not None:
            msg = "This population was published: its samples are pooled, and none can be chosen."
            raise ValueError(msg)
        chosen = np.ones(len(self.samples), dtype=bool) if samples is None else self._named(samples)
        alignment = compare(standardize(self.by_state, chosen), Removal())
        return replace(self, bridges=alignment.full, in_reference=chosen)

    def publish(
        self, path: str | Path, *, min_cells: int = MIN_CELLS, overwrite: bool = False
    ) -> None:
        """Write a file to be shared, in which nothing is told of few cells.

        Parameters
        ----------
        path, overwrite
            As for `save`.
        min_cells
            See `reduced`.
        """
        self.reduced(min_cells)[0].save(path, overwrite=overwrite)

    def reduced(self, min_cells: int = MIN_CELLS) -> tuple[Self, Positions]:
        """Return what may be shared: the samples of the reference pooled, state by state.

        Parameters
        ----------
        min_cells
            Samples of fewer cells are left out, and so are states in which there are fewer.

        Returns
        -------
        population
            Its samples are pooled: none is known by itself.
        states
            Which states are left.

        Raises
        ------
        ValueError
            `min_cells` is below 3; nothing is left; the population was published before.
        """
        if min_cells < 3:
            msg = f"min_cells must be 3 or more, received {min_cells}: a mean of two tells both."
            raise ValueError(msg)
        if self.published is not None:
            raise ValueError("This population was published already: copy its file.")
        told = self.in_reference & (self.by_state.count.sum(axis=1) >= min_cells)
        states = np.flatnonzero(self.by_state.count[told].sum(axis=0) >= min_cells)
        if len(states) == 0:
            msg = (
                f"No sample, or no state, has {min_cells} cells: nothing can be published. "
                "Choose a smaller min_cells, if that is safe."
            )
            raise ValueError(msg)
        some = self._of_samples(told)
        profile = some.profile.of_states(states)
        n_genes = len(self.genes)
        shared = replace(
            self,
            samples=[],
            by_state=_single(Moments.empty((0, len(states)), n_genes)),
            bridges=AffineBridge.identity(0, n_genes),
            in_reference=np.ones(0, dtype=bool),
            published={name: int(n) for name, n in some.cells.items()},
            pooled=some._as_one(profile.by_state, states),
        )
        return shared, states

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write all of it to a file, for `load`; to share it, see `publish`.

        Parameters
        ----------
        path
            File to write, such as ``"blood.bioren"``; it is whole or absent.
        overwrite
            Whether a file that is there may be replaced.

        Raises
        ------
        FileExistsError, OSError
            The file exists, or cannot be written.
        """
        write(path, KIND, *self.contents(), overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a population from its file, or from that of a model.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            It is damaged, was changed, is of a newer format, or something else.
        """
        stored = read(path, (KIND, "model"))
        try:
            return cls.from_stored(stored if stored.kind == KIND else stored.part(KIND))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_stored(cls, stored: Stored) -> Self:
        """Return the population that a file holds.

        Raises
        ------
        ValueError
            It does not fit together.
        """
        genes, samples = stored.names("genes"), stored.names("samples")
        n_samples, n_genes = len(samples), len(genes)
        count = stored.array("count", n_samples, None)
        n_states = count.shape[1]
        variable = stored.array("variable", None, kind="i")
        in_reference = stored.array("in_reference", n_samples, kind="b")
        scale, shift = (stored.array(name, n_samples, n_genes) for name in ("scale", "shift"))
        components = stored.array("components", len(variable), None)
        shape = n_samples, n_states, n_genes
        found = cls(
            genes=pd.Index(genes),
            samples=samples,
            by_state=Moments(count, stored.array("mean", *shape), stored.array("m2", *shape)),
            bridges=AffineBridge(scale, shift),
            in_reference=in_reference,
            variable=variable,
            components=components,
            normalization=_read_normalization(stored),
            published=_read_published(stored),
            pooled=_read_pooled(stored, n_states, n_genes),
        )
        if stored.version == 1 and found.published is not None:
            found = found._without_reserved_name(stored)
        found._check()
        return found

    def _without_reserved_name(self, stored: Stored) -> Self:
        """Return what format 1 held: pooled samples as the one called "reference"."""
        if POOLED not in self.samples:
            raise ValueError("The population says what no sample of it stands for.")
        row = self.samples.index(POOLED)
        n_states = self.by_state.count.shape[1]
        pooled = Pooled(
            self.by_state[row],
            stored.integer("pooled", 1),
            *(stored.array(f"pooled/{of}", n_states) for of in ("weight", "composition")),
        )
        others = np.arange(len(self.samples)) != row
        return replace(self, pooled=pooled)._of_samples(others)

    def _check(self) -> None:
        """Refuse what does not fit together.

        Raises
        ------
        ValueError
            It does not.
        """
        variable, count, n_genes = self.variable, self.by_state.count, len(self.genes)
        inside = (variable >= 0).all() and (variable < n_genes).all()
        if not inside or len(np.unique(variable)) < len(variable) or len(variable) == 0:
            raise ValueError("The positions of the variable genes do not fit the genes.")
        of_all = [self.by_state] if self.pooled is None else [self.by_state, self.pooled.by_state]
        negative = any((of.count < 0).any() or (of.m2 < 0).any() for of in of_all)
        nothing = self.pooled is None and not self.in_reference.any()
        if negative or nothing or 0 in (count.shape[1], n_genes):
            raise ValueError("The population holds negative counts or variances, or no reference.")
        if not all((of.count.sum(axis=-1) > 1e-3).all() for of in of_all):
            raise ValueError("The population holds samples without cells.")
        if (self.bridges.scale <= 0).any():
            raise ValueError("The population holds bridges whose scale is not positive.")
        if self.components.shape[1] == 0 or (np.abs(self.components) > 1.01).any():
            raise ValueError("The components of the population are not orthonormal.")
        if (self.pooled is None) != (self.published is None):
            raise ValueError("The population says what no sample of it stands for.")
        if self.pooled is not None:
            weight, composition = self.pooled.weight, self.pooled.composition
            if (weight < 0).any() or not (composition >= 0).all():
                raise ValueError("The population holds negative weights.")

    def contents(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return what a file holds of it: all but arrays, and arrays."""
        about = {
            "genes": list(map(str, self.genes)),
            "samples": list(self.samples),
            "normalization": dict(self.normalization),
            "published": None if self.published is None else dict(self.published),
            "pooled": None if self.pooled is None else self.pooled.n_samples,
        }
        arrays = {
            "count": self.by_state.count,
            "mean": self.by_state.mean,
            "m2": self.by_state.m2,
            "scale": self.bridges.scale,
            "shift": self.bridges.shift,
            "in_reference": self.in_reference,
            "variable": self.variable,
            "components": self.components,
        }
        if self.pooled is not None:
            by_state = self.pooled.by_state
            arrays |= {
                "pooled/count": by_state.count,
                "pooled/mean": by_state.mean,
                "pooled/m2": by_state.m2,
                "pooled/weight": self.pooled.weight,
                "pooled/composition": self.pooled.composition,
            }
        return about, arrays

    def __repr__(self) -> str:
        """Return the sizes."""
        n_states = self.by_state.count.shape[1]
        return (
            f"Population: {len(self.cells)} samples, {self.cells.sum():,} cells, "
            f"{len(self.genes):,} genes, {n_states} states"
            + (", published" if self.published is not None else "")
        )

    def _named(self, samples: str | Sequence[str]) -> BoolPerSample:
        wanted = [samples] if isinstance(samples, str) else list(samples)
        unknown = [name for name in wanted if name not in self.samples]
        if not wanted:
            raise ValueError(f"No sample is named. There are {listed(self.samples)}.")
        if unknown:
            msg = f"There are no samples {listed(unknown)}; there are {listed(self.samples)}."
            if self.pooled is not None:
                msg += " Those that were published are pooled, and none can be chosen."
            raise ValueError(msg)
        return np.isin(self.samples, wanted)

    def _as_one(self, by_state: Moments, states: Positions) -> Pooled:
        """Return the samples of the reference together, in some states, of which this is known."""
        weights = ReferenceWeights.of(self.by_state.count[self.in_reference].astype(np.float64))
        composition = weights.composition.mean(axis=0)[states]
        weight = weights.weight.sum(axis=0)[states]
        return Pooled(
            _single(by_state),
            len(weights.samples),
            weight.astype(np.float32),
            (composition / composition.sum()).astype(np.float32),
        )

    def _of_samples(self, some: BoolPerSample) -> Self:
        in_reference = self.in_reference[some]
        if not in_reference.any() and self.pooled is None:
            raise ValueError("No sample of the reference would be left.")
        samples = [name for name, here in zip(self.samples, some, strict=True) if here]
        gone = [name for name in self.samples if name not in samples]
        return replace(
            self,
            samples=samples,
            published=self._published(self.cells.drop(gone, errors="ignore"), self),
            by_state=self.by_state[some],
            bridges=self.bridges[some],
            in_reference=in_reference,
        )

    def _as_samples(self, names: list[str]) -> Self:
        """Return the population with these samples in this order, some of them empty."""
        rows = [names.index(name) for name in self.samples]
        n_states, n_genes = self.by_state.mean.shape[1:]
        by_state = _single(Moments.empty((len(names), n_states), n_genes))
        by_state.count[rows] = self.by_state.count
        by_state.mean[rows], by_state.m2[rows] = self.by_state.mean, self.by_state.m2
        bridges = AffineBridge.identity(len(names), n_genes)
        bridges.scale[rows], bridges.shift[rows] = self.bridges.scale, self.bridges.shift
        in_reference = np.zeros(len(names), dtype=bool)
        in_reference[rows] = self.in_reference
        return replace(
            self, samples=names, by_state=by_state, bridges=bridges, in_reference=in_reference
        )

    def _published(self, cells: pd.Series, other: Population) -> dict[str, int] | None:
        """Return the cells of samples if those of this population or another were published."""
        if self.published is None and other.published is None:
            return None
        return {name: int(n) for name, n in cells.items() if n > 0}

    def has_states_of(self, other: Population) -> bool:
        """Return whether both are parts of one reference, by the same genes and states."""
        return (
            self.genes.equals(other.genes)
            and self.by_state.mean.shape[1:] == other.by_state.mean.shape[1:]
            and np.array_equal(self.variable, other.variable)
            and np.array_equal(self.components, other.components)
        )

    def _check_same_states(self, other: Population) -> None:
        if not self.has_states_of(other):
            msg = (
                "The populations are not of the same genes and states: only parts of one reference "
                "can be merged or subtracted. Map the samples instead (bioren.tl.map_query)."
            )
            raise ValueError(msg)


def _single(moments: Moments) -> Moments:
    """Return moments in the precision in which they are stored, such that a file changes none."""
    return Moments(
        *(np.asarray(of, dtype=np.float32) for of in (moments.count, moments.mean, moments.m2))
    )


def _merged(one: Pooled | None, other: Pooled | None) -> Pooled | None:
    if one is None or other is None:
        return one or other
    return one.merge(other)


def _read_normalization(stored: Stored) -> dict[str, Any]:
    normalization = stored.mapping("normalization" if stored.version > 1 else "recipe")
    if normalization.get("target_sum") is not None:
        stored._replace(about=normalization).number("target_sum", 0)
    return normalization


def _read_published(stored: Stored) -> dict[str, int] | None:
    if stored.about.get("published") is None:
        return None
    published = stored.mapping("published")
    cells = stored._replace(about=published)
    if not published:
        raise ValueError("The population was published without samples.")
    return {name: cells.integer(name, 1) for name in published}


def _read_pooled(stored: Stored, n_states: int, n_genes: int) -> Pooled | None:
    """Return the pooled samples; in format 1 they are among the others."""
    if "pooled" not in stored.about:
        raise ValueError("The population lacks the entry 'pooled'.")
    if stored.about["pooled"] is None or stored.version == 1:
        return None
    part = stored.part("pooled")
    return Pooled(
        Moments(
            part.array("count", n_states),
            part.array("mean", n_states, n_genes),
            part.array("m2", n_states, n_genes),
        ),
        stored.integer("pooled", 1),
        part.array("weight", n_states),
        part.array("composition", n_states),
    )
