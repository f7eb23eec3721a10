"""Running a suite: its cases, the workers of a case and their rounds, and what is written down of them."""
