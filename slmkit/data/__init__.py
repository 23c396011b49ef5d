"""From shards of codes to batches: vocabulary, prompts, sequences, plan, loader."""
