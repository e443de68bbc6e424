"""Expression with a known structure, and networks at their start, for tests of the autoencoder."""

import numpy as np
import torch
from scipy import sparse

from bioren import Moments
from bioren.arrays.components import Projection
from bioren.bridge import AffineBridge
from bioren.network.bridge_network import BridgeNetwork
from bioren.network.training import TrainingOptions

QUICK = TrainingOptions(
    probe=0, max_epochs=3, batch_size=32, accelerator="cpu", precision="32-true", progress=False
)


def expression(seed=0, *, n_cells=200, n_genes=16, n_samples=3, curved=True):
    """Return float32 CSR expression on a bent surface, and the samples' codes."""
    rng = np.random.default_rng(seed)
    u = rng.uniform(-2, 2, (n_cells, 2))
    u = np.column_stack([u, u**2, u[:, :1] * u[:, 1:]]) if curved else u
    x = u @ rng.normal(size=(u.shape[1], n_genes)) + rng.normal(0, 0.1, (n_cells, n_genes))
    codes = rng.integers(0, n_samples, n_cells)
    x = (
        x * rng.uniform(0.7, 1.4, (n_samples, n_genes))[codes]
        + rng.normal(0, 1, (n_samples, n_genes))[codes]
    )
    x[np.abs(x) < 0.3] = 0
    return sparse.csr_matrix(x.astype(np.float32)), codes


def started(x, codes, *, n_latent=3, n_hidden=24, in_reference=None, seed=0):
    """Return a network at its start and the explicit, centered, bridged expression (float64)."""
    n_samples = int(codes.max()) + 1
    samples = Moments.by_group(x, codes, n_samples)
    reference = Moments.of(x)
    bridges = AffineBridge.between(samples, reference)
    rng = np.random.default_rng(seed)
    projection = Projection.fit(
        x, codes, bridges, center=reference.mean, n_components=n_latent, rng=rng
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = BridgeNetwork(x.shape[1], n_samples, n_latent, n_hidden)
    network.start_from(samples, reference, projection.loadings, in_reference=in_reference)
    bridged = bridges.scale[codes] * x.toarray() + bridges.shift[codes]
    return network, bridged - reference.mean, projection.loadings
