"""Speaker vectors of waves, for codecs that have none of their own and for comparing voices."""
