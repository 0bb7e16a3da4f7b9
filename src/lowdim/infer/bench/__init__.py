"""Dense against sparse on this machine: layers, whole models, and what the memory can deliver."""
