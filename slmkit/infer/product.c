/* y[m, n] = sum over k of x[m, k] * w[n, k], for a few rows m of x and a large w, each row contiguous.
 *
 * w is read from memory once, three rows at a time, which stay in the first cache while all rows of x are multiplied
 * with them. Each number of y is summed in one order, whatever the number of rows and of threads: 8 running sums, added
 * up at the end. The tiles are as large as 16 vector registers allow. */

#include <string.h>

#define LANES 8
#define ROWS 4
#define COLUMNS 3
#define AHEAD 128 /* numbers of w that are asked of memory before their turn */

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int order __attribute__((vector_size(4 * LANES)));

static inline vec load(const float *from) {
    vec numbers;
    memcpy(&numbers, from, sizeof numbers);
    return numbers;
}

static inline float total(vec v) {
    v += __builtin_shuffle(v, (order){4, 5, 6, 7, 0, 1, 2, 3});
    v += __builtin_shuffle(v, (order){2, 3, 0, 1, 6, 7, 4, 5});
    v += __builtin_shuffle(v, (order){1, 0, 3, 2, 5, 4, 7, 6});
    return v[0];
}

/* `rows` rows of x with `columns` rows of w; both are known to the compiler, which unrolls the loops over them. */
static inline __attribute__((always_inline)) void tile(const float *x, const float *w, float *y, long n, long k,
                                                       const int rows, const int columns) {
    vec sums[ROWS][COLUMNS];
    memset(sums, 0, sizeof sums);
    long i = 0;
    for (; i + LANES <= k; i += LANES) {
        vec wide[COLUMNS];
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) {
            __builtin_prefetch(w + c * k + i + AHEAD);
            wide[c] = load(w + c * k + i);
        }
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            vec one = load(x + r * k + i);
#pragma GCC unroll 4
            for (int c = 0; c < columns; c++) sums[r][c] += one * wide[c];
        }
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) {
            float sum = total(sums[r][c]);
            for (long j = i; j < k; j++) sum += x[r * k + j] * w[c * k + j];
            y[r * n + c] = sum;
        }
}

static inline __attribute__((always_inline)) void all_rows(const float *x, const float *w, float *y, long m, long n,
                                                           long k, const int columns) {
    long r = 0;
    for (; r + ROWS <= m; r += ROWS) tile(x + r * k, w, y + r * n, n, k, ROWS, columns);
    switch (m - r) {
        case 3: tile(x + r * k, w, y + r * n, n, k, 3, columns); break;
        case 2: tile(x + r * k, w, y + r * n, n, k, 2, columns); break;
        case 1: tile(x + r * k, w, y + r * n, n, k, 1, columns); break;
    }
}

/* x float [m, k], w float [n, k], y float [m, n]. */
void multiply(const float *x, const float *w, float *y, long m, long n, long k, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long c = 0; c < n / COLUMNS; c++)
        all_rows(x, w + c * COLUMNS * k, y + c * COLUMNS, m, n, k, COLUMNS);
    for (long c = n - n % COLUMNS; c < n; c++) all_rows(x, w + c * k, y + c, m, n, k, 1);
}
