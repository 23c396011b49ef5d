"""Audio files in, mono float waves out."""
