"""Checkpoints to directories that `from_pretrained` loads."""
