/* y[m, n] = sum over k of x[m, k] * w[n, k], for a few rows m of x and a large w, each row contiguous.
 *
 * w is read from memory once, in order and as it is, by two ways to fill vectors:
 *
 * - Up to FEW rows of x: with numbers along a row (`dots`), so that there are as many loads as numbers of w. Several rows
 *   of w at a time, each asked of memory far ahead: one alone is not read as fast as memory can.
 * - More: with rows of x side by side (`multiples`), for which `pack` first puts their numbers k together, for each k. A
 *   number of w is then multiplied with all of them, and no sum goes across a vector.
 *
 * Either sums a number of y in one order, whatever the other rows, the place of the row, and the threads; and up to FEW
 * and beyond FEW, whatever the number of rows. */

#include <string.h>

#ifdef __AVX512F__
#define LANES 16
#define SUMS 24 /* vectors that hold sums; the other registers are for numbers */
#define VECTORS 2 /* of rows of x at a time, in `multiples` */
#else
#define LANES 8
#define SUMS 12
#define VECTORS 1
#endif
#define FEW 4
#define COLUMNS 6 /* rows of w at a time, in `dots` */
#define SIDE 12 /* and in `multiples` */
#define BLOCK 64 /* rows of x that are packed at once: they stay in the second cache */
#define LINE 16 /* numbers of a line of cache */
#define AHEAD 512 /* numbers of each row of w that are asked of memory before their turn */
#define AHEAD_OF_MULTIPLES 96

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef unsigned int bits __attribute__((vector_size(4 * LANES)));
typedef unsigned short halves __attribute__((vector_size(2 * LANES)));

#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const float *from) {
    vec numbers;
    memcpy(&numbers, from, sizeof numbers);
    return numbers;
}

/* Numbers of w from number i on: float, or bfloat16, which is the upper half of one. */
INLINE vec load_weights(const void *w, long i, const int is_half) {
    if (!is_half) return load((const float *)w + i);
    halves upper;
    memcpy(&upper, (const unsigned short *)w + i, sizeof upper);
    return (vec)(__builtin_convertvector(upper, bits) << 16);
}

INLINE float weight(const void *w, long i, const int is_half) {
    if (!is_half) return ((const float *)w)[i];
    unsigned int upper = (unsigned int)((const unsigned short *)w)[i] << 16;
    float number;
    memcpy(&number, &upper, sizeof number);
    return number;
}

INLINE float total(vec sums) {
    float parts[LANES];
    memcpy(parts, &sums, sizeof parts);
    for (int half = LANES / 2; half; half /= 2)
        for (int j = 0; j < half; j++) parts[j] += parts[j + half];
    return parts[0];
}

/* Where the number AHEAD of number i of a row of w lies; behind the end of the row, that of the row of the next tile. */
INLINE long soon(long i, long ahead, long k, int columns) { return i + ahead + (i + ahead < k ? 0 : (columns - 1) * k); }

/* `rows` rows of x with `columns` rows of w from row c on, of which the first `skip` are not stored. The counts are known
 * to the compiler, which unrolls the loops over them. */
