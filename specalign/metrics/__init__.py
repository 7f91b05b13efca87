"""Figures as pure functions of generation records; docs/metrics.md is their specification."""

METRICS_VERSION = "6"
"""Raised whenever the definition of a figure changes; results of different versions are not compared."""
