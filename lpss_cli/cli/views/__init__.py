"""TODO lpss_cli/cli/views."""
