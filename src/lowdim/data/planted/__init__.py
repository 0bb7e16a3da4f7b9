"""Data with a bias that is known, because it was planted: pictures with colours and textures, texts with a word."""
