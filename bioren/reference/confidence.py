"""How well the reference knows a cell: the mapping score.

A cell whose type the reference lacks is placed all the same, in the states that are nearest.  Two
distances tell: from its state's center in the embedding, in units of the spread within states,
and from the expression that its states lead to expect.  Single cells are noisy, so both are
averages over the cell's neighbors within its own sample.  How far is too far is learned on the
reference itself: each of its samples is mapped on the others, and groups of states are withheld.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Self

import numpy as np
from scipy import sparse
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors

from bioren.arrays.apply import scale_rows
from bioren.arrays.blocks import Block, gather_rows
from bioren.arrays.components import Projection
from bioren.arrays.groups import TINY
from bioren.arrays.shapes import (
    CellsByCovariates,
    CellsByDims,
    CellsByDistances,
    CellsByStates,
    PerCell,
    PerDistance,
    PerSample,
    Positions,
    SampleCodes,
    StateCodes,
    StatesByDims,
)
from bioren.bridge import AffineBridge
from bioren.effects.alignment import Removal
from bioren.reference.mapping import Frame, map_sample
from bioren.wording import listed

__all__ = [
    "LOW",
    "MappingConfidence",
    "averaging",
    "calibrate",
    "distances",
    "low_score_message",
    "warn_low_scores",
]

#: Neighbors that a cell's distances are averaged over, itself among them.
NEIGHBORS = 16

#: Neighbors are sought among so many cells of the sample, in so many of its own components, which
#: are found on so many cells.
POOL, COMPONENTS, SKETCH = 10_000, 20, 2000

#: Distances averaged over neighbors are made for so many cells at a time.
BLOCK = 1000

#: A state's variance is at least this share of that of all states.
MIN_VARIANCE = 0.1

#: The reference is judged by so many of its samples, cells of each, and groups of states.
SAMPLES, CELLS, GROUPS = 10, 1000, 8

#: How far a cell is that lies where known ones do on average: log(exp(0) + exp(0)).
TYPICAL = float(np.log(2))

#: A sample fits the reference badly if its cells' mean score is lower: then they look more like
#: cells whose type was withheld than like known ones.  A sample that was left out of pancreas (five
#: technologies), CellBench or eight donors has .73 to .99; the same cells by another chemistry .41
#: and .47, after interferon .28, cells of another tissue .00 to .24.
LOW = 0.5
USUAL = "above .7"

#: So many cells make a group of withheld ones, and of the others.
MIN_CELLS = 10


class MappingConfidence(NamedTuple):
    """From distances to the probability that the reference holds a cell's type.

    Known and unknown cells are taken to be equally frequent.

    Attributes
    ----------
    center, unit
        Mean and standard deviation of known cells' two log distances, shape ``(2,)``.
    slope, level
        Log odds are ``slope * f + level``, where ``f = log(exp(u) + exp(v))`` of both distances
        in these units: a cell is far that is far by either.  The slope is not positive.  NaN
        where the reference was too small to learn from.
    single
        Whether the reference was one sample, which does not tell how much samples differ.
    """

    center: PerDistance
    unit: PerDistance
    slope: float
    level: float
    single: bool = False

    @classmethod
    def of_nothing(cls) -> Self:
        """Return what was not learned; its scores are NaN."""
        return cls(np.zeros(2), np.ones(2), np.nan, np.nan)

    @property
    def is_known(self) -> bool:
        """Return whether there was enough to learn from."""
        return not np.isnan(self.level)

    def score(self, distances: CellsByDistances) -> PerCell:
        """Return the probabilities of one sample's cells, shape ``(cells,)``.

        After a `single` sample, what all cells have in common says nothing: the nearest quarter
        of them is taken to be known.

        Parameters
        ----------
        distances
            Shape ``(cells, 2)``.
        """
        far = _far(distances, self.center, self.unit)
        if self.single:
            far = far - max(0.0, float(np.quantile(far, 0.25)) - TYPICAL)
        log_odds = self.slope * far + self.level
        return 1 / (1 + np.exp(-log_odds.clip(-500, 500)))


def low_score_message(names: Sequence[str], score: PerSample) -> str:
    """Say which samples fit the reference badly, and what to do; nothing if none does.

    Parameters
    ----------
    names
        The samples.
    score
        Mean mapping score of their cells; NaN where there is none.
    """
    shown = np.round(score, 2)  # NaN is not low
    low = [f"{name} ({mean:.2f})" for name, mean in zip(names, shown, strict=True) if mean < LOW]
    if not low:
        return ""
    return (
        f"{len(low)} of {len(names)} samples fit the reference badly, by their mean mapping score: "
        f"{listed(low)}. Usual for the reference's own kind of cells is {USUAL}; below {LOW:g} "
        "more cells look unknown than known. Their embedding, corrected expression and transferred "
        "labels are not to be trusted as they are. Is it the right reference (tissue, species, "
        "treatment, chemistry), was the query normalized as the reference was, with all genes, and "
        "is each of its samples named (batch_key=...)? If so, leave out cells of a low score "
        "(obs['bioren_mapping_score']), or integrate query and reference together "
        "(bioren.tl.integrate)."
    )


def warn_low_scores(names: Sequence[str], score: PerSample) -> None:
    """Warn of samples that fit the reference badly; see `low_score_message`."""
    if msg := low_score_message(names, score):
        warnings.warn(msg, stacklevel=3)


def distances(
    x: Block,
    bridge: AffineBridge,
    z: CellsByDims,
    *,
    frame: Frame,
    near: sparse.csr_matrix,
    among: Sequence[Positions | None],
) -> list[CellsByDistances]:
    """Return how far the cells of one sample lie from their states.

    Parameters
    ----------
    x
        Log-expression in memory, shape ``(cells, genes)``.
    bridge
        From the sample to the reference, shape ``(1, genes)``.
    z
        Embedding after the bridge of the genes, shape ``(cells, dims)``; what differs within
        states must not be shifted away, as what is unknown differs most.
    frame
        The reference, by the genes of `x`.
    near
        What `averaging` returns.
    among
        States to look at, by their positions; None: all.

    Returns
    -------
    list of numpy.ndarray
        For each entry of `among` shape ``(cells, 2)``: squared distance in the embedding, per
        dimension, and in gene space, per gene.
    """
    one = np.zeros(len(z), dtype=np.intp)
    bridged = near @ scale_rows(x, bridge.scale, one)  # means over neighbors
    found = []
    for states in among:
        states = np.arange(len(frame.coordinates.count)) if states is None else states
        share = frame.states.nearest(z, states)
        level, expected = frame.profile.by_state.mean[states], near @ share
        of_genes = np.empty(len(z))
        for start in range(0, len(z), BLOCK):
            rows = slice(start, start + BLOCK)
            some = bridged[rows]
            dense = some.toarray() if sparse.issparse(some) else some
            unexpected = dense + bridge.shift - expected[rows] @ level
            of_genes[rows] = np.square(unexpected).mean(axis=1)
        found.append(np.column_stack([near @ _from_centers(z, frame, states), of_genes]))
    return found


def calibrate(
    x: Block,
    codes: SampleCodes,
    covariates: CellsByCovariates | None,
    *,
    share: CellsByStates,
    without: Callable[[int], Frame],
    encode: Callable[[Block, AffineBridge], CellsByDims],
    rng: np.random.Generator,
) -> MappingConfidence:
    """Learn from the reference's own cells how far unknown cells lie.

    Parameters
    ----------
    x
        Log-expression of the variable genes, in memory, shape ``(cells, genes)``.
    codes, covariates, share
        Sample, covariates and states of each cell.
    without
        Returns the reference without one sample, by its number (or with all, if it is the only).
    encode
        Returns the embedding of some cells after a bridge.
    rng
        Chooses samples and cells, where there are many.
    """
    samples = rng.permutation(np.unique(codes))[:SAMPLES]
    pairs = []
    for sample in samples:
        cells = np.sort(rng.permutation(np.flatnonzero(codes == sample))[:CELLS])
        if len(cells) < 2 * MIN_CELLS:
            continue
        frame = without(int(sample))
        some = gather_rows(x, cells)
        mapped = map_sample(
            some,
            None if covariates is None else covariates[cells],
            frame,
            encode=partial(encode, some),
            variable=(some, np.arange(x.shape[1])),
            removal=Removal(),
        )
        group = _groups(frame.coordinates.mean)
        home = group[share[cells].argmax(axis=1)]
        withheld, left = [], []
        there = frame.coordinates.count >= MIN_CELLS
        for one in np.unique(home):
            is_known = home != one
            states = np.flatnonzero(there & (group != one))
            if min(is_known.sum(), (~is_known).sum()) >= MIN_CELLS and len(states):
                withheld.append(is_known)
                left.append(states)
        bridge = mapped.alignment.full
        near = averaging(some, bridge, frame, rng=rng)
        found = distances(some, bridge, mapped.bridged, frame=frame, near=near, among=left)
        pairs += list(zip(found, withheld, strict=True))
    return _fitted(pairs)._replace(single=len(samples) == 1)


def _fitted(pairs: list[tuple[np.ndarray, np.ndarray]]) -> MappingConfidence:
    """Fit log odds to how far cells are; in each pair known and unknown cells weigh the same."""
    if not pairs:
        return MappingConfidence.of_nothing()
    found = np.concatenate([far for far, _ in pairs])
    known = np.concatenate([is_known for _, is_known in pairs])
    weight = np.concatenate([np.where(k, 0.5 / k.sum(), 0.5 / (~k).sum()) for _, k in pairs])
    log = np.log(np.maximum(found[known], TINY))
    center, unit = log.mean(axis=0), np.maximum(log.std(axis=0), TINY)
    far = _far(found, center, unit)[:, None]
    model = LogisticRegression().fit(far, known, weight * len(known) / weight.sum())
    # What is farther cannot be better known.
    slope = min(float(model.coef_[0, 0]), 0.0)
    return MappingConfidence(center, unit, slope, float(model.intercept_[0]) if slope else 0.0)


def _far(distances: CellsByDistances, center: PerDistance, unit: PerDistance) -> PerCell:
    return np.logaddexp.reduce((np.log(np.maximum(distances, TINY)) - center) / unit, axis=1)


def averaging(
    x: Block, bridge: AffineBridge, frame: Frame, *, rng: np.random.Generator
) -> sparse.csr_matrix:
    """Return the matrix that averages over each cell's neighbors in the sample's components.

    Components of its own tell a type apart that those of the reference do not.

    Parameters
    ----------
    x, bridge, frame
        As for `distances`.
    rng
        Chooses the cells among which neighbors are sought, where there are many.
    """
    n = x.shape[0]
    one = np.zeros(n, dtype=np.intp)
    pool = np.sort(rng.permutation(n)[:POOL])
    n_near = min(NEIGHBORS, len(pool))
    if min(x.shape) < 3:
        return sparse.identity(n, format="csr")
    center = frame.profile.whole().mean
    some = np.sort(rng.permutation(n)[:SKETCH])
    components = Projection.fit(
        x[some], one[some], bridge, center=center, n_components=COMPONENTS, rng=rng
    )
    own = components.apply(x, one, bridge)
    found = NearestNeighbors(n_neighbors=n_near).fit(own[pool])
    near = pool[found.kneighbors(own, return_distance=False)]
    rows = np.repeat(np.arange(n), n_near)
    values = np.full(rows.size, 1 / n_near)
    return sparse.csr_matrix((values, (rows, near.ravel())), shape=(n, n))


def _from_centers(z: CellsByDims, frame: Frame, states: Positions) -> PerCell:
    """Return each cell's squared distance from the nearest center, in units of its variance."""
    coordinates = frame.coordinates
    variance, weight = coordinates.var(), coordinates.count / max(coordinates.count.sum(), TINY)
    variance = np.maximum(variance, np.maximum(MIN_VARIANCE * (weight @ variance), TINY))
    nearest = np.full(len(z), np.inf)
    for state in states:
        distance = (np.square(z - coordinates.mean[state]) / variance[state]).mean(axis=1)
        nearest = np.minimum(nearest, distance)
    return nearest


def _groups(centers: StatesByDims) -> StateCodes:
    """Group states that lie together, by Ward's method; a number for each."""
    if len(centers) <= 2:
        return np.arange(len(centers))
    return fcluster(linkage(centers, "ward"), min(GROUPS, len(centers)), "maxclust")
