"""AdamW as published, with a weight decay of 0.1 except on norms."""

from detectron2.config import LazyCall as L
from detectron2.solver.build import get_default_optimizer_params

from SDMatte.engine.options import adamw

optimizer = L(adamw)(
    params=L(get_default_optimizer_params)(weight_decay_norm=0.0),  # the trainer adds the model
    lr=5e-5,
    betas=(0.9, 0.999),
    weight_decay=0.1,
    fused=True,  # one kernel updates all parameters
    eight_bit=False,  # True: bitsandbytes' AdamW, whose state takes a quarter of the memory
)