INLINE void dots(const float *x, const void *w, float *y, long c, long n, long k, int skip, const int rows,
                 const int columns, const int is_half) {
    vec sums[4][COLUMNS];
    memset(sums, 0, sizeof sums);
    long i = 0;
    for (; i + LANES <= k; i += LANES) {
        vec numbers[COLUMNS];
#pragma GCC unroll 6
        for (int j = 0; j < columns; j++) {
            long next = (c + j) * k + soon(i, AHEAD, k, columns);
            __builtin_prefetch((const char *)w + (is_half ? 2 : 4) * next);
            numbers[j] = load_weights(w, (c + j) * k + i, is_half);
        }
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            vec one = load(x + r * k + i);
#pragma GCC unroll 6
            for (int j = 0; j < columns; j++) sums[r][j] += one * numbers[j];
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 6
        for (int j = 0; j < columns; j++) {
            float sum = total(sums[r][j]);
            for (long rest = i; rest < k; rest++) sum += x[r * k + rest] * weight(w, (c + j) * k + rest, is_half);
            if (j >= skip) y[r * n + c + j] = sum;
        }
}

INLINE void all_dots(const float *x, const void *w, float *y, long m, long c, long n, long k, int skip,
                     const int columns, const int is_half) {
    long r = 0;
    if (columns == COLUMNS) { /* a tile of one row and one column is for few columns, and need not be fast */
        for (; r + 4 <= m && SUMS >= 4 * COLUMNS; r += 4) dots(x + r * k, w, y + r * n, c, n, k, skip, 4, columns, is_half);
        for (; r + 2 <= m; r += 2) dots(x + r * k, w, y + r * n, c, n, k, skip, 2, columns, is_half);
    }
    for (; r < m; r++) dots(x + r * k, w, y + r * n, c, n, k, skip, 1, columns, is_half);
}

/* Rows of x that are packed side by side, of m that are left. */
INLINE long width_of(long m) { return m > (VECTORS - 1) * LANES ? VECTORS * LANES : LANES; }

/* Numbers `start` to `stop` of all rows of x to where `multiples` reads them; lanes without a row are 0. */
static void pack(const float *x, float *packed, long m, long k, long start, long stop) {
    for (long first = 0; first < m; first += width_of(m - first)) {
        long width = width_of(m - first);
        float *to = packed + first * k;
        for (long lane = 0; lane < width; lane++)
            for (long i = start; i < stop; i++) to[i * width + lane] = first + lane < m ? x[(first + lane) * k + i] : 0;
    }
}

/* As `dots`, for `vectors` vectors of packed rows and SIDE columns. */
INLINE void multiples(const float *packed, const float *w, float *y, long m, long n, long k, int skip,
                      const int vectors) {
    vec sums[SIDE][VECTORS];
    memset(sums, 0, sizeof sums);
    for (long start = 0; start < k; start += LINE) {
#pragma GCC unroll 12
        for (int j = 0; j < SIDE; j++) __builtin_prefetch(w + j * k + soon(start, AHEAD_OF_MULTIPLES, k, SIDE));
        long stop = start + LINE < k ? start + LINE : k;
        for (long i = start; i < stop; i++) {
            vec numbers[VECTORS];
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++) numbers[v] = load(packed + (i * vectors + v) * LANES);
#pragma GCC unroll 12
            for (int j = 0; j < SIDE; j++)
#pragma GCC unroll 2
                for (int v = 0; v < vectors; v++) sums[j][v] += numbers[v] * w[j * k + i];
        }
    }
#pragma GCC unroll 12
    for (int j = 0; j < SIDE; j++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) {
            float lanes[LANES];
            memcpy(lanes, &sums[j][v], sizeof lanes);
            for (long lane = 0; j >= skip && lane < LANES && v * LANES + lane < m; lane++)
                y[(v * LANES + lane) * n + j] = lanes[lane];
        }
}

/* x float [m, k], w [n, k] of float or, up to FEW rows of x, bfloat16; y float [m, n]. Beyond FEW rows `packed` has room
 * for min(m, BLOCK) of them, rounded up to a multiple of 16. */
void multiply(const float *x, const void *w, float *y, float *packed, long m, long n, long k, int is_half, int threads) {
    int is_few = m <= FEW || n < SIDE;
    long columns = !is_few ? SIDE : n < COLUMNS ? 1 : COLUMNS;
    for (long first = 0; first < m; first += BLOCK) {
        long rows = m - first < BLOCK ? m - first : BLOCK;
        const float *here = x + first * k;
        float *out = y + first * n;
#pragma omp parallel num_threads(threads)
        {
            if (!is_few) {
#pragma omp for schedule(static)
                for (long start = 0; start < k; start += LINE)
                    pack(here, packed, rows, k, start, start + LINE < k ? start + LINE : k);
            }
#pragma omp for schedule(static)
            for (long c = 0; c < n; c += columns) {
                /* The last tile is a whole one, too, and leaves out what the one before it has. */
                long at = c + columns <= n ? c : n - columns;
                int skip = c - at;
                if (!is_few)
                    for (long r = 0; r < rows; r += width_of(rows - r))
                        if (width_of(rows - r) == LANES)
                            multiples(packed + r * k, (const float *)w + at * k, out + r * n + at, rows - r, n, k, skip, 1);
                        else
                            multiples(packed + r * k, (const float *)w + at * k, out + r * n + at, rows - r, n, k, skip,
                                      VECTORS);
                else if (columns == 1)
                    is_half ? all_dots(here, w, out, rows, at, n, k, skip, 1, 1)
                            : all_dots(here, w, out, rows, at, n, k, skip, 1, 0);
                else
                    is_half ? all_dots(here, w, out, rows, at, n, k, skip, COLUMNS, 1)
                            : all_dots(here, w, out, rows, at, n, k, skip, COLUMNS, 0);
            }
        }
    }
}
