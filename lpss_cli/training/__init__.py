"""TODO lpss_cli/training."""
