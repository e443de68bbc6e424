"""The network: an encoder that never hears of samples, a decoder that knows them by bridges.

Expression enters through the bridge of each cell's sample, a scale and a shift per gene, exact and
composition-standardized, to the reference population's scale: what `bioren.nn.SampleRenorm1d` does
in evaluation.  Encoder and decoder are the principal components of what comes out, plus a
non-linear part that starts as zero: training can only add to the components, and is kept only where
it helps on cells held out.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from bioren.arrays.moments import Moments
from bioren.arrays.shapes import BoolPerSample, GenesByDims
from bioren.bridge import AffineBridge
from bioren.nn import BatchRenorm1d, LinearLimits

__all__ = ["BridgeNetwork", "LearnedBridge"]

#: Batch Renormalization's warm-up, in minibatches: a fit here takes hundreds to thousands of
#: steps, where the paper's schedule expects tens of thousands.
LIMITS = LinearLimits(start=20, r_end=200, d_end=120, r_max=3.0, d_max=5.0)

#: Size of the first steps of the embedding's non-linear part, in shares of the total spread.
LATENT_STEP = 0.1


class BridgeNetwork(nn.Module):
    """Autoencoder of expression measured in several samples.

    Inside, expression and embedding are divided by the root of the total variance.

    Parameters
    ----------
    n_genes, n_samples
        Numbers of genes and of samples.
    n_latent
        Dimensions of the embedding.
    n_hidden
        Width of the hidden layers of encoder and decoder.
    """

    input_scale: Tensor
    input_shift: Tensor
    center: Tensor
    spread: Tensor
    components: Tensor

    def __init__(self, n_genes: int, n_samples: int, n_latent: int, n_hidden: int) -> None:
        super().__init__()
        # A typical gene's spread: first steps of this size neither drown nor blow up any gene.
        self.gene_step = n_genes**-0.5
        self.register_buffer("input_scale", torch.ones(n_samples, n_genes))
        self.register_buffer("input_shift", torch.zeros(n_samples, n_genes))
        self.register_buffer("center", torch.zeros(n_genes))
        self.register_buffer("spread", torch.ones(()))
        self.register_buffer("components", torch.zeros(n_genes, n_latent))

        self.encoder = nn.Sequential(*_hidden(n_genes, n_hidden), nn.Linear(n_hidden, n_latent))
        self.decoder_hidden = nn.Sequential(*_hidden(n_latent, n_hidden))
        self.decoder_output = nn.Linear(n_hidden, n_genes)
        self.hidden_bridge = LearnedBridge(n_hidden, n_samples)
        self.output_bridge = LearnedBridge(n_genes, n_samples, self.gene_step)

    @torch.no_grad()
    def start_from(
        self,
        samples: Moments,
        reference: Moments,
        components: GenesByDims,
        *,
        in_reference: BoolPerSample | None = None,
    ) -> None:
        """Load the bridge and begin as the principal components of bridged expression.

        Parameters
        ----------
        samples, reference
            Moments between which the bridge leads, groups ``(samples,)`` and ``()``.
        components
            Orthonormal columns, shape ``(genes, latent)``.
        in_reference
            Which samples make up the reference, boolean of shape ``(samples,)``; None: all.
        """
        bridges = AffineBridge.between(samples, reference)
        self.input_scale.copy_(torch.as_tensor(bridges.scale))
        self.input_shift.copy_(torch.as_tensor(bridges.shift))
        self.center.copy_(torch.as_tensor(reference.mean))
        total = float(reference.var().sum())
        self.spread.fill_(total**0.5 or 1.0)
        self.components.copy_(torch.as_tensor(components))
        for last in (self.encoder[-1], self.decoder_output):
            nn.init.zeros_(cast(nn.Linear, last).weight)
            nn.init.zeros_(cast(nn.Linear, last).bias)
        for bridge in (self.hidden_bridge, self.output_bridge):
            bridge.set_reference(in_reference)

    def encode(self, x: Tensor, sample: Tensor) -> Tensor:
        """Return the embedding, shape ``(cells, latent)``, of cells x genes `x`."""
        return self.spread * self._encode(self._scaled(x, sample))

    def encode_bridged(self, x: Tensor) -> Tensor:
        """Return the embedding of expression that is on the reference's scale already."""
        return self.spread * self._encode((x - self.center) / self.spread)

    def decode(self, z: Tensor, sample: Tensor | None = None) -> Tensor:
        """Return expression on the reference's scale, shape ``(cells, genes)``.

        With `sample`, with what the network learned to differ in that sample; without, as if
        measured in the reference population.
        """
        return self.center + self.spread * self._decode(z / self.spread, sample)

    def forward(self, x: Tensor, sample: Tensor) -> Tensor:
        """Return each cell's squared reconstruction error, in shares of the total variance."""
        standard = self._scaled(x, sample)
        rebuilt = self._decode(self._encode(standard), sample)
        return (rebuilt - standard).square().sum(dim=1)

    def _scaled(self, x: Tensor, sample: Tensor) -> Tensor:
        bridge = AffineBridge(self.input_scale[sample], self.input_shift[sample])
        return (bridge.apply(x) - self.center) / self.spread

    def _encode(self, standard: Tensor) -> Tensor:
        linear = standard @ self.components
        if not self.training and not cast(nn.Linear, self.encoder[-1]).weight.any():
            return linear  # training did not help, and left the start
        rest = self.encoder(standard / self.gene_step)
        return linear + LATENT_STEP * rest

    def _decode(self, z: Tensor, sample: Tensor | None) -> Tensor:
        hidden = self.hidden_bridge(self.decoder_hidden(z), sample)
        output = z @ self.components.T + self.gene_step * self.decoder_output(hidden)
        return cast(Tensor, self.output_bridge(output, sample))


class LearnedBridge(nn.Module):
    """An affine map per sample, learned: ``r * x + d``, the identity at first.

    ``log r`` and ``d`` are 0 on average over the samples that make up the reference, so that
    leaving the bridge out is decoding in the reference population.

    Parameters
    ----------
    num_features, num_samples
        Numbers of features and samples.
    step
        Unit of ``d``.
    """

    reference: Tensor

    def __init__(self, num_features: int, num_samples: int, step: float = 1.0) -> None:
        super().__init__()
        self.step = step
        self.log_r = nn.Parameter(torch.zeros(num_samples, num_features))
        self.d = nn.Parameter(torch.zeros(num_samples, num_features))
        self.register_buffer("reference", torch.full((num_samples,), 1 / num_samples))

    @torch.no_grad()
    def set_reference(self, in_reference: BoolPerSample | None) -> None:
        """Choose the samples on whose average the map is the identity; None: all."""
        if in_reference is None:
            in_reference = np.ones(len(self.reference), dtype=bool)
        share = torch.as_tensor(in_reference, dtype=self.reference.dtype)
        self.reference.copy_(share / share.sum())

    def forward(self, x: Tensor, sample: Tensor | None) -> Tensor:
        """Carry `x`, cells x features, to the scale of each cell's sample (None: leave it)."""
        if sample is None:
            return x
        log_r = self.log_r - self.reference @ self.log_r
        d = self.step * (self.d - self.reference @ self.d)
        bridge = AffineBridge(log_r[sample].exp(), d[sample])
        return bridge.apply(x.to(self.d.dtype))  # x may be half under autocast


def _hidden(n_in: int, n_out: int) -> tuple[nn.Module, ...]:
    return nn.Linear(n_in, n_out), BatchRenorm1d(n_out, limits=LIMITS, initial="unit"), nn.GELU()
