import io
import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import QUICK, expression, started
from numpy.testing import assert_allclose, assert_array_equal

from bioren.network.training import Epoch, decode, embed, split, train


@pytest.fixture(scope="module")
def data():
    return expression()


def fitted(x, codes, options=QUICK, *, seed=0, **network_options):
    network, _, _ = started(x, codes, **network_options)
    rng = np.random.default_rng(seed)
    cells = split(len(codes), options.held_out, rng)
    return network, train(network, x, codes, cells=cells, options=options, rng=rng), cells


def error(network, x, codes, cells):
    """Mean reconstruction error in evaluation, without the package's loop."""
    network.eval()
    with torch.no_grad():
        inputs = torch.tensor(x.toarray()[cells]), torch.tensor(codes[cells])
        return network(*inputs).double().mean().item()


def state(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same_state(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# The best epoch


@pytest.mark.parametrize("learning_rate", [1e-3, 1e-2, 3.0], ids=["small", "large", "absurd"])
@pytest.mark.parametrize("curved", [True, False])
def test_training_never_ends_worse_than_it_starts(learning_rate, curved):
    x, codes = expression(1, curved=curved)
    options = QUICK._replace(learning_rate=learning_rate, max_epochs=4)
    start, _, _ = started(x, codes)
    network, history, (_, held_out) = fitted(x, codes, options)
    at_start, at_end = (error(n, x, codes, held_out) for n in (start, network))
    assert at_end <= at_start + 1e-6
    assert_allclose(history[0].held_out, at_start, rtol=1e-5)
    assert_allclose(min(epoch.held_out for epoch in history), at_end, rtol=1e-5)


def test_training_learns_what_components_cannot(data):
    _, history, _ = fitted(*data, QUICK._replace(max_epochs=15, learning_rate=3e-3))
    assert min(epoch.held_out for epoch in history) < 0.9 * history[0].held_out


def test_where_every_step_does_harm_the_start_is_kept(data):
    start, _, _ = started(*data)
    network, history, _ = fitted(*data, QUICK._replace(learning_rate=1.0, max_epochs=2))
    assert all(epoch.held_out > history[0].held_out for epoch in history[1:])
    assert same_state(state(network), state(start))


def test_the_best_epoch_is_kept_though_worse_ones_follow():
    x, codes = expression(2, n_cells=120)
    options = QUICK._replace(learning_rate=1e-2, max_epochs=25, batch_size=16, held_out=0.3)
    network, history, (_, held_out) = fitted(x, codes, options)
    best = min(history, key=lambda epoch: epoch.held_out)
    assert 0 < best.epoch < history[-1].epoch
    assert_allclose(error(network, x, codes, held_out), best.held_out, rtol=1e-5)


def test_no_epochs_leave_the_start(data):
    start, _, _ = started(*data)
    network, history, _ = fitted(*data, QUICK._replace(max_epochs=0))
    assert len(history) == 1
    assert same_state(state(network), state(start))


def test_a_training_of_no_use_ends_early_and_leaves_the_components():
    x, codes = expression(1, curved=False)
    options = QUICK._replace(probe=0.1, max_epochs=20, learning_rate=1e-2)
    start, _, _ = started(x, codes)
    network, history, _ = fitted(x, codes, options)
    assert len(history) == 1 + 2
    assert [epoch.kept for epoch in history] == [True, False, False]
    assert same_state(state(network), state(start))


def test_a_training_of_use_goes_on():
    options = QUICK._replace(probe=0.3, max_epochs=10, patience=10, learning_rate=1e-2)
    _, history, _ = fitted(*expression(n_cells=2000), options)
    assert len(history) == 1 + 10
    assert [epoch.kept for epoch in history].index(True) > 3


def test_patience_ends_a_training_that_does_not_improve(data):
    options = QUICK._replace(learning_rate=1.0, max_epochs=20, patience=3)
    assert len(fitted(*data, options)[1]) == 1 + 3


def test_history_counts_from_the_start(data):
    _, history, _ = fitted(*data)
    assert [epoch.epoch for epoch in history] == [0, 1, 2, 3]
    assert all(isinstance(epoch, Epoch) for epoch in history)


def test_a_loss_that_is_not_finite_is_an_error(data):
    with pytest.raises(FloatingPointError, match="Training diverged"):
        fitted(*data, QUICK._replace(learning_rate=1e30))


# Randomness


def test_same_seed_same_network(data):
    first, history, _ = fitted(*data)
    second, same_history, _ = fitted(*data)
    assert same_state(state(first), state(second))
    assert history == same_history
    other, _, _ = fitted(*data, seed=1)
    assert not same_state(state(first), state(other))


def test_the_worlds_random_numbers_are_left_alone(data):
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    network, _, _ = fitted(*data)
    embed(network, *data)
    after = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert_array_equal(before[1][1], after[1][1])
    assert before[1][2] == after[1][2]


@given(n_cells=st.integers(2, 200), held_out=st.floats(0, 1), seed=st.integers(0, 99))
def test_splitting_gives_each_cell_one_role(n_cells, held_out, seed):
    training, other = split(n_cells, held_out, np.random.default_rng(seed))
    assert_array_equal(np.sort(np.concatenate([training, other])), np.arange(n_cells))
    assert min(len(training), len(other)) >= 1
    assert abs(len(other) - held_out * n_cells) <= 1


# Kinds of input, precision, noise


def test_dense_and_sparse_train_alike(data):
    x, codes = data
    sparse, _, _ = fitted(x, codes)
    network, _, _ = started(x, codes)
    rng = np.random.default_rng(0)
    cells = split(len(codes), QUICK.held_out, rng)
    train(network, x.toarray(), codes, cells=cells, options=QUICK, rng=rng)
    assert same_state(state(sparse), state(network))


def test_the_input_is_never_changed(data):
    x, codes = expression()
    dense = x.toarray()
    fitted(x, codes)
    assert_array_equal(x.toarray(), dense)
    assert_array_equal(codes, data[1])


def test_a_last_minibatch_of_one_cell(data):
    x, codes = data
    options = QUICK._replace(batch_size=179)  # of 180 cells to train on
    network, _, (training, _) = fitted(x, codes, options)
    assert len(training) == 180
    assert all(value.isfinite().all() for value in state(network).values())


def test_mixed_precision_on_the_cpu(data):
    options = QUICK._replace(precision="bf16-mixed", max_epochs=8, learning_rate=3e-3)
    network, history, (_, held_out) = fitted(*data, options)
    assert min(epoch.held_out for epoch in history) < history[0].held_out
    assert all(value.dtype != torch.bfloat16 for value in state(network).values())
    full = error(network, *data, held_out)
    assert_allclose(min(epoch.held_out for epoch in history), full, rtol=0.05)


def test_progress_is_shown_on_demand(data, capsys):
    fitted(*data)
    assert capsys.readouterr() == ("", "")
    fitted(*data, QUICK._replace(progress=True))
    shown = capsys.readouterr().err
    assert "training" in shown
    assert "loss=" in shown


def test_fabric_is_silent(data, caplog):
    with caplog.at_level(logging.INFO):
        fitted(*data)
    assert caplog.messages == []


# Embedding and decoding


def test_embedding_changes_no_state_and_sees_each_cell_alone(data):
    x, codes = data
    network, _, _ = fitted(x, codes)
    before = state(network)
    z = embed(network, x, codes)
    assert z.dtype == np.float32
    assert z.shape == (200, 3)
    assert same_state(before, state(network))
    some = np.random.default_rng(0).permutation(200)[:7]
    assert_allclose(embed(network, x[some], codes[some]), z[some], atol=1e-4)
    assert_allclose(embed(network, x.toarray(), codes), z, atol=1e-5)


def test_embedding_in_several_batches(data, monkeypatch):
    network, _, _ = fitted(*data)
    z = embed(network, *data)
    rebuilt = decode(network, z)
    monkeypatch.setattr("bioren.network.training.LARGE_BATCH", 33)
    assert_allclose(embed(network, *data), z, atol=1e-4)
    assert_allclose(decode(network, z), rebuilt, atol=1e-4)


def test_decoding_is_the_networks_own(data):
    network, _, _ = fitted(*data)
    z = embed(network, *data)
    with torch.no_grad():
        expected = network.decode(torch.tensor(z)).numpy()
    assert_allclose(decode(network, z), expected, atol=1e-5)
    assert decode(network, z).dtype == np.float32


def test_a_trained_network_can_be_saved_whole(data):
    network, _, _ = fitted(*data)
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert_array_equal(embed(again, *data), embed(network, *data))


@pytest.mark.parametrize(("max_steps", "epochs"), [(0, 0), (1, 1), (5, 2), (10_000, 4)])
def test_no_epoch_begins_after_the_last_step(max_steps, epochs):
    from simulation import simulate

    from bioren import RenormAutoencoder
    from bioren.network.training import TrainingOptions

    options = TrainingOptions(
        max_epochs=4, max_steps=max_steps, batch_size=32, patience=9, probe=0, progress=False
    )
    model = RenormAutoencoder(4, 8, training=options).fit(simulate((50, 50)), "sample")  # 3 steps
    assert model.history_["epoch"].max() == epochs
