"""The page that tells of an experiment: from plain values to one HTML text; it reads no file."""
