"""Shifts within states by definition, in loops over samples and states; imports nothing of bioren.

Tables samples x states (x dims); squared errors are in units of the variance within states.
"""

import numpy as np


def state_shifts(count, mean, m2, effective, in_reference, prior=1):
    """Return what is removed, what lies apart, how usual each shift is, and the shifts."""
    n_samples, n_states, n_dims = mean.shape
    within = m2.sum(axis=0) / np.maximum(count.sum(axis=0), 1e-12)[:, None]
    there = count * np.asarray(in_reference)[:, None]
    trust = there / (count + prior)
    others = there.sum(axis=0) - there
    heard = trust.copy()
    shift = np.zeros((n_samples, n_states, n_dims))
    error2 = np.zeros((n_samples, n_states))
    turns = n_samples // 2  # so many samples are left out at most
    for turn in range(turns + 1):
        for k in range(n_states):
            part = heard[:, k] / max(heard[:, k].sum(), 1e-12)
            for s in range(n_samples):
                contrast = (np.arange(n_samples) == s) - part  # the shift is contrast @ mean
                shift[s, k] = contrast @ mean[:, k]
                error2[s, k] = (contrast**2 / np.maximum(1, effective[:, k])).sum()
        usual = how_usual(shift, within, count, error2, others)
        for k in range(n_states if turn < turns else 0):
            weight = heard[:, k]
            worth = weight.sum() ** 2 / max((weight**2).sum(), 1e-12)
            spare = min(1, max(0, worth - 2))
            unlike = [length2(shift[s, k], within[k]) for s in range(n_samples)]
            unlike = [weight[s] * (usual[s, k] < 0.01) * unlike[s] for s in range(n_samples)]
            far = int(np.argmax(unlike))
            if unlike[far] > 0:
                heard[far, k] = min(weight[far], trust[far, k] * (1 - spare))
    removed, apart = shrunken(shift, within, count, error2, usual, others, there.sum(axis=0), prior)
    return removed, apart, where_compared(usual, count, there.sum(axis=0)), shift


def shifts_onto(count, mean, effective, reference, prior=1):
    """Return the same of one sample onto a reference, ``(count, mean, m2)``; no axis of samples."""
    known, level, m2 = reference
    within = m2 / np.maximum(known, 1e-12)[:, None]
    shift = mean - level
    error2 = 1 / np.maximum(1, effective) + 1 / np.maximum(1, known)
    one = shift[None], within, count[None], error2[None]
    usual = how_usual(*one, known[None])
    removed, apart = shrunken(*one, usual, known[None], known, prior)
    return removed[0], apart[0], where_compared(usual[0], count, known), shift


def length2(shift, variance):
    return np.mean(shift**2 / np.maximum(variance, 1e-12))


def how_usual(shift, within, count, error2, others):
    """Compare each sample's shifts, in each state's own unit and in one for all states."""
    n_samples, n_states = count.shape
    size = count.sum(axis=0)
    unit = sum(size[k] * within[k] for k in range(n_states)) / size.sum()
    shared = count * others / (others + 10)
    usual = np.zeros((n_samples, n_states))
    for s in range(n_samples):
        for in_own in (True, False):
            square = [length2(shift[s, k], within[k] if in_own else unit) for k in range(n_states)]
            # Half of what the sample shares is in states whose shifts are no longer than this.
            median = min(
                q for q in square if 2 * shared[s, np.array(square) <= q].sum() >= shared[s].sum()
            )
            for k in range(n_states):
                error = error2[s, k]
                if not in_own:
                    error *= np.mean(within[k] / np.maximum(unit, 1e-12))
                most = 2 * (median + error)
                like = 1 if square[k] <= most else (most / square[k]) ** 8
                usual[s, k] = max(usual[s, k], like)
    return usual


def where_compared(usual, count, there):
    """Nothing is unusual where the sample or the reference has no cell."""
    return 1 - (1 - usual) * np.minimum(1, there) * np.minimum(1, count)


def shrunken(shift, within, count, error2, usual, others, there, prior):
    """Shrink each sample's shifts as far as their own errors explain them."""
    n_samples, n_states, n_dims = shift.shape
    removed, apart = np.zeros((2, *shift.shape))
    for s in range(n_samples):
        # What stands apart, or cannot be compared, tells nothing of the batch effect's size.
        weight = usual[s] * count[s] / (count[s] + 10) * np.minimum(1, others[s])
        weight = weight / max(weight.sum(), 1e-12)
        excess = [length2(shift[s, k], within[k]) - error2[s, k] for k in range(n_states)]
        # A mean over dimensions of squared normal errors has the variance 2 / n_dims.
        uncertain = np.sqrt(2 / n_dims * ((weight * error2[s]) ** 2).sum())
        signal = max(0, weight @ excess - 2 * uncertain)
        for k in range(n_states):
            cells, known = count[s, k], min(1, there[k])
            certain = signal / max(signal + error2[s, k], 1e-12)
            batch = certain * usual[s, k] * cells / (cells + prior)
            removed[s, k] = shift[s, k] * batch * known
            apart[s, k] = shift[s, k] * (1 - usual[s, k]) * cells / (cells + 10) * known
    return removed, apart
