"""Amplitudes of the distance from the limit, from the limit alone (docs/concepts/amplitudes.md)."""
