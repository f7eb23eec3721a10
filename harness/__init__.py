"""Measures large-vocabulary loss implementations: time, peak memory, agreement. `python -m harness --help`."""

__version__ = "0.1.0"
