"""ONNX files of a network: exported, encoded, quantized, checked and timed."""
