"""Choice of device and floating-point type, and release of memory."""

import os
import platform
from pathlib import Path

import numpy as np
import pytest
import torch

from SDMatte.errors import ConfigError
from SDMatte.runtime.devices import choose_device, choose_dtype, release_memory

CPU = torch.device("cpu")


def test_automatic_dtype():
    assert choose_dtype(torch.float16, CPU) is torch.float16
    assert choose_dtype("auto", CPU, wide=False) is torch.float32
    assert choose_dtype("auto", CPU) in (torch.float32, torch.bfloat16)
    assert choose_dtype("auto", torch.device("mps")) is torch.float32


def test_devices():
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", "hpu", "openvino", None])
def test_missing_devices(name):
    message = f"device={name} is not available here.*: use cpu"
    with pytest.raises(ConfigError, match=message) as refused:
        choose_device(name)
    assert len(str(refused.value)) < 300 and "\n" not in str(refused.value)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep less")
def test_freed_memory_is_returned_to_the_system():
    blocks = [np.ones(2**16, np.uint8) for _ in range(2**11)]  # too small for mappings of their own
    full = resident()
    last = blocks.pop()
    blocks.clear()
    assert resident() > full - 2**26  # the last block keeps the others
    release_memory()
    assert resident() < full - 2**26
    assert last.all()


def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
