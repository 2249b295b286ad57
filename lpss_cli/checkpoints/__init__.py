"""Files that hold networks: which kind one is, what it says, and whether it is safe to load."""
