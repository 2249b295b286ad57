"""The commands. Each parses, calls one library function and prints what it returned."""
