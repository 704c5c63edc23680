"""A local web page for interactive matting; needs gradio."""
