"""LpSGD, the optimizer on Lp spheres: its options and state, one step, and shards of rows."""
