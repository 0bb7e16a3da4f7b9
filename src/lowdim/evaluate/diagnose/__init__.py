"""What each block of a model does to the hidden states, to the loss and to the gradient."""
