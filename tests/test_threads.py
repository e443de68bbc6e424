from threadpoolctl import threadpool_info

from bioren.arrays.threads import with_one_blas_thread


def blas_threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_products_have_one_thread_inside_and_as_many_as_before_after():
    before = blas_threads()
    assert set(with_one_blas_thread(blas_threads)()) == {1}
    assert blas_threads() == before
