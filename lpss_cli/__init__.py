"""Placeholder until the API is wired."""

from lpss_cli.version import __version__ as __version__
