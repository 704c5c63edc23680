"""Inference: from images and prompts to mattes, cutouts and composites."""
