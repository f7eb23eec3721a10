"""Adapters: every implementation of the linear cross-entropy behind one contract."""
