"""One file per method; each registers itself by being imported."""
