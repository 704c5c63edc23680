"""The config of SDMatte_small with the model of model_variant.py in its place."""

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
