"""Samples compared gene by gene where values are missing; imports nothing of bioren."""

import numpy as np

PRIOR = 10


def plain_bridge(x, codes, in_reference, r_max=2.0):
    """Return corrected values, r, d and their errors, all samples weighing the same.

    Plain moments are compared; what a sample or the reference has not measured stays.
    """
    n_samples, n_genes = codes.max() + 1, x.shape[1]
    r, d = np.ones((n_samples, n_genes)), np.zeros((n_samples, n_genes))
    error = np.full((n_samples, n_genes), np.inf)
    level, spread = np.zeros(n_genes), np.ones(n_genes)
    for g in range(n_genes):
        parts = {s: x[(codes == s) & ~np.isnan(x[:, g]), g] for s in range(n_samples)}
        parts = {s: part for s, part in parts.items() if len(part)}
        there = [s for s in parts if in_reference[s]]
        if not there or len(parts) < 2:
            continue
        weight = {s: len(parts[s]) / (len(parts[s]) + PRIOR) for s in there}
        share = {s: weight.get(s, 0) / sum(weight.values()) for s in parts}
        level[g] = np.mean([parts[s].mean() for s in there])
        within = sum(share[s] * parts[s].var() for s in there)
        spread[g] = np.sqrt(within)
        for s, part in parts.items():
            n, others = len(part), sum(len(parts[o]) for o in there if o != s)
            r[s, g] = np.sqrt((n * part.var() + PRIOR * within) / (n + PRIOR) / within)
            d[s, g] = (part.mean() - level[g]) / spread[g]
            moves = 1 - (s in there) / len(there)  # the reference moves along with its samples
            error[s, g] = moves * np.sqrt(1 / n + (1 / others if others else 0))
    out = x.copy()
    for s in range(n_samples):
        known = np.isfinite(error[s])
        tau2 = max(0, np.mean(d[s, known] ** 2 - error[s, known] ** 2))
        trust = np.array([tau2 / (tau2 + e**2) if tau2 + e > 0 else 1 for e in error[s]])
        scale = 1 / np.clip(r[s] ** trust, 1 / r_max, r_max)
        start = level + spread * (d[s] - d[s] * (1 - trust) / scale)  # goes to the level
        moved = level + scale * (x[codes == s] - start)
        out[codes == s] = np.where(known, moved, x[codes == s])
    return out, r, d, *final_errors(out, codes, in_reference, r, d, error, level, spread)


def final_errors(out, codes, in_reference, r, d, error, level, spread):
    """Return errors of r and d that count how much squared deviations vary."""
    error_r, error_d = np.full(r.shape, np.inf), np.full(r.shape, np.inf)
    for g in range(out.shape[1]):
        square = (out[~np.isnan(out[:, g]), g] - level[g]) ** 2
        n = [(~np.isnan(out[codes == s, g])).sum() for s in range(len(r))]
        known = [s for s in range(len(r)) if np.isfinite(error[s, g])]
        for s in known:
            varies = np.mean((square - spread[g] ** 2) ** 2) / np.mean(square) ** 2 / 4
            of_unit = varies / sum(n[o] for o in range(len(r)) if in_reference[o])
            error_d[s, g] = np.sqrt(error[s, g] ** 2 + d[s, g] ** 2 * of_unit)
            error_r[s, g] = r[s, g] * np.sqrt(varies / n[s] + of_unit)
    return error_r, error_d


def shifts(x, codes, share, in_reference):
    """Return the samples' shifts by weighted least squares on samples and states, gene by gene.

    Every gene has to tie all samples together.
    """
    n_samples, n_states, n_genes = codes.max() + 1, share.shape[1], x.shape[1]
    found = np.zeros((n_samples, n_genes))
    for g in range(n_genes):
        measured = ~np.isnan(x[:, g])
        n = np.zeros((n_samples, n_states))
        mean = np.zeros((n_samples, n_states))
        for s in range(n_samples):
            for k in range(n_states):
                weights = share[:, k] * measured * (codes == s)
                n[s, k] = weights.sum()
                mean[s, k] = (weights * np.where(measured, x[:, g], 0)).sum() / max(n[s, k], 1e-12)
        compositions = [n[s] / n[s].sum() for s in range(n_samples) if in_reference[s]]
        weight = np.mean(compositions, axis=0) * n / (n + PRIOR)
        rows, values = [], []
        for s in range(n_samples):
            for k in range(n_states):
                row = np.concatenate([np.arange(n_samples) == s, np.arange(n_states) == k])
                rows.append(np.sqrt(weight[s, k]) * row)
                values.append(np.sqrt(weight[s, k]) * mean[s, k])
        shift = np.linalg.lstsq(np.array(rows), np.array(values), rcond=1e-10)[0][:n_samples]
        found[:, g] = shift - shift[in_reference].mean()
    return found
