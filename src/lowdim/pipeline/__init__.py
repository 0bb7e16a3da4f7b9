"""What joins pruning, training and inference: stages that run one after the other on one model."""
