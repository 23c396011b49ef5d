"""Readers of corpora as users have them, one file per layout."""
