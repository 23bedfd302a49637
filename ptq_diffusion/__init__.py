"""Post-training quantization of diffusion models, with the quantization noise measured and repaired."""

__version__ = "0.1.0"
