"""Small networks to train and to test on."""
