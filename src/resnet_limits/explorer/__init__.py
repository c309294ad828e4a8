"""The explorer: one page that shows every cell of an experiment, and the table behind it.

`cells` brings the distances of an experiment, their states, standard errors and predictions into
one form; `packing` writes columns of numbers as short texts; `charts` holds the Vega-Lite
specifications; `page` puts all of it into one HTML file.
"""
