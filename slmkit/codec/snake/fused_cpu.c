/* y + height * sin(y)^2 with y = alpha * x, at twice the rate of x, divided by alpha: the activation of activation.py.
 *
 * A row is one channel of one utterance. A run of its positions is computed at a time, so that all values between the
 * input and the output stay in the first cache. Every loop over lanes has a fixed length: the compiler makes vectors of
 * the whole of it, and a position is computed in the same way wherever it stands in its run.
 *
 * Angles are counted in half turns, t = y / pi, because sin(y)^2 has a period of one half turn and t - rint(t) is exact,
 * however large t is. */

#include <math.h>
#include <string.h>

#define PI 3.14159265358979324f
#define TAPS 12
#define HALF (TAPS / 2)
#define REACH (TAPS / 4)          /* positions to each side of an output whose values at twice the rate it sums */
#define LANES 256                 /* positions at which both values at twice the rate are computed */
#define RUN (LANES - 2 * REACH)   /* outputs of a run */
#define SEEN (LANES + 2 * REACH)  /* inputs of a run */
#define PADDED (LANES + TAPS)     /* the last lanes sum zeros from there; no output comes of it */

/* sin(pi * r) for r in [-0.5, 0.5] is r * (C1 + C3 * r^2 + ...) to 8e-9, the least that five terms can err by with
 * each coefficient rounded to float before the next was fitted. */
#define C1 3.1415925f
#define C3 -5.1677022f
#define C5 2.54995775f
#define C7 -0.597625196f
#define C9 0.0764328912f

static inline float sine_squared(float t) {
    float r = t - rintf(t), s = r * r;
    float sine = r * (C1 + s * (C3 + s * (C5 + s * (C7 + s * C9))));
    return sine * sine;
}

/* Every second value at twice the rate, in half turns: sums of `taps` and six inputs, then the sine of them. */
static inline void doubled(const float *restrict in, const float *restrict taps, float bump, float *restrict values) {
    for (int n = 0; n < LANES; n++) {
        float t = taps[0] * in[n];
#pragma GCC unroll 6
        for (int i = 1; i < HALF; i++) t += taps[i] * in[n + i];
        values[n] = t + bump * sine_squared(t);
    }
}

static inline void halved(const float *restrict even, const float *restrict odd, const float *restrict taps, float gain,
                          float *restrict out) {
    for (int n = 0; n < LANES; n++) {
        float total = taps[0] * odd[n] + taps[1] * even[n + 1];
#pragma GCC unroll 6
        for (int i = 1; i < HALF; i++) total += taps[2 * i] * odd[n + i] + taps[2 * i + 1] * even[n + 1 + i];
        out[n] = total * gain;
    }
}

/* Outputs from position `first` on of a row x of `count` positions; there are `first` + 1 at least. */
static void activate_run(const float *x, float *out, long first, long count, float alpha, float height,
                         const float *even_taps, const float *odd_taps, const float *down_taps) {
    float in[SEEN], even[PADDED], odd[PADDED], outputs[LANES];
    const float scale = alpha / PI;
    const long start = first - 2 * REACH; /* position of in[0]; beyond its ends, a row repeats its last value */
    const long before = start < 0 ? -start : 0, until = count - start < SEEN ? count - start : SEEN;
    for (long n = 0; n < before; n++) in[n] = scale * x[0];
    for (long n = before; n < until; n++) in[n] = scale * x[start + n];
    for (long n = until; n < SEEN; n++) in[n] = scale * x[count - 1];
    doubled(in, even_taps, height / PI, even);
    doubled(in + 1, odd_taps, height / PI, odd);
    const long left = first - REACH; /* position of even[0] and odd[0]; so does the row at twice the rate */
    for (long n = 0; n < -left; n++) even[n] = odd[n] = even[-left];
    for (long n = count - left; n < LANES; n++) even[n] = odd[n] = odd[count - left - 1];
    for (long n = LANES; n < PADDED; n++) even[n] = odd[n] = 0;
    halved(even, odd, down_taps, PI / alpha, outputs);
    memcpy(out, outputs, sizeof(float) * (count - first < RUN ? count - first : RUN));
}

/* x [batch, channels, length] of the given strides, each row contiguous; out [batch, channels, length + 2 * margin];
 * alpha, height [channels]; up, down [TAPS]; counts [batch], or NULL where every utterance has `length` positions. */
void activate(const float *x, float *out, const float *alpha, const float *height, const float *up, const float *down,
              const long *counts, long batch, long channels, long length, long margin, long batch_stride,
              long channel_stride, int threads) {
    float even_taps[HALF], odd_taps[HALF];
    for (int i = 0; i < HALF; i++) {
        even_taps[i] = 2 * up[TAPS - 1 - 2 * i];
        odd_taps[i] = 2 * up[TAPS - 2 - 2 * i];
    }
    const long runs = length > RUN ? (length + RUN - 1) / RUN : 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long piece = 0; piece < batch * channels * runs; piece++) {
        const long row = piece / runs, run = piece % runs, utterance = row / channels, channel = row % channels;
        const long count = counts ? counts[utterance] : length, first = run * RUN;
        float *to = out + row * (length + 2 * margin);
        if (run == 0) memset(to, 0, sizeof(float) * margin);
        if (run == runs - 1) memset(to + margin + count, 0, sizeof(float) * (length - count + margin));
        if (first < count)
            activate_run(x + utterance * batch_stride + channel * channel_stride, to + margin + first, first, count,
                         alpha[channel], height[channel], even_taps, odd_taps, down);
    }
}
