"""The constants of the method, each with its reason; docs/theory.md shows them in one table.

Those of the search for states are the defaults of `bioren.effects.clusters.StateOptions`.  What
halving and doubling them changes is measured by ``benchmarks/integration/constants.py``.
"""

from __future__ import annotations

#: One state per so many cells, enough for a mean and a variance of each gene ...
CELLS_PER_STATE = 30

#: ... and no more states than this, so that tables by sample, state and gene stay small.
MAX_STATES = 100

#: What is known of the reference counts as so many cells where a sample's few are compared: in a
#: state with so many, a sample weighs half; a sample of so many has its variance shrunk half-way.
PRIOR_CELLS = 10.0

#: What lies within so many standard errors counts as chance.
STANDARD_ERRORS = 2.0

#: A shift is distrusted whose square exceeds the median of the sample's, and its own error, so many
#: times: by the excess to the power of `STEEPNESS`, so that little is between trust and distrust.
OUTLYING = 2.0
STEEPNESS = 8.0

#: A sample is left out of the reference's mean of a state if its shift has a lower inlier weight:
#: one in doubt would look the farther, the less it counted in the mean.
CLEARLY = 0.01

#: A sample that overlaps less with the others, by states, is not compared with them.
MIN_OVERLAP = 0.05

#: A sample that overlaps less with the others before correction has its plain moments matched.
ISOLATED = 0.1

#: By default no gene is rescaled by more; a larger ratio says more about dropout than about scale.
MAX_RATIO = 2.0

#: Of a gene's variance in all states, the least that counts in one of them, where the gene may be
#: silent, when it is asked what a sample's scale acts on.
SILENT = 0.1
