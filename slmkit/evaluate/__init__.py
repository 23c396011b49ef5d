"""Scores of generated speech."""
