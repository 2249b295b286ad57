"""From a checkpoint to numbers: layers, Hoyer sparsity, histograms, FLOPs and sizes, and their page."""
