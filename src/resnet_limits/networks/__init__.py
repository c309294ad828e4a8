"""Finite networks: explicit forward and backward passes, no autograd graph."""
