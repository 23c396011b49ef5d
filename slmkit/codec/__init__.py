"""Waves to codes and back: the codec interface and the codecs behind it."""
