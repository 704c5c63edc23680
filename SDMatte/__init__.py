"""SDMatte: interactive image matting with a one-step Stable Diffusion."""
