"""Gates: head against base, measured side by side or against a stored baseline, with the verdict as the exit code.

Data flows REF -> Tree -> rows NAME@base and NAME@head -> one run -> `harness.comparison`. docs/gating.md is for users.
"""
