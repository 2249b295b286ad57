"""Tables and panels of results, for people."""
