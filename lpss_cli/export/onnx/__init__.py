"""TODO lpss_cli/export/onnx."""
