"""The kernel for GPUs, run on a CPU by Triton's interpreter, in a process of its own."""

import os
import subprocess
import sys

import pytest

CODE = """
import itertools
import torch
from bioren.nn.fused import fused_step
from bioren.nn.channel_moments import ChannelMoments
from bioren.nn.tracking import Tracker

generator = torch.Generator().manual_seed(0)
for channels, number, spoilt, as_tensors, first in itertools.product(
    (1, 3, 130), (1, 2, 50), (None, torch.nan, torch.inf), (False, True), (False, True)
):
    mean_b = torch.randn(channels, generator=generator) * 2
    var_b = torch.rand(channels, generator=generator) * 3
    if spoilt is not None:
        var_b[-1] = spoilt
    mean = torch.randn(channels, generator=generator)
    var = torch.rand(channels, generator=generator) + 0.5
    given = (0.3, 1.5, 0.5)
    momentum, r_max, d_max = (torch.tensor(x) for x in given) if as_tensors else given
    kernel = mean.clone(), var.clone()
    if as_tensors:
        first = torch.tensor(first)
    steps, counted = (torch.tensor(7) if as_tensors else None for _ in range(2))
    options = dict(momentum=momentum, eps=1e-3, r_max=r_max, d_max=d_max, first=first)
    found = fused_step(
        mean_b, var_b, number, running_mean=kernel[0], running_var=kernel[1], counter=counted,
        **options,
    )
    tracker = Tracker(mean, var, counter=steps, **options)
    expected = tracker.meet(ChannelMoments(mean_b, var_b, number))
    torch.testing.assert_close((*found, *kernel), (*expected, mean, var), equal_nan=True)
    assert steps == counted
print("all agree")
"""


def test_one_kernel_does_what_the_tracker_does():
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "all agree", done.stderr
