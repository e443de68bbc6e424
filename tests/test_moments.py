import dask.array
import h5py
import numpy as np
import pytest
import slow_moments
import torch
from anndata import AnnData, read_h5ad
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

import bioren.arrays.blocks
from bioren import Moments

TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def assert_moments(found, expected, **tolerance):
    tolerance = tolerance or TIGHT
    for name, wanted in zip(("count", "mean", "m2"), expected, strict=True):
        value = np.asarray(getattr(found, name))
        assert value.shape == np.shape(wanted), name
        assert_allclose(value, wanted, err_msg=name, **tolerance)


def some_zeros(seed, shape=(13, 4)):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < 0.5, 0, rng.normal(2, 1, shape))


@pytest.fixture
def small_blocks(monkeypatch):
    """Read a few rows at a time, so that every matrix here takes several blocks."""
    monkeypatch.setattr(bioren.arrays.blocks.row_blocks, "__kwdefaults__", {"entries": 12})


# Merging and taking apart


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    cuts=st.lists(st.integers(0, 11), max_size=6).map(sorted),
    order=st.randoms(use_true_random=False),
    offset=st.sampled_from([0.0, 1000.0]),
)
def test_merged_chunks_are_one_pass(seed, cuts, order, offset):
    # Equal cuts give empty chunks, neighboring ones chunks of one row.
    x = np.random.default_rng(seed).normal(offset, 1, (11, 3))
    chunks = np.split(x, cuts)
    order.shuffle(chunks)
    merged = Moments.of(chunks[0])
    for chunk in chunks[1:]:
        merged = merged.merge(Moments.of(chunk))
    assert_moments(merged, slow_moments.moments(x), rtol=1e-10)


def test_nothing_merged_with_nothing_is_nothing():
    nothing = Moments.of(np.empty((0, 3)))
    assert_moments(nothing.merge(nothing), (0, np.zeros(3), np.zeros(3)))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n_kept=st.integers(0, 5), n_taken=st.integers(0, 5))
def test_subtracting_undoes_merging(seed, n_kept, n_taken):
    x = np.random.default_rng(seed).normal(50, 1, (n_kept + n_taken, 3))
    kept, taken = Moments.of(x[:n_kept]), Moments.of(x[n_kept:])
    left = kept.merge(taken).subtract(taken)
    assert_moments(left, slow_moments.moments(x[:n_kept]), rtol=1e-9, atol=1e-9)


def test_weights_that_cancel_up_to_rounding_leave_nothing():
    def weighing(weight):
        codes, weights = np.zeros(1, dtype=int), np.array([[weight]])
        return Moments.by_group(np.array([[7.0]]), codes, 1, weights)

    together = weighing(0.1).merge(weighing(0.2)).merge(weighing(0.3))
    for order in ((0.1, 0.2, 0.3), (0.3, 0.2, 0.1), (0.2, 0.3, 0.1)):
        left = together
        for weight in order:
            left = left.subtract(weighing(weight))
        assert_moments(left, (np.zeros((1, 1)), np.zeros((1, 1, 1)), np.zeros((1, 1, 1))))


def test_more_cells_than_there_are_cannot_be_subtracted():
    with pytest.raises(ValueError, match=r"Cannot take 3\.0 cells out of 2\.0"):
        Moments.of(np.ones((2, 1))).subtract(Moments.of(np.ones((3, 1))))


def test_pooled_groups_are_one_pass():
    x, codes = some_zeros(0), np.arange(13) % 4
    grouped = Moments.by_group(x, codes, 6)  # groups 4 and 5 are empty
    assert_moments(grouped.pooled(), slow_moments.moments(x))
    assert_array_equal(grouped.count[4:], 0)


# Accuracy


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix], ids=["dense", "fully stored"])
def test_single_precision_far_from_zero(form):
    x = np.random.default_rng(0).normal(1000, 0.1, (5000, 3)).astype(np.float32)
    found = Moments.of(form(x))
    wide = x.astype(np.float64)
    assert_allclose(found.mean, wide.mean(axis=0), rtol=1e-13)
    assert_allclose(found.var(), wide.var(axis=0), rtol=1e-9)


