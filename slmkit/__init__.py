"""slmkit: train speech language models on codec codes with DeepSpeed.

Importing the package does nothing but define the version; each part is imported by its own name, for example
`from slmkit.data.vocab import VocabLayout`.
"""

__version__ = "0.5.0"
