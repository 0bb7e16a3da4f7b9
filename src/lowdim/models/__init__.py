"""What lowdim knows about networks: checkpoints in and out, blocks, prunable layers."""
