"""Interactive use: pictures and prompts in, mattes and cut-outs out."""
