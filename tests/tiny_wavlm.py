"""A tiny WavLM with an x-vector head and random weights, as published ones lie on disk."""

from pathlib import Path

import torch
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

WIDTH = 20  # of its vectors


def write_wavlm(path: Path) -> Path:
    torch.manual_seed(0)
    config = WavLMConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        tdnn_dim=(16, 16, 16, 16, 24),
        xvector_output_dim=WIDTH,
        num_labels=3,
        use_weighted_layer_sum=True,
        feat_extract_norm="layer",  # group norm would hide whether waves are normalized
        conv_bias=True,
    )
    model = WavLMForXVector(config)
    with torch.no_grad():
        for weight in model.parameters():  # larger than usual, so that mistakes show
            weight.add_(0.2 * torch.randn_like(weight))
    model.save_pretrained(path)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(path)
    return path
