"""Training on detectron2."""
