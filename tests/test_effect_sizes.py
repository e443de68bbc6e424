import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from numpy.testing import assert_allclose

import bioren
from bioren.effects.sizes import beyond_chance, clipped, effect_sizes, outlier_message


def sizes_of(d, error=0.0, r=None):
    d = np.asarray(d, dtype=float)
    ones = np.ones_like(d)
    return effect_sizes(ones if r is None else r, d, 0 * ones, error_d=error * ones)


def test_the_size_is_that_of_what_was_planted():
    rng = np.random.default_rng(0)
    planted = rng.normal(0, [[0.2], [1.0]], (2, 20_000))
    error = 0.3
    found = sizes_of(planted + rng.normal(0, error, planted.shape), error)
    assert_allclose(found.shift, [0.2, 1.0], rtol=0.05)
    chance = sizes_of(rng.normal(0, error, (3, 20_000)), error)
    assert (chance.shift < 0.05).all()


def test_genes_of_which_nothing_is_known_do_not_count():
    rng = np.random.default_rng(1)
    d, error = rng.normal(size=(2, 40)), np.full((2, 40), 0.3)
    d[0, :7], error[0, :7] = 0, np.inf
    assert_allclose(sizes_of(d, error).shift[0], sizes_of(d[:1, 7:], 0.3).shift[0])


def test_a_spread_doubled_everywhere_is_a_scale_of_one():
    found = sizes_of(np.zeros((2, 10)), r=np.array([[2.0], [0.5]]) * np.ones((2, 10)))
    assert_allclose(found.scale, 1)
    assert_allclose(found.shift, 0)


def test_errors_of_r_are_those_of_its_logarithm():
    rng = np.random.default_rng(1)
    error = 0.05 * np.ones((1, 20_000))
    r = np.exp(rng.normal(0, 0.05, (1, 20_000)))
    found = effect_sizes(r, 0 * r, r * error, error_d=0 * r)
    assert found.scale[0] < 0.02


@pytest.mark.parametrize(
    ("levels", "outliers"),
    [
        ([1, 1.1, 0.9, 1, 3], [4]),
        ([1, 1.1, 0.9, 1, 1.25], []),  # within three tenths of the median
        ([0, 0, 0, 0, 0.05], []),  # a trifle
        ([0, 0, 0, 0, 0.07], [4]),
        ([1, 9], []),
        ([1, 1, 9], []),  # too few to tell
        ([1, 1, 1, 9], [3]),
    ],
)
def test_outliers(levels, outliers):
    found = sizes_of(np.outer(levels, np.ones(5)))
    assert list(np.flatnonzero(found.outlier)) == outliers


def test_outliers_do_not_depend_on_order_and_may_be_of_scale_alone():
    r = np.exp2(np.outer([0.1, 0.1, 1.0, 0.1, 0.1], np.ones(5)))
    found = sizes_of(np.zeros((5, 5)), r=r)
    assert list(found.outlier) == [False, False, True, False, False]
    again = sizes_of(np.zeros((5, 5)), r=r[::-1])
    assert list(again.outlier) == list(found.outlier[::-1])


def test_the_limit_depends_on_the_number_of_cells():
    """A size that chance explains in few cells stands out in many."""
    rng = np.random.default_rng(0)
    d = 0.1 * rng.normal(size=(8, 2000))
    d[7] *= 3
    errors = np.full_like(d, 0.02)
    many = effect_sizes(np.ones_like(d), d, errors, error_d=errors)
    assert list(np.flatnonzero(many.outlier)) == [7]
    errors[7] = 0.5
    d[7] = rng.normal(0, np.hypot(0.29, 0.5), 2000)  # of the same size
    few = effect_sizes(np.ones_like(d), d, errors, error_d=errors)
    assert few.shift[7] == pytest.approx(many.shift[7], rel=0.2)
    assert not few.outlier.any()
    assert_allclose(few.far_shift[:7], many.far_shift[0], rtol=0.1)
    assert few.far_shift[7] == pytest.approx(np.hypot(few.far_shift[0], 0.5 * 0.6**0.5), rel=0.01)


def test_a_message_tells_value_and_limit():
    d = np.outer([1.0, 1.1, 0.9, 1, 3], np.ones(5))
    sizes = sizes_of(d)
    cells = np.array([50, 50, 50, 50, 1038])
    message = outlier_message("abcde", cells, sizes)
    assert "e (1,038 cells: shift 3.00, limit 1.44)" in message
    assert "1 of 5 samples" in message
    assert outlier_message("abcd", cells[:4], sizes_of(d[:4])) == ""


def test_parts_of_one_sample_do_not_stand_out(real_data):
    """Forty random parts of 20 to 500 cells: before, one in forty did."""
    adata = anndata.read_h5ad(real_data / "kang_pbmc_ctrl_8donors.h5ad")
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    found = 0
    for seed in range(3):
        rng = np.random.default_rng(seed)
        cells = np.exp(rng.uniform(np.log(20), np.log(500), 40)).astype(int)
        parts = np.repeat(np.arange(40), cells)
        some = adata[rng.permutation(adata.n_obs)[: len(parts)]].copy()
        some.obs["part"] = pd.Categorical(parts)
        bioren.pp.bridge(some, "part")
        table = bioren.tl.batch_effects(some)
        r, d, error_r, error_d = (
            table[name].to_numpy(dtype=float).reshape(40, -1)
            for name in ("r", "d", "standard_error_r", "standard_error_d")
        )
        found += int(effect_sizes(r, d, error_r, error_d=error_d).outlier.sum())
    assert found == 0


def test_beyond_chance():
    assert_allclose(beyond_chance(np.array([-3.0, 1, 2.5]), np.ones(3)), [1, 0, 0.5])


def test_the_share_that_limits_hold_back():
    d = np.array([[0.5, -3, 2, 4.0], [0.1, 0.2, -0.1, 0.3]])
    r = np.array([[1, 3, 0.2, 1.5], [1, 1, 1, 2.2]])
    none = np.zeros_like(d)  # errors
    assert_allclose(clipped(r, d, none, settings={}), 0)
    of_r, of_d = clipped(r, d, none, settings={"max_removed": np.array([2.0, 1.0])})
    assert_allclose(of_r, [0.5, 0.25])
    assert_allclose(of_d, [0.75, 0])
    # Half of 2 is no more than 1, and the root of 3 less than 2.
    of_r, of_d = clipped(r, d, none, settings={"max_removed": (2.0, 1.0), "strength": 0.5})
    assert_allclose(of_r, [0.25, 0])
    assert_allclose(of_d, [0.5, 0])
    # What is chance is not removed, so that nothing is held back.
    assert_allclose(clipped(r, d, none + 100, settings={"max_removed": (2.0, 1.0)}), 0)
