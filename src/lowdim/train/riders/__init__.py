"""What acts around the steps of any optimizer, without masks: one class each."""
