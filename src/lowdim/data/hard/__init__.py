"""Multiple-choice questions made from data that has answers and no choices: the same ones on every machine."""
