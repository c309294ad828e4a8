"""Amplitudes of the distances between networks and limits, from the limit alone."""
