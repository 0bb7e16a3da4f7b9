"""Facts: what a model is to be taught, to forget and to keep, from files or built in."""
