"""LpSGD: the optimizer, its rules, and one step in PyTorch's operations or in machine code."""
