"""What samples can and cannot say: intervals, verdicts, signs of a measurement gone wrong. See docs/statistics.md.

Data flows Record -> Turns -> Interval -> Verdict or Finding. Nothing here imports torch or reads a clock.
"""
