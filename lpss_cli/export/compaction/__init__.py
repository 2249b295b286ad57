"""Exact removal of dead units from a network."""
