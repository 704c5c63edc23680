"""Group norm for one large image on a GPU."""

import torch
import torch.nn.functional as F
from torch import nn

PARALLEL_FROM = 2**23
"""Values of a map from which group norm is computed in parallel: 512 channels of 128 x 128."""


class ParallelGroupNorm(nn.GroupNorm):
    """Group norm that occupies a whole GPU on a large map of one image.

    torch's kernel gives each group of each image to one thread block. For one image and 32 groups
    that leaves most of a GPU idle: at 1024 x 1024, these kernels took 38 % of the time that an H200
    computed, more than the convolutions. Maps of one image are therefore normalized by reductions
    and by the kernel of batch norm, which use all of it.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalize `[B, C, ...]`."""
        large = input.ndim == 4 and len(input) == 1 and input.numel() >= PARALLEL_FROM
        if large and input.is_cuda and not torch.is_grad_enabled():
            return self.normalize_in_parallel(input)
        return super().forward(input)

    def normalize_in_parallel(self, input: torch.Tensor) -> torch.Tensor:
        """Normalize `[1, C, H, W]`; sums are in float64, since nearly constant maps need it."""
        count = input.numel() // self.num_groups
        sums = input.sum((0, 2, 3), dtype=torch.float64)  # [C]
        norms = torch.linalg.vector_norm(input, dim=(0, 2, 3), dtype=torch.float64)
        per_group = (self.num_groups, -1)
        mean = sums.view(per_group).sum(1) / count
        variance = norms.square().view(per_group).sum(1) / count - mean.square()
        channels = self.num_channels // self.num_groups
        mean, variance = (v.float().repeat_interleave(channels) for v in (mean, variance))
        weight, bias = self.weight.float(), self.bias.float()
        return F.batch_norm(input, mean, variance.clamp(min=0), weight, bias, eps=self.eps)


def parallelize_group_norms(module: nn.Module) -> None:
    """Replace the class of a module's group norms in place; they keep their weights."""
    for part in module.modules():
        if type(part) is nn.GroupNorm:
            part.__class__ = ParallelGroupNorm
