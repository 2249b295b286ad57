"""Reading and writing networks, and checking that a file is safe to load."""
