import os
from pathlib import Path

# Before anything imports numba: it resets the threads of torch, which then wait for one another.
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

# Before anything imports what is checked.
from checked import check_anew, check_shapes, check_tuples

check_shapes()

import pytest
import torch
from simulation import simulate
from threadpoolctl import threadpool_limits

import bioren
from bioren.network.training import TrainingOptions

check_tuples()


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    # On a busy machine threads wait for one another far longer than these tiny matrices take.
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield


@pytest.fixture(autouse=True)
def _shapes_checked():
    check_anew()


@pytest.fixture
def adata():
    return simulate()


@pytest.fixture(scope="session")
def quick():
    """Options for a network that trains a moment."""
    return TrainingOptions(max_epochs=1, progress=False)


@pytest.fixture(scope="session", params=["pp.bridge", "tl.integrate"])
def correct(request, quick):
    """Either function that corrects expression; writes ``layers["bioren"]``."""
    if request.param == "pp.bridge":
        return bioren.pp.bridge

    def integrate(adata, batch_key, **options):
        return bioren.tl.integrate(adata, batch_key, training=quick, progress=False, **options)

    return integrate


@pytest.fixture(scope="session")
def real_data():
    """The folder of public data sets that the environment names."""
    folder = os.environ.get("BIOREN_DATA")
    if not folder:
        pytest.skip("BIOREN_DATA names no folder of public data sets")
    return Path(folder)
