"""After training: stream through the blocks, collect statistics, allocate, mask, repair."""
