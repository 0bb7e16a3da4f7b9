"""The page of a diagnosis: what each block does, for one model or for several side by side."""
