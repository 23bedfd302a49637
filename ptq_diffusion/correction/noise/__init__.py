"""What is measured of the quantization noise."""
