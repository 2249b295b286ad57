"""TODO lpss_cli/report."""
