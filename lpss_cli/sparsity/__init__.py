"""TODO lpss_cli/sparsity."""
