"""Labelled samples of the user's own: a folder of pictures, a table of texts, a data set object."""
