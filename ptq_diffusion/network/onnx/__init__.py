"""Quantized networks as ONNX graphs of integers, QuantizeLinear and DequantizeLinear; needs the extra `[onnx]`."""
