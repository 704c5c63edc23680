"""Device, floating-point type and memory."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from SDMatte.errors import ConfigError

if TYPE_CHECKING:
    import torch

_CPU_PROBES = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


def choose_device(name: str | torch.device = "auto", setting: str = "device") -> torch.device:
    """Return a device that works on this machine; ``"auto"``: CUDA, else MPS, else the CPU.

    Raises:
        ConfigError: The device is not available; the message names the ``setting``.
    """
    import torch  # imported late, because exported models run without it

    if name == "auto":
        if torch.cuda.is_available():
            name = f"cuda:{torch.cuda.current_device()}"
        else:
            name = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except Exception as error:  # torch has no error type for unknown and missing devices
        available = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        if torch.backends.mps.is_available():
            available.append("mps")
        reason = str(error).partition("\n")[0].partition(". ")[0]  # the rest is advice, or long
        why = f" ({reason})" if str(name).startswith("cuda") else ""
        raise ConfigError(
            f"{setting}={name} is not available here{why}: use {', '.join(available)} or auto."
        ) from error
    return device


def choose_dtype(
    dtype: str | torch.dtype, device: torch.device, wide: bool = True
) -> str | torch.dtype:
    """Resolve ``"auto"`` to a floating-point type; return any other type unchanged.

    ``"auto"`` is bfloat16 for wide models on devices with bfloat16 instructions (GPUs since
    Ampere, CPUs with AMX or AVX512-BF16), else float32. On a CPU, bfloat16 makes a model of 64 to
    128 channels twice as slow, and a full-size model twice as fast.

    Args:
        dtype: ``"auto"``, a type or its name.
        device: Where the model runs.
        wide: Whether the model has layers with hundreds of channels.
    """
    if dtype != "auto":
        return dtype
    import torch

    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:  # older releases of torch lack the probes
        probes = (getattr(torch.cpu, probe, lambda: False)() for probe in _CPU_PROBES)
        fast = device.type == "cpu" and any(probes)
    return torch.bfloat16 if wide and fast else torch.float32


def release_memory() -> None:
    """Return memory freed by the C library to the operating system, where supported.

    glibc keeps everything below the last block in use, sometimes half a GiB after encoding an
    image of 1024 x 1024 pixels.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def peak_memory(device: torch.device) -> float:
    """Return the peak memory of this process so far, in GiB.

    On a GPU this is the memory allocated by torch, otherwise the resident set size.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) / 2**20  # from KiB
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 2**10  # bytes on macOS, else KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
