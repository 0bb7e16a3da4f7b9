"""`lowdim stress`: the hard tasks over a grid of sparsities, and what may be said of each."""