def test_single_precision_weights_do_not_spoil_double_precision_moments():
    # Sums of float32 weights are wrong by more than what is left of them for implicit zeros.
    n_cells = 40_000
    rng = np.random.default_rng(0)
    x = sparse.csr_matrix(rng.normal(1000, 0.1, (n_cells, 1)).astype(np.float32))
    weights = rng.random((n_cells, 1), dtype=np.float32)
    found = Moments.by_group(x, np.zeros(n_cells, dtype=int), 1, weights)
    exact, share = x.toarray().astype(np.float64), weights.astype(np.float64)
    mean = (share * exact).sum() / share.sum()
    assert_allclose(found.mean.item(), mean, rtol=1e-12)
    assert_allclose(found.m2.item(), (share * (exact - mean) ** 2).sum(), rtol=1e-6)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_a_constant_gene_has_no_spread(form, value):
    found = Moments.of(form(np.full((1001, 2), value)))
    assert_allclose(found.mean, value, rtol=1e-14)
    assert_allclose(found.std(), 0, atol=1e-7 * value)
    assert (found.var() >= 0).all()


def test_variance_divides_as_told():
    x = some_zeros(1)
    found = Moments.of(x)
    for ddof in (0, 1):
        assert_allclose(found.var(ddof), x.var(axis=0, ddof=ddof))
        assert_allclose(found.std(ddof), x.std(axis=0, ddof=ddof))
    assert_array_equal(Moments.of(x[:1]).var(ddof=1), 0)


# Every kind of matrix


def with_explicit_zeros(x):
    everything = sparse.coo_matrix(np.ones_like(x))
    stored = x[everything.row, everything.col]
    return sparse.csr_matrix((stored, (everything.row, everything.col)), shape=x.shape)


def with_duplicates_unsorted(x):
    """Every stored value in two parts, columns from right to left."""
    rows, columns = np.nonzero(x)
    indptr = np.concatenate([[0], np.cumsum(2 * np.count_nonzero(x, axis=1))])
    data, indices = [], []
    for row in range(len(x)):
        there = columns[rows == row][::-1]
        indices += [*there, *there]
        data += [*(0.25 * x[row, there]), *(0.75 * x[row, there])]
    return sparse.csr_matrix((np.array(data), np.array(indices), indptr), shape=x.shape)


KINDS = {
    "C order": np.ascontiguousarray,
    "F order": np.asfortranarray,
    "view": lambda x: np.repeat(np.repeat(x, 2, axis=0), 3, axis=1)[::2, ::3],
    "reversed": lambda x: x[::-1].copy()[::-1],
    "read-only": lambda x: np.frombuffer(x.tobytes()).reshape(x.shape),
    "CSR": sparse.csr_matrix,
    "CSR array": sparse.csr_array,
    "CSC": sparse.csc_matrix,
    "COO": sparse.coo_matrix,
    "explicit zeros": with_explicit_zeros,
    "duplicates": with_duplicates_unsorted,
    "CSC duplicates": lambda x: with_duplicates_unsorted(x.T).T,
    "dask": lambda x: dask.array.from_array(x, chunks=(5, 2)),
    "dask CSR": lambda x: dask.array.from_array(x, chunks=(5, -1)).map_blocks(sparse.csr_matrix),
}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_matrix(kind):
    x = some_zeros(2)
    codes = np.arange(13) % 3
    weights = np.random.default_rng(3).dirichlet(np.ones(2), 13)
    assert_moments(Moments.of(KINDS[kind](x)), slow_moments.moments(x))
    assert_moments(
        Moments.by_group(KINDS[kind](x), codes, 4, weights),
        slow_moments.by_group(x, codes, 4, weights),
    )


def test_duplicates_are_what_their_name_says():
    x = some_zeros(2)
    twice = with_duplicates_unsorted(x)
    assert twice.nnz == 2 * np.count_nonzero(x)
    assert not twice.has_sorted_indices
    assert_allclose(twice.toarray(), x)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", "bool", "float16", "float32"])
def test_every_kind_of_number(form, dtype):
    if form is sparse.csr_matrix and dtype == "float16":
        pytest.skip("SciPy knows no sparse float16")
    x = (3 * some_zeros(4)).clip(0).astype(dtype)
    assert_moments(Moments.of(form(x)), slow_moments.moments(x))


def test_small_integers_do_not_overflow():
    x = np.full((300, 1), 127, dtype=np.int8)
    x[0] = -128
    assert_moments(Moments.of(x), slow_moments.moments(x), rtol=1e-12)


@pytest.mark.usefixtures("small_blocks")
def test_hdf5_dataset(tmp_path):
    x = some_zeros(5)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        assert_moments(Moments.of(file.create_dataset("x", data=x)), slow_moments.moments(x))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_backed_anndata(tmp_path, form):
    x = some_zeros(6)
    AnnData(form(x)).write_h5ad(tmp_path / "x.h5ad")
    backed = read_h5ad(tmp_path / "x.h5ad", backed="r")
    try:
        codes = np.arange(13) % 3
        expected = slow_moments.by_group(x, codes, 3, np.ones((13, 1)))
        assert_moments(Moments.of(backed.X), slow_moments.moments(x))
        assert_moments(Moments.by_group(backed.X, codes, 3), [t[:, 0] for t in expected])
    finally:
        backed.file.close()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int32])
