"""Moments, cell by cell in float64 loops; imports nothing of bioren."""

import numpy as np


def moments(x, weights=None):
    """Return (count, mean, sum of squared deviations) of the rows of dense x, per column."""
    x = np.asarray(x, dtype=np.float64)
    weights = np.ones(len(x)) if weights is None else np.asarray(weights, dtype=np.float64)
    count, mean, m2 = 0.0, np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for row, weight in zip(x, weights, strict=True):
        count += weight
        mean += weight * row
    mean = mean / count if count > 0 else mean
    for row, weight in zip(x, weights, strict=True):
        m2 += weight * (row - mean) ** 2
    return count, mean, m2


def by_group(x, codes, n_groups, weights):
    """Return tables (groups x states), (groups x states x genes) twice."""
    n_states, n_genes = weights.shape[1], x.shape[1]
    count = np.zeros((n_groups, n_states))
    mean, m2 = np.zeros((2, n_groups, n_states, n_genes))
    for group in range(n_groups):
        cells = codes == group
        for state in range(n_states):
            count[group, state], mean[group, state], m2[group, state] = moments(
                x[cells], weights[cells, state]
            )
    return count, mean, m2
