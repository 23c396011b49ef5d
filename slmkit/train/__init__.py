"""The training loop on the DeepSpeed engine."""
