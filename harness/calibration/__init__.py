"""Calibration of a language-model head: errors, temperature, reliability, entropy bound; see docs/calibration.md.

What measures imports torch: head, tokens, binning, classwise, metrics, temperature, measured_entropy. What reads
numbers and draws them does not: bins, row, reliability, figure_file, entropy_bound, entropy_figure.
"""
