"""What the graph of a mask looks like: distances, spectra, paths."""
