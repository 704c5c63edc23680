"""What a run's numbers may depend on besides its config."""

import json
import platform
import sys
from importlib import metadata
from pathlib import Path

import torch

from SDMatte.runtime.files import write_text
from SDMatte.scoring.results import versions

PACKAGES = ("torchvision", "diffusers", "transformers", "accelerate", "detectron2", "peft")


def write_environment(path: str | Path, device: torch.device, num_processes: int) -> None:
    """Writes versions, devices and the command of a run as JSON.

    Args:
        path: The file.
        device: Where this process computes.
        num_processes: Of the run, over all machines.

    Raises:
        DataError: The file cannot be written.
    """
    installed = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    content = {
        "command": sys.argv,
        **versions(),
        **{name: installed[name] for name in PACKAGES if name in installed},
        "cuda": torch.version.cuda,
        "system": platform.platform(),
        "machine": platform.node(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "processes": num_processes,
    }
    write_text(path, json.dumps(content, indent=2) + "\n")