def test_tensor(dtype):
    x = torch.as_tensor(10 * some_zeros(7)).to(dtype)
    found = Moments.of(x)
    assert isinstance(found.mean, torch.Tensor)
    assert_moments(found, slow_moments.moments(x.double().numpy()))


def test_tensors_merge_subtract_and_take_no_gradient():
    x = torch.as_tensor(some_zeros(8)).requires_grad_()
    one, other = Moments.of(x[:4]), Moments.of(x[4:])
    assert not one.mean.requires_grad
    assert_moments(one.merge(other), slow_moments.moments(x.detach().numpy()))
    assert_moments(one.merge(other).subtract(other), slow_moments.moments(x.detach().numpy()[:4]))


def test_tensor_far_from_zero():
    x = torch.as_tensor(np.random.default_rng(0).normal(1000, 0.1, (5000, 2)), dtype=torch.float32)
    assert_allclose(Moments.of(x).var(), x.double().numpy().var(axis=0), rtol=1e-9)


# Groups and weights


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_cells=st.integers(0, 12),
    n_groups=st.integers(1, 4),
    form=st.sampled_from([np.asarray, sparse.csr_matrix]),
    hard=st.booleans(),
)
def test_weighted_groups_are_loops_over_cells(seed, n_cells, n_groups, form, hard):
    rng = np.random.default_rng(seed)
    x = np.where(rng.random((n_cells, 3)) < 0.5, 0, rng.normal(size=(n_cells, 3)))
    codes = rng.integers(0, n_groups, n_cells)
    weights = rng.dirichlet(np.ones(2), n_cells).reshape(n_cells, 2)
    weights = (weights > 0.5).astype(float) if hard else weights
    found = Moments.by_group(form(x), codes, n_groups, weights)
    assert_moments(found, slow_moments.by_group(x, codes, n_groups, weights))


def test_states_of_a_sample_merge_to_the_sample():
    x, codes = some_zeros(9), np.arange(13) % 3
    weights = np.random.default_rng(0).dirichlet(np.ones(4), 13)
    by_state = Moments.by_group(x, codes, 3, weights)
    whole = Moments.by_group(x, codes, 3)
    merged = by_state[:, 0]
    for state in range(1, 4):
        merged = merged.merge(by_state[:, state])
    assert_moments(merged, (whole.count, whole.mean, whole.m2))


def test_some_genes():
    x = some_zeros(10)
    assert_moments(Moments.of(x).of_genes([3, 1]), slow_moments.moments(x[:, [3, 1]]))


@pytest.mark.parametrize(
    "form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix, with_duplicates_unsorted]
)
def test_the_input_is_never_changed(form):
    x = form(some_zeros(11))
    parts = ("data", "indices", "indptr") if sparse.issparse(x) else ()
    before = [getattr(x, part).copy() for part in parts] or [x.copy()]
    codes, weights = np.arange(13) % 3, np.full((13, 2), 0.5)
    Moments.of(x)
    Moments.by_group(x, codes, 3, weights)
    after = [getattr(x, part) for part in parts] or [x]
    for was, now in zip(before, after, strict=True):
        assert_array_equal(was, now)
    assert_array_equal(codes, np.arange(13) % 3)
    assert_array_equal(weights, 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"codes": np.zeros(2, dtype=int)}, "codes has 2 rows for 3 cells"),
        ({"weights": np.ones((4, 1))}, "weights has 4 rows for 3 cells"),
        ({"codes": np.array([0, -1, 0])}, r"codes must lie in 0\.\.1, found -1\.\.0"),
        ({"codes": np.array([0, 2, 0])}, r"codes must lie in 0\.\.1, found 0\.\.2"),
    ],
)
def test_groups_that_do_not_fit(arguments, message):
    arguments = {"codes": np.zeros(3, dtype=int), "n_groups": 2, **arguments}
    with pytest.raises(ValueError, match=message):
        Moments.by_group(np.ones((3, 2)), **arguments)


@pytest.mark.parametrize("x", [np.ones(3), torch.ones(3), np.ones((2, 2, 2))])
def test_only_matrices_have_moments(x):
    with pytest.raises(ValueError, match="Expected a matrix of cells x genes"):
        Moments.of(x)


# Missing values


