"""The infinite-size limits: quadrature over units, collocation in depth, one causal solver."""
