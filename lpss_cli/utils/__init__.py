"""TODO lpss_cli/utils."""
