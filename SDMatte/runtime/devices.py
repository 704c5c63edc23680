"""Which device to compute on, in which floating-point type, and what memory is kept."""

import ctypes
import sys

import torch

from SDMatte.errors import ConfigError

_CPU_PROBES = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


def choose_device(name: str | torch.device = "auto", setting: str = "device") -> torch.device:
    """Reads the name of a device.

    Args:
        name: ``"auto"`` is CUDA if there is one, else MPS, else the CPU; or a device's name.
        setting: What the message calls the setting.

    Raises:
        ConfigError: There is no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            name = f"cuda:{torch.cuda.current_device()}"
        else:
            name = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(f"{setting}={name} cannot be used here: {error}") from error
    return device


def choose_dtype(
    dtype: str | torch.dtype, device: torch.device, wide: bool = True
) -> str | torch.dtype:
    """Says what ``"auto"`` is on a device; any other type is given back as it is.

    It is bfloat16 for wide models where the device has instructions for it (GPUs from Ampere on,
    CPUs with AMX or AVX512-BF16), else float32. Narrow models gain nothing: on a CPU one of 64 to
    128 channels takes twice as long in bfloat16, where a full-size one takes half.

    Args:
        dtype: ``"auto"``, a type or its name.
        device: What will compute.
        wide: Whether the model has layers of hundreds of channels.
    """
    if dtype != "auto":
        return dtype
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:  # older releases of torch lack the probes
        probes = (getattr(torch.cpu, probe, lambda: False)() for probe in _CPU_PROBES)
        fast = device.type == "cpu" and any(probes)
    return torch.bfloat16 if wide and fast else torch.float32


def give_back_memory() -> None:
    """Gives memory that this process has freed, but keeps for later, back to the system.

    glibc keeps all that lies below a block in use, by chance half a GiB after a picture of
    1024 x 1024 pixels has been encoded; the memory of what comes next would come on top of that.
    Nothing happens where the C library has no such call.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
