"""Networks that were trained by others, of pictures and of texts, whose features small heads are trained on."""
