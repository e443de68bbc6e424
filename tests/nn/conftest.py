import pytest
import torch


@pytest.fixture(autouse=True)
def _same_draws_every_time():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(autouse=True)
def _one_thread():
    # On a busy machine threads wait for one another far longer than these tiny tensors take.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
