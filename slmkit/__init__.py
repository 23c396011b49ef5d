"""slmkit: train speech language models on FACodec codes with DeepSpeed.

Importing the package does nothing but define the version; each part is imported by its own name, for example
`from slmkit.data.vocab import VocabLayout`.
"""

__version__ = "0.4.0"
