"""Recovery: training that makes a pruned model good again, block by block and end to end."""
