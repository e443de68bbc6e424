"""Several ranks against one process that has all their rows."""

import copy
import inspect

import pytest
import torch
from nn.ranks import on_ranks
from torch import nn
from torch.utils.checkpoint import checkpoint

from bioren.nn import (
    BatchRenorm1d,
    BatchRenorm2d,
    LinearLimits,
    SyncBatchRenorm,
    convert_batchnorm,
    convert_sync,
)

LIMITS = LinearLimits(start=1, r_end=3, d_end=3, r_max=1.5, d_max=0.5)
PARTS = {"equal": (4, 4, 4), "unequal": (1, 6, 3), "an empty rank": (5, 0, 2)}
SHAPES = {"rows": (3,), "maps": (3, 2, 2)}
OPTIONS = {
    "usual": {},
    "debiased": {"initial": "debiased", "momentum": None},
    "deviations": {"moving": "std", "initial": "first_batch"},
    "learned": {"mixing": "learned"},
}


def batches(shape, steps=4, rows=12):
    generator = torch.Generator().manual_seed(0)
    kind = {"generator": generator, "dtype": torch.float64}
    return [
        (torch.randn(rows, *shape, **kind) * (2 + k) + k, torch.randn(rows, *shape, **kind))
        for k in range(steps)
    ]


def train(layer, data):
    """Return outputs, input gradients, parameter gradients, and the state at the end."""
    outputs, gradients = [], []
    for x, dy in data:
        x = x.clone().requires_grad_()
        y = layer(x)
        (y * dy).sum().backward()
        outputs.append(y.detach())
        gradients.append(x.grad)
    return outputs, gradients, [p.grad for p in layer.parameters()], layer.state_dict()


def on_rank(rank, layers, splits):
    found = {}
    for key, (layer, data) in layers.items():
        sizes = splits[key]
        start = sum(sizes[:rank])
        mine = [(x[start : start + sizes[rank]], dy[start : start + sizes[rank]]) for x, dy in data]
        found[key] = train(copy.deepcopy(layer), mine)  # processes share tensors they are given
    return found


@pytest.fixture(scope="module")
def cases():
    """Layers, their data and how ranks share it, by name."""
    found = {}
    for shape_name, shape in SHAPES.items():
        for option_name, options in OPTIONS.items():
            for part_name, sizes in PARTS.items():
                layer = SyncBatchRenorm(3, limits=LIMITS, dtype=torch.float64, **options)
                data = batches(shape, rows=sum(sizes))
                found[shape_name, option_name, part_name] = (layer, data, sizes)
    return found


@pytest.fixture(scope="module")
def found(cases):
    layers = {key: (layer, data) for key, (layer, data, _) in cases.items()}
    return on_ranks(3, on_rank, layers, {key: sizes for key, (_, _, sizes) in cases.items()})


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_ranks_together_are_one_process(cases, found, shape, option, part):
    key = shape, option, part
    layer, data, _ = cases[key]
    alone = train(copy.deepcopy(layer), data)
    ranks = [rank[key] for rank in found]
    for whole, *parts in zip(alone[0], *(rank[0] for rank in ranks), strict=True):
        torch.testing.assert_close(torch.cat(parts), whole)
    for whole, *parts in zip(alone[1], *(rank[1] for rank in ranks), strict=True):
        torch.testing.assert_close(torch.cat(parts), whole)
    for whole, *parts in zip(alone[2], *(rank[2] for rank in ranks), strict=True):
        torch.testing.assert_close(torch.stack(parts).sum(0), whole)
    for rank in ranks:
        torch.testing.assert_close(rank[3], alone[3])


def masked_and_checkpointed(rank, layer, x, mask):
    mine = slice(4 * rank, 4 * rank + 4)
    twin = copy.deepcopy(layer)
    layer = copy.deepcopy(layer)  # processes share tensors they are given
    masked = copy.deepcopy(layer)(x[mine], mask[mine]).detach()
    plain = train(copy.deepcopy(layer), [(x[mine], x[mine])])
    leaf = x[mine].clone().requires_grad_()
    checkpoint(twin, leaf, use_reentrant=False).mul(x[mine]).sum().backward()
    return masked, plain[1][0], leaf.grad, plain[3], twin.state_dict()


