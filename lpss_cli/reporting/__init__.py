"""From a checkpoint to numbers: layers, Hoyer sparsity, FLOPs and sizes, and the HTML page."""
