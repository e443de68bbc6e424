"""Fitting the autoencoder: minibatches, early stopping on held-out cells, history.

Devices and mixed precision are Lightning Fabric's work, the progress bar tqdm's.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import lightning_fabric
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bioren.arrays.blocks import Block, as_block, to_dense
from bioren.arrays.components import Projection
from bioren.arrays.moments import Moments
from bioren.arrays.shapes import (
    BoolPerSample,
    CellsByDims,
    CellsByGenes,
    Positions,
    SampleCodes,
)
from bioren.bridge import AffineBridge
from bioren.network.bridge_network import BridgeNetwork

__all__ = [
    "NO_TRAINING",
    "Epoch",
    "TrainingOptions",
    "decode",
    "embed",
    "embed_bridged",
    "fit_network",
    "split",
    "train",
]

#: Cells per step where nothing is learned.
LARGE_BATCH = 4096


class TrainingOptions(NamedTuple):
    """How the autoencoder is fitted.

    Attributes
    ----------
    max_epochs
        At most so many passes over the training cells; 0 leaves the principal components.
    max_steps
        No epoch begins after so many minibatches, so that large data are seen fewer times.
    patience
        Stop after so many epochs without a better result on the held-out cells.
    probe
        Share of the epochs after which training goes on only if it was of use so far: if held-out
        cells are described better than by the principal components, by more than two standard
        errors.  Else the components stay.  0 trains on in any case; nor is it asked where
        `patience` ends the training before.
    batch_size
        Cells per step.
    learning_rate, weight_decay
        Of AdamW.
    held_out
        Share of the cells that is not trained on and decides when to stop.
    accelerator
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"``: handed to Lightning Fabric.
    precision
        ``"32-true"``, ``"bf16-mixed"``, ...: handed to Lightning Fabric; ``"auto"`` is mixed on
        CUDA and single elsewhere.
    progress
        Whether to show a progress bar, with the loss and the time left.
    """

    max_epochs: int = 40
    max_steps: int = 2000
    patience: int = 8
    probe: float = 0.1
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    held_out: float = 0.1
    accelerator: str = "auto"
    precision: str = "auto"
    progress: bool = True


#: Leaves the principal components.
NO_TRAINING = TrainingOptions(max_epochs=0)


class Epoch(NamedTuple):
    """One line of the training history.

    Attributes
    ----------
    epoch
        Number of passes over the training cells; 0 is the start, the principal components.
    training, held_out
        Mean reconstruction error per cell, in shares of the total variance; at the start of some
        of the training cells, as many as are held out.
    kept
        Whether the network was left as it was after this epoch.
    """

    epoch: int
    training: float
    held_out: float
    kept: bool = False


def fit_network(
    x: Block,
    codes: SampleCodes,
    samples: Moments,
    *,
    reference: Moments,
    sizes: tuple[int, int],
    in_reference: BoolPerSample | None,
    options: TrainingOptions,
    rng: np.random.Generator,
) -> tuple[BridgeNetwork, list[Epoch]]:
    """Train a network from the principal components of all cells.

    They have seen the held-out cells, of which training learns nothing: it has to make up for that.

    Parameters
    ----------
    x, codes
        As for `train`.
    samples, reference
        Moments between which the bridge leads, groups ``(samples,)`` and ``()``.
    sizes
        Dimensions of the embedding, at most, and width of the hidden layers.
    in_reference
        Which samples make up the reference, boolean of shape ``(samples,)``; None: all.
    options
        See `TrainingOptions`.
    rng
        Source of randomness.

    Returns
    -------
    network
        As it was in its best epoch, which may be the start.
    history
        See `train`.
    """
    most, n_hidden = sizes
    bridges = AffineBridge.between(samples, reference)

    start = Projection.fit(
        x, codes, bridges, center=reference.mean, n_components=most, rng=rng
    ).loadings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        network = BridgeNetwork(len(start), len(samples.count), start.shape[1], n_hidden)
    network.start_from(samples, reference, start, in_reference=in_reference)
    cells = split(len(codes), options.held_out, rng)
    return network, train(network, x, codes, cells=cells, options=options, rng=rng)


def split(n_cells: int, held_out: float, rng: np.random.Generator) -> tuple[Positions, Positions]:
    """Return the positions of training cells and of held-out cells (at least one of each)."""
    order = rng.permutation(n_cells)
    n_held_out = min(max(1, round(held_out * n_cells)), n_cells - 1)
    return np.sort(order[n_held_out:]), np.sort(order[:n_held_out])


def train(
    network: BridgeNetwork,
    x: Block,
    codes: SampleCodes,
    *,
    cells: tuple[Positions, Positions],
    options: TrainingOptions,
    rng: np.random.Generator,
) -> list[Epoch]:
    """Fit the network and leave it as it was in its best epoch, which may be the start.

    Parameters
    ----------
    network
        At its start (`BridgeNetwork.start_from`); changed in place.
    x
        Expression of all cells, shape ``(cells, genes)``; only minibatches are made dense.
    codes
        Sample of each cell.
    cells
        Positions of training and of held-out cells.
    options
        See `TrainingOptions`.
    rng
        Orders the cells anew in each epoch.

    Returns
    -------
    list of Epoch
        One per epoch, the start included.

    Raises
    ------
    FloatingPointError
        The loss is not finite.
    """
    training, held_out = cells
    steps = math.ceil(len(training) / options.batch_size)
    max_epochs = min(options.max_epochs, math.ceil(options.max_steps / steps))
    fabric = _fabric(options)
    model, optimizer = fabric.setup(network, _optimizer(network, options))

    def errors(positions: Positions) -> Tensor:
        network.eval()
        with torch.no_grad():
            batches = _minibatches(x, codes, positions, size=LARGE_BATCH, device=fabric.device)
            return torch.cat([model(*batch).double().cpu() for batch in batches])

    some = np.sort(rng.permutation(training)[: len(held_out)])
    at_start = errors(held_out)
    history = [Epoch(0, float(errors(some).mean()), float(at_start.mean()))]
    best, best_state = history[0], copy.deepcopy(network.state_dict())
    start, start_state = best, best_state
    probed = math.ceil(options.probe * max_epochs)
    silent = not options.progress or max_epochs == 0
    with tqdm(total=max_epochs, desc="training", unit="epoch", disable=silent) as bar:
        for epoch in range(1, max_epochs + 1):
            network.train()
            losses = []
            order = rng.permutation(training)
            for batch in _minibatches(
                x, codes, order, size=options.batch_size, device=fabric.device
            ):
                loss = model(*batch).mean()
                optimizer.zero_grad()
                fabric.backward(loss)
                optimizer.step()
                losses.append(loss.detach())
            now = errors(held_out)
            history.append(Epoch(epoch, float(torch.stack(losses).mean()), float(now.mean())))
            if not np.isfinite(history[-1]).all():
                raise FloatingPointError(f"Training diverged: {history[-1]}.")
            bar.set_postfix(loss=f"{history[-1].held_out:.4f}", refresh=False)
            bar.update()
            if history[-1].held_out < best.held_out:
                best, best_state = history[-1], copy.deepcopy(network.state_dict())
            elif epoch - best.epoch >= options.patience:
                bar.total = epoch  # stopped early, and done
                break
            if epoch == probed and not _is_gain(at_start - now):
                bar.total, best, best_state = epoch, start, start_state
                break
    history[best.epoch] = best._replace(kept=True)
    network.load_state_dict(best_state)
    network.eval()
    return history


def _is_gain(gains: Tensor) -> bool:
    """Return whether gains, one per held-out cell, are more than chance on average."""
    if len(gains) < 2:
        return float(gains.sum()) > 0
    return float(gains.mean()) > 2 * float(gains.std()) / math.sqrt(len(gains))


def embed(network: BridgeNetwork, x: Block, codes: SampleCodes) -> CellsByDims:
    """Return the embedding of all cells before the bridge per state, float32."""
    device = network.center.device
    everything = np.arange(x.shape[0])
    network.eval()
    with torch.no_grad():
        parts = [
            network.encode(*batch).float().cpu().numpy()
            for batch in _minibatches(x, codes, everything, size=LARGE_BATCH, device=device)
        ]
    return np.concatenate(parts)


def embed_bridged(network: BridgeNetwork, blocks: Iterable[np.ndarray]) -> CellsByDims:
    """Return the embedding of cells that are on the reference's scale already, float32.

    Parameters
    ----------
    network
        Trained.
    blocks
        Their expression, dense, some cells at a time.
    """
    device = network.center.device
    network.eval()
    with torch.no_grad():
        parts = [
            network.encode_bridged(torch.from_numpy(block.astype(np.float32)).to(device))
            .cpu()
            .numpy()
            for block in blocks
        ]
    return np.concatenate(parts)


def decode(network: BridgeNetwork, z: CellsByDims) -> CellsByGenes:
    """Return expression as if measured in the reference population, float32, cells x genes."""
    device = network.center.device
    network.eval()
    with torch.no_grad():
        parts = [
            network.decode(torch.from_numpy(z[start : start + LARGE_BATCH]).to(device))
            .cpu()
            .numpy()
            for start in range(0, len(z), LARGE_BATCH)
        ]
    return np.concatenate(parts)


def _fabric(options: TrainingOptions) -> lightning_fabric.Fabric:
    precision = options.precision
    if precision == "auto":
        on_cuda = options.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        precision = "bf16-mixed" if on_cuda else "32-true"
    # Fabric announces devices and precision as it starts; the caller chose them.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    return lightning_fabric.Fabric(
        accelerator=options.accelerator,
        devices=1,
        precision=precision,  # type: ignore[arg-type]
    )


def _optimizer(network: BridgeNetwork, options: TrainingOptions) -> torch.optim.Optimizer:
    """Return AdamW over what is learned beside the principal components, which stay."""
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(learned, lr=options.learning_rate, weight_decay=options.weight_decay)


def _minibatches(
    x: Block, codes: SampleCodes, positions: Positions, *, size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield expression, dense and float32, and sample of some cells at a time."""
    for start in range(0, len(positions), size):
        cells = positions[start : start + size]
        dense = to_dense(as_block(x[cells])).astype(np.float32, copy=False)
        yield torch.from_numpy(dense).to(device), torch.from_numpy(codes[cells]).to(device)