def test_masks_and_checkpoints_over_ranks():
    layer = SyncBatchRenorm(3, limits=(2.0, 1.0), momentum=0.3, dtype=torch.float64)
    x, _ = batches((3,), rows=8)[2]
    mask = torch.tensor([1.0, 0, 1, 1, 0, 2, 1, 0])
    ranks = on_ranks(2, masked_and_checkpointed, layer, x, mask)
    expected = copy.deepcopy(layer)(x, mask)
    torch.testing.assert_close(torch.cat([rank[0] for rank in ranks]), expected)
    for _, plain, again, state, state_again in ranks:
        torch.testing.assert_close(again, plain)
        torch.testing.assert_close(state_again, state)


def masked_with_an_empty_rank(rank, layer, x, mask):
    mine = slice(0, 8) if rank == 0 else slice(8, 8)
    layer, leaf = copy.deepcopy(layer), x[mine].clone().requires_grad_()
    layer(leaf, mask[mine]).pow(3).sum().backward()
    return leaf.grad, layer.weight.grad, layer.running_mean


def test_a_mask_on_a_rank_without_rows():
    layer = SyncBatchRenorm(3, limits=(2.0, 1.0), momentum=0.3, dtype=torch.float64)
    x, mask = torch.randn(8, 3, dtype=torch.float64), torch.rand(8)
    ranks = on_ranks(2, masked_with_an_empty_rank, layer, x, mask)
    leaf = x.clone().requires_grad_()
    layer(leaf, mask).pow(3).sum().backward()
    torch.testing.assert_close(torch.cat([rank[0] for rank in ranks]), leaf.grad)
    torch.testing.assert_close(ranks[0][1] + ranks[1][1], layer.weight.grad)
    torch.testing.assert_close(ranks[1][2], layer.running_mean)


def under_ddp(rank, model, x):
    """Return both running means after two steps, as DDP leaves them: copied, and not."""
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    # Its name changed in torch 2.13.
    option = next(n for n in ("forward_sync_buffers", "broadcast_buffers") if n in known)
    found = []
    for copied in (True, False):
        net = nn.parallel.DistributedDataParallel(copy.deepcopy(model), **{option: copied})
        for _ in range(2):
            net(x[rank]).sum().backward()
        found.append(net.module[0].running_mean.clone())
    return found


def test_ddp_gives_every_rank_the_statistics_of_the_first_unless_told_otherwise():
    x = torch.stack([torch.randn(6, 3), torch.randn(6, 3) + 5])
    model = nn.Sequential(BatchRenorm1d(3, momentum=0.5, limits=(3.0, 5.0), initial="unit"))
    first, second = on_ranks(2, under_ddp, model, x)
    # Copied before the second step: what rank 1 saw in the first one is lost.
    own = 0.5 * x[1].mean(0)
    torch.testing.assert_close(second[0], 0.5 * (0.5 * x[0].mean(0)) + own)
    torch.testing.assert_close(second[1], 0.75 * x[1].mean(0))
    torch.testing.assert_close(first[0], first[1])
    synced = on_ranks(2, under_ddp, convert_sync(copy.deepcopy(model)), x)
    for rank in synced:
        torch.testing.assert_close(rank[0], 0.75 * x.mean((0, 1)))
        torch.testing.assert_close(rank[1], rank[0])


def test_without_other_ranks_it_is_the_plain_layer():
    x = torch.randn(5, 3, 4, 4)
    layer = BatchRenorm2d(3, limits=(2.0, 1.0))
    twin = convert_sync(copy.deepcopy(layer))
    assert type(twin) is SyncBatchRenorm
    assert torch.equal(twin(x), layer(x))
    assert torch.equal(twin.eval()(x), layer.eval()(x))


def test_what_ranks_cannot_share_is_refused():
    with pytest.raises(ValueError, match="average_backward"):
        SyncBatchRenorm(3, average_backward=4)
    with pytest.raises(ValueError, match="average_backward"):
        convert_sync(BatchRenorm1d(3, average_backward=4))
    with pytest.raises(ValueError, match="lazy"):
        convert_sync(convert_batchnorm(nn.Sequential(nn.LazyBatchNorm1d())))
    with pytest.raises(ValueError, match=r"\(N, 3, \*positions\)"):
        SyncBatchRenorm(3)(torch.zeros(3))
