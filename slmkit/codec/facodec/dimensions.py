"""The sizes of FACodec V2 (NaturalSpeech 3, arXiv 2403.03100): numbers only, nothing computed from weights or audio."""

import math

SAMPLE_RATE = 16000  # Hz
ENCODER_STRIDES = (2, 4, 5, 5)
DECODER_STRIDES = (5, 5, 4, 2)
HOP = math.prod(ENCODER_STRIDES)  # samples per frame
LATENT = 256  # width of latents, transformers and speaker vector
ENCODER_LAST_KERNEL = 3

FFT = 1024  # samples
WINDOW = 800  # samples
MEL_BANDS_USED = 20  # the lowest; they carry the prosody
MEL_PADDING = (FFT - HOP) // 2  # samples reflected at each end
MAGNITUDE_EPSILON = 1e-9
MEL_FLOOR = 1e-5

LAYERS = 4  # of each transformer
HEADS = 4
FEED_FORWARD_KERNEL = 5

CODEBOOK_SIZE = 1024
CODEBOOKS = (1, 2, 3)  # of the quantizers for prosody, content and detail
