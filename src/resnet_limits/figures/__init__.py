"""Figures drawn from stored datasets."""