def holes(seed, shape=(13, 4), share=0.4, offset=0.0):
    rng = np.random.default_rng(seed)
    x = np.where(rng.random(shape) < 0.3, 0, rng.normal(offset, 1, shape))
    return np.where(rng.random(shape) < share, np.nan, x)


def of_measured(x):
    """Return count, mean and m2 by NumPy's own functions, 0 where nothing was measured."""
    count = (~np.isnan(x)).sum(axis=0)
    some = count > 0
    mean, var = np.zeros((2, x.shape[1]))
    mean[some], var[some] = np.nanmean(x[:, some], axis=0), np.nanvar(x[:, some], axis=0)
    return count, mean, count * var


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    cuts=st.lists(st.integers(0, 11), max_size=6).map(sorted),
    share=st.sampled_from([0.05, 0.5, 0.95]),
    offset=st.sampled_from([0.0, 1000.0]),
    form=st.sampled_from([np.asarray, sparse.csr_matrix, torch.as_tensor]),
)
def test_merged_chunks_with_missing_values_are_one_pass(seed, cuts, share, offset, form):
    x = holes(seed, (11, 3), share, offset)
    x[0, 0] = np.nan  # so that the whole is incomplete, whatever the chunks are
    merged = Moments.of(form(x[:0]))
    for chunk in np.split(x, cuts):
        merged = merged.merge(Moments.of(form(chunk)))
    assert_moments(merged, of_measured(x), rtol=1e-9, atol=1e-9)
    assert_moments(Moments.of(form(x)), of_measured(x), rtol=1e-9, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n_kept=st.integers(1, 5), n_taken=st.integers(0, 5))
def test_subtracting_undoes_merging_where_values_are_missing(seed, n_kept, n_taken):
    x = holes(seed, (n_kept + n_taken, 3), offset=50)
    x[0] = np.nan
    kept, taken = Moments.of(x[:n_kept]), Moments.of(x[n_kept:])
    left = kept.merge(taken).subtract(taken)
    assert_moments(left, of_measured(x[:n_kept]), rtol=1e-8, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    form=st.sampled_from([np.asarray, sparse.csr_matrix]),
    rows=st.sampled_from([1, 4, 13]),
)
def test_groups_with_missing_values_are_those_of_numpy(seed, form, rows):
    x, codes = holes(seed), np.arange(13) % 3
    codes[codes == 2] = 3  # group 2 is empty
    x[0, 0] = np.nan
    with pytest.MonkeyPatch.context() as patch:
        entries = {"entries": 4 * rows}
        patch.setattr(bioren.arrays.blocks.row_blocks, "__kwdefaults__", entries)
        found = Moments.by_group(form(x), codes, 4)
    assert found.incomplete
    expected = [of_measured(x[codes == group]) for group in range(4)]
    tables = [np.stack(parts) for parts in zip(*expected, strict=True)]
    assert_moments(found, tables)
    assert_moments(found.pooled(), of_measured(x))
    assert_moments(found[1], expected[1])
    assert_moments(found.of_genes([3, 1]), [table[:, [3, 1]] for table in tables])
    assert_moments(Moments.stacked([found[:2], found[2:]]), (found.count, found.mean, found.m2))
    scale, shift = np.array([2.0, -1, 0.5, 3]), np.arange(4.0)
    assert_moments(found.moved(scale, shift).pooled(), of_measured(scale * x + shift))
    for ddof in (0, 1):
        known = (~np.isnan(x)).sum(axis=0) > ddof
        var = found.pooled().var(ddof)
        assert_allclose(var[known], np.nanvar(x[:, known], axis=0, ddof=ddof))
        assert_array_equal(var[~known], 0)


def test_missing_values_have_no_weight():
    x, codes = holes(1), np.arange(13) % 3
    weights = np.random.default_rng(0).dirichlet(np.ones(2), 13)
    found = Moments.by_group(x, codes, 3, weights)
    for gene in range(4):
        some = ~np.isnan(x[:, gene])
        expected = slow_moments.by_group(x[some][:, [gene]], codes[some], 3, weights[some])
        assert_allclose(found.count[..., gene], expected[0])
        assert_allclose(found.mean[..., [gene]], expected[1], atol=1e-12)
        assert_allclose(found.m2[..., [gene]], expected[2], atol=1e-12)


def test_complete_data_have_one_count_for_all_genes():
    found = Moments.of(some_zeros(0))
    assert not found.incomplete
    assert found.count.shape == ()
    parts = Moments.of(some_zeros(0)[:, :3])[None], Moments.of(holes(0)[:, :3])[None]
    assert Moments.stacked(parts).count.shape == (2, 3)
    assert parts[0].merge(parts[1]).count.shape == (1, 3)
