"""Files for other programs: made smaller, written, read back from disk and compared."""
