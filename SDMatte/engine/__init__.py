"""Training, built on detectron2."""
