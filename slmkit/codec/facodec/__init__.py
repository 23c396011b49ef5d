"""FACodec V2, the speech codec of NaturalSpeech 3 (arXiv 2403.03100)."""
