"""What a network costs: products, memory."""
