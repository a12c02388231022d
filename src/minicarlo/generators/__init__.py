"""Generator networks, one file each; they need PyTorch, which whoever only generates does not."""
