"""At inference: sparse layers, whole-step decoding, serving and measuring on a CPU."""
