"""Batch and sample renormalization in plain NumPy, float64; imports nothing of bioren."""

import numpy as np


def batch_renorm(x, mean, var, weight, bias, *, r_max, d_max, eps, momentum):
    """Return (y, (r, d), new mean, new var) for x of shape (N, C) or (N, C, L)."""
    rows = np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])
    mean_b = rows.mean(axis=0)
    var_b = ((rows - mean_b) ** 2).mean(axis=0)
    std_b, std = np.sqrt(var_b + eps), np.sqrt(var + eps)
    r = np.clip(std_b / std, 1 / r_max, r_max)
    d = np.clip((mean_b - mean) / std, -d_max, d_max)
    y = ((rows - mean_b) / std_b * r + d) * weight + bias
    new_mean = (1 - momentum) * mean + momentum * mean_b
    new_var = (1 - momentum) * var + momentum * rows.var(axis=0, ddof=1)
    moved = x.shape[:1] + x.shape[2:] + x.shape[1:2]
    return np.moveaxis(y.reshape(moved), -1, 1), (r, d), new_mean, new_var


def batch_renorm_gradients(x, dy, r, d, weight, *, eps):
    """Return gradients of sum(y * dy) by x, weight and bias with (r, d) held fixed; x is (N, C)."""
    mean_b, std_b = x.mean(axis=0), np.sqrt(x.var(axis=0) + eps)
    z = (x - mean_b) / std_b
    dz = dy * weight * r
    dx = (dz - dz.mean(axis=0) - z * (dz * z).mean(axis=0)) / std_b
    return dx, (dy * (z * r + d)).sum(axis=0), dy.sum(axis=0)


def kept(r, d, max_kept, strength):
    """Return what stays of (r, d): d linear in the strength, r linear in its logarithm."""
    r_most, d_most = np.clip(r, 1 / max_kept[0], max_kept[0]), np.clip(d, -max_kept[1], max_kept[1])
    log_kept = np.log(r) - strength * (np.log(r) - np.log(r_most))
    return np.exp(log_kept), d - strength * (d - d_most)


def sample_renorm_eval(x, sample, means, variances, mean, var, *, max_kept, strength, eps):
    """Normalize cell by cell from the moments of samples and population."""
    y = np.empty_like(x)
    for cell, s in enumerate(sample):
        std_s, std = np.sqrt(variances[s] + eps), np.sqrt(var + eps)
        r, d = kept(std_s / std, (means[s] - mean) / std, max_kept, strength)
        y[cell] = r * (x[cell] - means[s]) / std_s + d
    return y


def sample_renorm_train(
    x, sample, means, variances, mean, var, *, r_max, d_max, max_kept, strength, eps
):
    """Normalize each sample's cells by their own moments; all samples have been seen before."""
    y = np.empty_like(x)
    for s in np.unique(sample):
        cells = x[sample == s]
        std_s, std = np.sqrt(variances[s] + eps), np.sqrt(var + eps)
        if len(cells) == 1:
            z = (cells - means[s]) / std_s
        else:
            mean_b, std_b = cells.mean(axis=0), np.sqrt(cells.var(axis=0) + eps)
            r = np.clip(std_b / std_s, 1 / r_max, r_max)
            d = np.clip((mean_b - means[s]) / std_s, -d_max, d_max)
            z = (cells - mean_b) / std_b * r + d
        r, d = kept(std_s / std, (means[s] - mean) / std, max_kept, strength)
        y[sample == s] = r * z + d
    return y
