"""A web page for interactive matting, on this machine; needs gradio."""
