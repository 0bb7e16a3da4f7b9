"""The residual steps of a decoder's blocks: found in any class of Transformers, changed, remembered and folded."""
