"""The offline stage: a folder of audio becomes shards of codes."""
