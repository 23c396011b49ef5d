"""The anti-aliased Snake activation and the convolutional stages around it, which FACodec and BigCodec share."""

FILTER_TAPS = 12  # of the anti-aliasing low-pass
FILTER_CUTOFF = 0.25  # of the doubled sample rate
FILTER_HALF_WIDTH = 0.3  # of its transition band
SNAKE_EPSILON = 1e-9
KERNEL = 7  # taps of the wide convolutions
DILATIONS = (1, 3, 9)  # of a stage's residual units


def padding_of(stride: int) -> int:
    """Zeros at each end of a strided or transposed convolution of 2 * stride taps."""
    return stride // 2 + stride % 2
