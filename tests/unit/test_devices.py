"""Which device, and how much of its memory."""

from __future__ import annotations

import pytest
import torch

from resnet_limits import devices
from resnet_limits.config import InputError

VARIABLES = (
    "SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES",
    "SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE",
)  # fmt: skip


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("wanted", "has_cuda", "device"),
    [
        ("auto", False, "cpu"), ("auto", True, "cuda"), ("cpu", False, "cpu"),
        ("cpu", True, "cpu"), ("cuda", True, "cuda"),
    ],
)  # fmt: skip
def test_device_outside_of_a_cluster(environment, wanted, has_cuda, device):
    environment.setattr(torch.cuda, "is_available", lambda: has_cuda)
    assert devices.choose(wanted) == device


@pytest.mark.parametrize("name", ["SLURM_STEP_GPUS", "SLURM_JOB_GPUS"])
@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_a_reserved_gpu_is_used_or_refused(environment, name, wanted):
    environment.setenv(name, "1")
    environment.setenv("CUDA_VISIBLE_DEVICES", "0")
    environment.setattr(torch.cuda, "is_available", lambda: False)
    line = rf"numerics.device: {wanted}, .*{name}=1, CUDA_VISIBLE_DEVICES=0\); allowed here: cpu"
    with pytest.raises(InputError, match=line):
        devices.choose(wanted)
    assert devices.choose("cpu") == "cpu"
    environment.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.choose(wanted) == "cuda"


def test_cuda_without_a_device_is_refused(environment):
    environment.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no CUDA device is visible; allowed here: auto, cpu"):
        devices.choose("cuda")


def test_memory_is_bounded_by_what_was_asked_of_slurm(environment):
    free = devices.memory("cpu")
    assert free > 64 * 2**20
    environment.setenv("SLURM_MEM_PER_NODE", "64")
    assert devices.memory("cpu") == 64 * 2**20
    environment.delenv("SLURM_MEM_PER_NODE")
    environment.setenv("SLURM_MEM_PER_CPU", "16")
    environment.setenv("SLURM_CPUS_ON_NODE", "3")
    assert devices.memory("cpu") == 48 * 2**20


@pytest.mark.parametrize("value", ["0", "", "all"])
def test_no_number_is_no_bound(environment, value):
    environment.setenv("SLURM_MEM_PER_NODE", value)
    assert devices.memory("cpu") > 64 * 2**20
