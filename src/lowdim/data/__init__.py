"""Text, tokens and tasks: calibration sets, evaluation windows and the store of downloaded assets."""
