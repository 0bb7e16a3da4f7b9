"""The front: which compressed form of a model is worth deploying on this machine."""
