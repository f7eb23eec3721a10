"""The side of the harness that imports torch: one process per implementation and case, driven over a pipe."""
