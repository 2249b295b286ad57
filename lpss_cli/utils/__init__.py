"""Helpers that know nothing of sparsity: files, signals, seeds, arrays, processes, PyTorch."""
