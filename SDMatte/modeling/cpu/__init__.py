"""Faster, leaner and more precise autoencoders on CPUs; see docs/cpu.md."""

from SDMatte.modeling.cpu.autoencoder import optimize_for_cpu, undo_optimization
from SDMatte.modeling.cpu.bands import encode_bands

__all__ = ["encode_bands", "optimize_for_cpu", "undo_optimization"]
