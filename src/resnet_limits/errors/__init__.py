"""Distances between networks and limits, the rates fitted to them, and shapes for a budget."""
