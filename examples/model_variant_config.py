"""The config SDMatte_small with its model replaced by the one in model_variant.py."""

from ..configs.SDMatte_small import (  # noqa: F401
    criterion,
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    test,
    train,
)

model._target_ = "model_variant.CorrectedSDMatte"
train.output_dir = "output/examples/variant"
train.max_iter = 20
train.evaluations = 0
