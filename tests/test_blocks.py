import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

from bioren.arrays.apply import apply_by_sample, scale_by_sample
from bioren.arrays.blocks import as_block, row_blocks, stacked, to_dense
from bioren.bridge import AffineBridge

FORMS = [np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.coo_matrix, sparse.csr_array]


def example(n_cells=9, n_genes=4):
    rng = np.random.default_rng(0)
    return np.where(rng.random((n_cells, n_genes)) < 0.5, 0, rng.normal(size=(n_cells, n_genes)))


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 9), st.integers(0, 4)),
    entries=st.integers(1, 40),
    form=st.sampled_from(FORMS),
)
def test_blocks_one_below_the_other_are_the_matrix(shape, entries, form):
    x = example(*shape)
    found = np.empty_like(x)
    at = 0
    for rows, block in row_blocks(form(x), entries=entries):
        assert rows.start == at
        assert block.shape == (rows.stop - rows.start, shape[1])
        assert len(range(at, rows.stop)) == 1 or (rows.stop - at) * shape[1] <= entries
        assert isinstance(block, np.ndarray | sparse.csr_matrix)
        assert sparse.issparse(block) == (form is not np.asarray)
        found[rows] = to_dense(block)
        at = rows.stop
    assert at == len(x)
    assert_array_equal(found, x)


def test_duplicates_are_summed_and_columns_sorted():
    x = sparse.csr_matrix(([1.0, 2.0, 4.0], [1, 0, 1], [0, 3]), shape=(1, 3))
    block = as_block(x)
    assert_array_equal(block.indices, [0, 1])
    assert_array_equal(block.data, [2, 5])
    assert_array_equal(x.data, [1, 2, 4])


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_stacked_keeps_the_form(form):
    x = example()
    whole = stacked([form(x[:2]), form(x[2:])])
    assert type(whole) is type(form(x))
    assert_array_equal(to_dense(whole), x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.float16])
@pytest.mark.parametrize("form", FORMS[:3])
def test_each_cell_passes_the_bridge_of_its_sample(form, dtype):
    if dtype is np.float16 and form is not np.asarray:
        pytest.skip("SciPy knows no sparse float16")
    x = (4 * example()).astype(dtype)
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 3, len(x))
    bridges = AffineBridge(rng.uniform(0.5, 2, (3, 4)), rng.normal(size=(3, 4)))
    expected = np.array(
        [x[i].astype(np.float64) * bridges.scale[c] + bridges.shift[c] for i, c in enumerate(codes)]
    )
    matrix = form(x)
    carried = apply_by_sample(matrix, codes, bridges)
    assert carried.dtype == (np.float64 if dtype is np.float64 else np.float32)
    assert_allclose(carried, expected, rtol=1e-6, atol=1e-6)

    scaled = scale_by_sample(matrix, codes, bridges.scale)
    assert sparse.issparse(scaled) == sparse.issparse(matrix)
    assert scaled.dtype == carried.dtype
    assert_allclose(to_dense(scaled), expected - bridges.shift[codes], rtol=1e-6, atol=1e-6)
    assert_array_equal(to_dense(as_block(matrix)), x)


def test_what_is_scaled_shares_no_memory_with_the_input():
    x = sparse.csr_matrix(example())
    scaled = scale_by_sample(x, np.zeros(9, dtype=int), np.ones((1, 4)))
    for part in ("data", "indices", "indptr"):
        assert not np.shares_memory(getattr(scaled, part), getattr(x, part)), part
