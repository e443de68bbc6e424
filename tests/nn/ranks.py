"""Runs a function on several ranks of a gloo process group, and returns what each returned."""

import gc
import pickle
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_ranks(size, function, *arguments):
    """Call ``function(rank, *arguments)`` on each rank, in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_work, (size, folder, function, arguments), nprocs=size)
        return [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(size)]


def _work(rank, size, folder, function, arguments):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        f"file://{folder}/meet",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=60),
    )
    result = function(rank, *arguments)
    (Path(folder) / str(rank)).write_bytes(pickle.dumps(result))
    gc.collect()  # DistributedDataParallel wants to end before its group
    dist.barrier()
    dist.destroy_process_group()
