"""Drawing of images: sampling to the end, chunk by chunk, of the float, the quantized or the corrected model."""
