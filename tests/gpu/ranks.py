"""Functions for the processes of the two-rank test, in a module that they can import."""

import torch
from detectron2.utils import comm
from gpu.runs import TinyTraining


def train_on_one_gpu(device: torch.device) -> None:
    """Train two steps on different batches; the weights must stay the same in all ranks."""
    run = TinyTraining(device, first_batch=comm.get_rank())
    assert run.trainer.model is not run.task  # DDP
    run.steps(2)
    total = sum(p.detach().double().abs().sum().item() for p in run.trainer.parameters)
    assert len(set(comm.all_gather(total))) == 1
    assert len(set(comm.all_gather(run.losses[-1]))) == 1
