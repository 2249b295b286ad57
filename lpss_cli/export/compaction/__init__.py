"""TODO lpss_cli/export/compaction."""
