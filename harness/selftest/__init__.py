"""`python -m harness selftest`: implementations that are wrong in one way each, and whether the harness says so."""
