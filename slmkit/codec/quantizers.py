"""Codebooks: nearest entries of latents, and what the entries stand for.

Shapes: B utterances, K codebooks, T frames, D width of the latents.

Invariant: `ResidualQuantizer`'s quantized latents are the sum of its tables' entries.

Example:
    codes, quantized = ResidualQuantizer(weights, 3).quantize(latents)  # [B, 3, T], [B, T, D] of [B, T, D]
"""

import torch
import torch.nn.functional as F

from slmkit.codec.weights import Weights


class Codebook:
    """One codebook with its projections.

    It projects a latent to a few numbers and takes the entry of nearest direction. What the entry stands for in the
    latent space does not depend on the input, so it is one table, computed once.
    """

    def __init__(self, weights: Weights) -> None:
        entries = weights["_codebook.weight"]
        self.weight, self.bias = weights["in_proj.weight"], weights["in_proj.bias"]
        self.directions = F.normalize(entries).T.contiguous()
        self.table = F.linear(entries, weights["out_proj.weight"], weights["out_proj.bias"])  # [entries, D]

    def nearest(self, latents: torch.Tensor) -> torch.Tensor:
        """Codes int64 [B, T] of latents [B, T, D].

        For unit vectors the smallest distance is the largest inner product, and the latent's length changes no order.
        """
        return (F.linear(latents, self.weight, self.bias) @ self.directions).argmax(dim=-1)


class ResidualQuantizer:
    """Codebooks of which each quantizes what the ones before left."""

    def __init__(self, weights: Weights, num_codebooks: int) -> None:
        self.codebooks = [Codebook(weights / f"layers.{i}") for i in range(num_codebooks)]

    def quantize(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes int64 [B, K, T] and their quantized latents [B, T, D] of latents [B, T, D]."""
        codes, quantized = [], torch.zeros_like(latents)
        for codebook in self.codebooks:
            codes.append(codebook.nearest(latents - quantized))
            quantized = quantized + F.embedding(codes[-1], codebook.table)
        return torch.stack(codes, dim=1), quantized


class EuclideanCodebook:
    """One codebook whose entries lie where the latents do."""

    def __init__(self, table: torch.Tensor) -> None:
        """`table`: float32 [entries, D]."""
        self.table, self._half_squares = table, table.square().sum(dim=1) / 2

    def nearest(self, latents: torch.Tensor) -> torch.Tensor:
        """Codes int64 [T] of latents [T, D]; the latent's own length changes no order."""
        return torch.addmm(self._half_squares, latents, self.table.T, alpha=-1).argmin(dim=1)
