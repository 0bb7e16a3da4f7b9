"""Dynamic sparse training: methods that say when and how the masks of a network in training move."""
