import numpy as np
import pytest
from numpy.testing import assert_allclose

from bioren.effects.sizes import beyond_chance, clipped, effect_sizes


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
