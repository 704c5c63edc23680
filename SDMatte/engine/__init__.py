"""Training and testing on detectron2."""
