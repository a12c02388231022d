"""Training: from event sets to a surrogate. Needs PyTorch (the extra `train`)."""
