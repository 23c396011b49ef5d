"""The speech language model: backbone, heads, losses."""
