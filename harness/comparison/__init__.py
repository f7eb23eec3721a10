"""Two runs, or two sets of rows of one run, side by side: what changed, and whether that is a regression.

Data flows Record -> Side -> RowComparison -> Comparison -> markdown and exit code. Reads records; starts nothing.
"""
