import copy
import math
import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.datasets import load_digits
from torch import nn

from bioren.nn import (
    PAPER,
    BatchRenorm1d,
    ConstantLimits,
    LinearLimits,
    StepLimits,
    convert_batchnorm,
)
from bioren.nn.schedules import as_schedule


def at(schedule, step):
    return tuple(float(bound) for bound in schedule(torch.tensor(step)))


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, (1, 0)),
        (5_000, (1, 0)),
        (15_000, (1 + 2 * 10 / 35, 2.5)),
        (25_000, (1 + 2 * 20 / 35, 5)),
        (40_000, (3, 5)),
        (40_001, (3, 5)),
        (80_000, (3, 5)),  # a ramp that runs on has flipped its sign by here
        (10**12, (3, 5)),
    ],
)
def test_paper_at_its_knots_between_and_past_them(step, expected):
    assert at(PAPER, step) == pytest.approx(expected, rel=1e-6)


def test_schedule_stays_on_the_device_of_the_step():
    r_max, d_max = PAPER(torch.tensor(3, device="meta"))
    assert r_max.device.type == d_max.device.type == "meta"


def test_schedule_does_not_change_the_step():
    step = torch.tensor(7)
    PAPER(step)
    assert step.item() == 7


def test_ramp_of_no_length_is_a_jump():
    jump = LinearLimits(start=2, r_end=2, d_end=2, r_max=3.0, d_max=5.0)
    assert [at(jump, step) for step in (2, 3, 4)] == [(1, 0), (3, 5), (3, 5)]


@pytest.mark.parametrize("schedule", [PAPER, ConstantLimits(3.0, 5.0)])
def test_schedules_survive_pickle_and_deepcopy(schedule):
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert copy.deepcopy(schedule) == schedule


def test_limits_follow_a_loaded_step():
    trained, fresh = BatchRenorm1d(2), BatchRenorm1d(2)
    trained.num_batches_tracked.fill_(40_000)
    x = torch.tensor([[10.0, 0.0], [20.0, 1.0]])
    fresh(x)
    fresh.load_state_dict(trained.state_dict())
    torch.testing.assert_close(fresh(x), trained(x), rtol=0, atol=0)
    assert at(fresh.limits, int(fresh.num_batches_tracked)) == (3, 5)


def test_a_pair_is_constant_limits():
    assert as_schedule((2.0, math.inf)) == ConstantLimits(2.0, math.inf)
    assert as_schedule(PAPER) is PAPER


@pytest.mark.parametrize("pair", [(0.5, 1.0), (1.0, -1.0), (math.nan, 0.0)])
def test_limits_out_of_range(pair):
    with pytest.raises(ValueError, match="r_max >= 1, d_max >= 0"):
        as_schedule(pair)


@pytest.mark.parametrize("limits", [3.0, None, (1.0, 2.0, 3.0)])
def test_limits_of_another_kind(limits):
    with pytest.raises(TypeError, match="a schedule or a pair"):
        as_schedule(limits)


@pytest.mark.parametrize(
    "arguments",
    [(10, 5, 20, 3.0, 5.0), (-1, 5, 5, 3.0, 5.0), (0, 1, 1, math.inf, 5.0), (0, 1, 1, 0.5, 5.0)],
)
def test_ramps_out_of_range(arguments):
    with pytest.raises(ValueError, match="received"):
        LinearLimits(*arguments)


def test_jumps_hold_from_their_step_on():
    jumps = StepLimits(((2, 1.5, 1.0), (5, 3.0, math.inf)))
    found = [at(jumps, step) for step in (0, 1, 2, 4, 5, 10**9)]
    assert found == [(1, 0), (1, 0), (1.5, 1), (1.5, 1), (3, math.inf), (3, math.inf)]


@pytest.mark.parametrize(
    "jumps", [(), ((3, 2.0, 1.0), (3, 3.0, 5.0)), ((-1, 2.0, 1.0),), ((0, 0.5, 1.0),)]
)
def test_jumps_out_of_range(jumps):
    with pytest.raises(ValueError, match="received"):
        StepLimits(jumps)


