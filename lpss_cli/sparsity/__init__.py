"""The mathematics of sparsity: what is pruned, how much, when, and by which score."""
