"""A model and its codec as a small HTTP server."""