def test_the_papers_schedule_for_another_length():
    assert LinearLimits.paper(100_000) == PAPER
    short = LinearLimits.paper(1_000)
    for step in range(0, 1_000, 50):
        assert short(torch.tensor(step)) == PAPER(torch.tensor(100 * step))
    assert LinearLimits.paper(1)(torch.tensor(1)) == (3.0, 5.0)
    with pytest.raises(ValueError, match="total_steps must be a number of 1 or more"):
        LinearLimits.paper(0)


@pytest.mark.parametrize("momentum", [0.01, 0.1, 1.0])
def test_by_default_limits_open_with_the_horizon_of_the_average(momentum):
    layer = BatchRenorm1d(3, momentum=momentum)
    assert layer.limits == LinearLimits.gradual(momentum)
    assert layer.limits(torch.tensor(0)) == (1.0, 0.0)
    for horizons, expected in ((2.5, (1 + 2 * 2.5 / 8, 2.5)), (5, (2.25, 5.0)), (8, (3.0, 5.0))):
        limits = layer.limits(torch.tensor(round(horizons / momentum)))
        assert_allclose(limits, expected, atol=0.5 if momentum == 1 else 0)
    # The proportions are the paper's.
    waited = LinearLimits(0, PAPER.r_end, PAPER.d_end, PAPER.r_max, PAPER.d_max)
    assert LinearLimits.gradual(1 / PAPER.start) == waited


def test_by_default_limits_are_defined_for_averages_without_a_horizon():
    assert LinearLimits.gradual(None) == LinearLimits.gradual(0.01)
    assert BatchRenorm1d(3, momentum=0.0).limits(torch.tensor(1)) == (3.0, 5.0)


def test_statistics_that_do_not_move_do_not_begin_either():
    layer = BatchRenorm1d(3, momentum=0.0)
    layer(torch.randn(8, 3) + 4)
    assert torch.equal(layer.running_mean, torch.zeros(3))


def counted(layer):
    return {**layer.state_dict(), "running_mean": torch.full((3,), 2.0)}


def uncounted(layer):
    state = counted(layer)
    del state["num_batches_tracked"]
    return state


@pytest.mark.parametrize("given", [counted, uncounted])
def test_statistics_without_their_count_are_not_overwritten_by_the_first_minibatch(given):
    layer = BatchRenorm1d(3)
    layer.load_state_dict(given(layer), strict=given is counted)
    again = copy.deepcopy(layer)
    layer(torch.randn(8, 3))
    assert (layer.running_mean > 1.9).all()
    assert layer.limits(layer.num_batches_tracked) == (3.0, 5.0)
    # Going on from a state that was saved in between is the same.
    resumed = BatchRenorm1d(3)
    resumed.load_state_dict(layer.state_dict())
    x = torch.randn(8, 3)
    torch.testing.assert_close(resumed(x), layer(x))
    torch.testing.assert_close(resumed.state_dict(), layer.state_dict())
    again.reset_running_stats()
    again(x)
    torch.testing.assert_close(again.running_mean, x.mean(0))
    plain = nn.BatchNorm1d(3)
    plain.running_mean.fill_(2.0)
    assert convert_batchnorm(plain).num_batches_tracked > 0


def test_statistics_with_their_count_go_on():
    layer = BatchRenorm1d(3)
    layer.load_state_dict({**counted(layer), "num_batches_tracked": torch.tensor(5)})
    layer(torch.randn(8, 3))
    assert layer.num_batches_tracked == 6
    assert (layer.running_mean < 1.8).all()


def test_by_default_a_network_learns_from_pairs_of_one_class_in_a_short_training():
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 8 - 1, dtype=torch.float32), torch.tensor(labels)
    rng = np.random.default_rng(0)
    accuracy = {}
    for converted in (False, True):
        torch.manual_seed(0)
        sizes = [(64, 64), (64, 64)]
        blocks = [(nn.Linear(*s), nn.BatchNorm1d(s[1], momentum=0.01), nn.ReLU()) for s in sizes]
        network = nn.Sequential(*sum(blocks, ()), nn.Linear(64, 10))
        if converted:
            convert_batchnorm(network)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        for _ in range(1_400):
            rows = rng.choice(np.flatnonzero(labels[:1_200] == rng.integers(10)), 2, replace=False)
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
        found = network.eval()(x[1_200:]).argmax(1)
        accuracy[converted] = (found == y[1_200:]).float().mean()
    assert accuracy[True] > 0.6
    assert accuracy[False] < 0.3
