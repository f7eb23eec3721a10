"""Tail-corrected gradients: compute few tiles of the logit gradient, model the rest. See gradients.py."""
