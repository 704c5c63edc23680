"""AdamW as published: weight decay 0.1, none on norms."""

from detectron2.config import LazyCall as L
from detectron2.solver.build import get_default_optimizer_params

from SDMatte.engine.options import adamw

optimizer = L(adamw)(
    # params.model is set by the trainer.
    params=L(get_default_optimizer_params)(weight_decay_norm=0.0),
    lr=5e-5,
    betas=(0.9, 0.999),
    weight_decay=0.1,
    fused=True,  # one kernel for all parameters, in place of torch's loops
    eight_bit=False,  # True: its state in a quarter of the memory, by bitsandbytes
)
