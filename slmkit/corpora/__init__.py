"""Readers of corpora as users have them, one file per layout. Importing this package enters them in `layouts`."""

from slmkit.corpora import emilia, kaldi, librispeech, libritts, manifest, parquet

__all__ = ["emilia", "kaldi", "librispeech", "libritts", "manifest", "parquet"]
