"""Cost of a method: time and memory of a process of its own, and the store of such runs.

Seconds and processor time are those of the method alone, after imports and the preparation of its
input, with all threads and child processes.  Peak memory is the most that the process held while
the method ran, what it held before included: Python, libraries (0.3 GB, with torch 0.6) and input.
What is compiled at the first call (numba) is counted.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import multiprocessing
import os
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from methods import METHODS, Graph
from scipy.sparse import csr_matrix

from data import prepared


class Cost(NamedTuple):
    """Wall time, processor time and peak memory."""

    seconds: float
    cpu_seconds: float
    peak_gb: float


class MethodFailed(RuntimeError):
    """The process of a method ended without a result."""


def in_own_process(task: Callable[..., Callable[[], Any]], *args: Any) -> tuple[Any, Cost]:
    """Return what `task(*args)()` returns, and its cost: `task` prepares and is not measured."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(sender, task, args))
    child.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:  # killed, as by the system where memory runs out
        child.join()
        msg = f"ended with exit code {child.exitcode}"
        raise MethodFailed(msg) from None
    child.join()
    if isinstance(found, str):
        raise MethodFailed(found)
    return found


def _answer(sender, task, args) -> None:
    warnings.simplefilter("ignore")
    os.environ["TQDM_DISABLE"] = "1"
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            run = task(*args)
            gc.collect()
            forget_peak()
            cpu, start = cpu_seconds(), time.perf_counter()
            result = run()
            cost = Cost(time.perf_counter() - start, cpu_seconds() - cpu, peak_gigabytes())
            sender.send((result, cost))
        except Exception:  # noqa: BLE001  whatever it is, the parent has to hear of it
            sender.send(traceback.format_exc())


def cpu_seconds() -> float:
    """Return user and system time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def forget_peak() -> None:
    """Make the kernel count the peak of memory from now on, where it lets us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not on Linux, or not allowed: the peak includes the preparation
        return


def peak_gigabytes() -> float:
    """Return this process's peak memory; getrusage would count its parent's before the start."""
    status = Path("/proc/self/status")
    if not status.exists():  # not on Linux
        unit = 1e9 if sys.platform == "darwin" else 1e6
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def integration(path: Path, name: str, seed: int) -> Callable[[], np.ndarray | Graph]:
    """Return method `name` as a function without arguments, all made ready."""
    method = METHODS[name]
    adata = prepared(path)
    if not method.counts and "counts" in adata.layers:
        del adata.layers["counts"]
    for module in method.modules:
        importlib.import_module(module)

    def run():
        found = method.run(adata, seed)
        if isinstance(found, Graph):
            return found
        return np.ascontiguousarray(found, dtype=np.float32)

    return run


class Store:
    """Runs on one data set, kept in a folder: NAME-SEED.npz and, once it is whole, .json."""

    def __init__(self, folder: Path, path: Path) -> None:
        self.path = path
        self.folder = folder / path.stem
        self.folder.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as file:
            self.content = hashlib.file_digest(file, "sha256").hexdigest()[:16]

    def run(self, name: str, seed: int, *, again: bool) -> tuple[np.ndarray | Graph, dict]:
        """Return result and record of a run: the stored one, or that of a run now.

        A run is taken from the store unless `again` or the file or the package has changed.
        """
        made_of = {"content": self.content, "version": version(METHODS[name].package)}
        if not again:
            record = self.record(name, seed)
            if record is not None and made_of.items() <= record.items():
                return load(self._file(name, seed, "npz")), record
        result, cost = in_own_process(integration, self.path, name, seed)
        record = {"method": name, "seed": seed, **made_of, "cores": cores(), **cost._asdict()}
        self._file(name, seed, "json").unlink(missing_ok=True)
        np.savez_compressed(self._file(name, seed, "npz"), **packed(result))
        self.write(record)
        return result, record

    def record(self, name: str, seed: int) -> dict | None:
        """Return what was measured in a stored run; None: there is none."""
        path = self._file(name, seed, "json")
        return json.loads(path.read_text()) if path.exists() else None

    def write(self, record: dict) -> None:
        """Keep a record; an interruption leaves the old one."""
        path = self._file(record["method"], record["seed"], "json")
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(record, indent=1))
        draft.replace(path)

    def _file(self, name: str, seed: int, suffix: str) -> Path:
        return self.folder / f"{file_stem(name, seed)}.{suffix}"


def file_stem(name: str, seed: int) -> str:
    """Return what the files of a run are called."""
    return f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"


def packed(result: np.ndarray | Graph) -> dict[str, np.ndarray]:
    """Return a result as arrays with names."""
    if not isinstance(result, Graph):
        return {"embedding": result}
    parts = ("data", "indices", "indptr")
    return {f"{name} {p}": getattr(m, p) for name, m in result._asdict().items() for p in parts}


def load(path: Path) -> np.ndarray | Graph:
    """Return a result that was written with `packed`."""
    with np.load(path) as found:
        if "embedding" in found:
            return found["embedding"]
        parts = [
            tuple(found[f"{name} {part}"] for part in ("data", "indices", "indptr"))
            for name in Graph._fields
        ]
    n_cells = len(parts[0][2]) - 1
    return Graph(*(csr_matrix(part, shape=(n_cells, n_cells)) for part in parts))
