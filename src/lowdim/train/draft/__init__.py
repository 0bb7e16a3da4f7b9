"""Draft models for speculative decoding: trained for one target, and measured by what that target accepts."""
