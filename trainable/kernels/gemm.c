/* The products of gemm.h. */

#include "gemm.h"

#define INNER 256

INLINE void tile(const int mr, const int nv, const int by_rows, long K, const float *A, long step,
                 const float *B, long kb, float *C, long ldc, int add) {
  const long ra = by_rows ? step : 1, ka = by_rows ? 1 : step;
  vec acc[MR][2];
  UNROLL for (int r = 0; r < mr; r++) UNROLL for (int v = 0; v < nv; v++)
    acc[r][v] = (vec){0};
  for (long k = 0; k < K; k++) {
    vec b[2];
    UNROLL for (int v = 0; v < nv; v++) b[v] = load(B + v * VW);
    UNROLL for (int r = 0; r < mr; r++) {
      const float a = A[r * ra];
      UNROLL for (int v = 0; v < nv; v++) acc[r][v] += b[v] * a;
    }
    A += ka;
    B += kb;
  }
  UNROLL for (int r = 0; r < mr; r++) UNROLL for (int v = 0; v < nv; v++) {
    float *to = C + r * ldc + v * VW;
    if (add) acc[r][v] += load(to);
    store(to, acc[r][v]);
  }
}

#define TILE(mr) case mr: tile(mr, nv, by_rows, K, A, step, B, kb, C, ldc, add); return;
INLINE void tile_of(long mr, const int nv, const int by_rows, long K, const float *A, long step,
                    const float *B, long kb, float *C, long ldc, int add) {
  switch (mr) {
    TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6)
#if MR == 12
    TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12)
#endif
  }
}

/* Long sums are cut in pieces: B's panel then stays in L1, and rounding errors stay small. */
INLINE void product(const int by_rows, long M, long N, long K, const float *A, long step,
                    const float *B, long panel, long kb, float *C, long ldc, int add) {
  const long block = by_rows ? step : 1, next = by_rows ? 1 : step;
  for (long n = 0; n < N; n += NR, B += panel)
    for (long k = 0; k < K; k += INNER)
      for (long m = 0; m < M; m += MR) {
        const long rows = least(MR, M - m), inner = least(INNER, K - k);
        const float *a = A + m * block + k * next, *b = B + k * kb;
        float *c = C + m * ldc + n;
        if (N - n >= NR)
          tile_of(rows, 2, by_rows, inner, a, step, b, kb, c, ldc, add || k);
        else
          tile_of(rows, 1, by_rows, inner, a, step, b, kb, c, ldc, add || k);
      }
}

#ifdef __AVX512BF16__
#include <immintrin.h>

#define CHUNK 192 /* rows of A that are rounded together: a multiple of MR */

static _Thread_local int rounded = 0;
void use_bfloat16(int on) { rounded = on; }

/* Two vectors as pairs of bfloat16, (a, b) for each element. */
INLINE __m512i pairs_of(__m512 a, __m512 b) {
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(b, a);
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                         23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, both);
}

/* Rows k and k + 1 of a matrix as pairs, `n` columns; the second row may be missing. */
INLINE void pair_rows(long n, const float *first, const float *second, uint32_t *to) {
  long i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512 b = second ? _mm512_loadu_ps(second + i) : _mm512_setzero_ps();
    _mm512_storeu_si512(to + i, pairs_of(_mm512_loadu_ps(first + i), b));
  }
  if (i < n) {
    const __mmask16 left = (__mmask16)((1u << (n - i)) - 1);
    const __m512 b = second ? _mm512_maskz_loadu_ps(left, second + i) : _mm512_setzero_ps();
    _mm512_mask_storeu_epi32(to + i, left,
                             pairs_of(_mm512_maskz_loadu_ps(left, first + i), b));
  }
}

/* A row's neighbours as pairs, `n` numbers. */
INLINE void pair_columns(long n, const float *from, uint32_t *to) {
  for (long i = 0; i < n; i += 32) {
    const long left = least(32, n - i), high = left > 16 ? left - 16 : 0;
    const __m512 a = _mm512_maskz_loadu_ps((__mmask16)((1u << least(16, left)) - 1), from + i);
    const __m512 b = _mm512_maskz_loadu_ps((__mmask16)((1u << high) - 1), from + i + 16);
    _mm512_mask_storeu_epi32(to + i / 2, (__mmask16)((1u << ((left + 1) / 2)) - 1),
                             (__m512i)_mm512_cvtne2ps_pbh(b, a));
  }
}

INLINE void tile_rounded(const int mr, const int nv, long pairs, const uint32_t *A, long ra,
                         long ka, const uint32_t *B, float *C, long ldc, int add) {
  __m512 acc[MR][2];
  UNROLL for (int r = 0; r < mr; r++) UNROLL for (int v = 0; v < nv; v++)
    acc[r][v] = _mm512_setzero_ps();
  for (long k = 0; k < pairs; k++) {
    __m512bh b[2];
    UNROLL for (int v = 0; v < nv; v++) b[v] = (__m512bh)_mm512_loadu_si512(B + v * VW);
    UNROLL for (int r = 0; r < mr; r++) {
      const __m512bh a = (__m512bh)_mm512_set1_epi32((int)A[r * ra]);
      UNROLL for (int v = 0; v < nv; v++) acc[r][v] = _mm512_dpbf16_ps(acc[r][v], a, b[v]);
    }
    A += ka;
    B += NR;
  }
  UNROLL for (int r = 0; r < mr; r++) UNROLL for (int v = 0; v < nv; v++) {
    float *to = C + r * ldc + v * VW;
    if (add) acc[r][v] = _mm512_add_ps(acc[r][v], _mm512_loadu_ps(to));
    _mm512_storeu_ps(to, acc[r][v]);
  }
}

#define ROUNDED(mr) case mr: tile_rounded(mr, nv, pairs, A, ra, ka, B, C, ldc, add); return;
INLINE void tile_of_rounded(long mr, const int nv, long pairs, const uint32_t *A, long ra, long ka,
                            const uint32_t *B, float *C, long ldc, int add) {
  switch (mr) {
    ROUNDED(1) ROUNDED(2) ROUNDED(3) ROUNDED(4) ROUNDED(5) ROUNDED(6)
    ROUNDED(7) ROUNDED(8) ROUNDED(9) ROUNDED(10) ROUNDED(11) ROUNDED(12)
  }
}

INLINE void product_rounded(const int by_rows, long M, long N, long K, const float *A, long step,
                            const float *B, long panel, long kb, float *C, long ldc, int add) {
  static _Thread_local uint32_t left[CHUNK * INNER / 2], right[INNER / 2 * NR];
  for (long k = 0; k < K; k += INNER)
    for (long from = 0; from < M; from += CHUNK) {
      const long inner = least(INNER, K - k), pairs = (inner + 1) / 2;
      const long rows = least(CHUNK, M - from);
      /* By rows a row of A lies together, else the rows of a pair do. */
      const long ra = by_rows ? INNER / 2 : 1, ka = by_rows ? 1 : CHUNK;
      if (by_rows) {
        for (long m = 0; m < rows; m++)
          pair_columns(inner, A + (from + m) * step + k, left + m * ra);
      } else {
        for (long p = 0; p < pairs; p++) {
          const float *first = A + (k + 2 * p) * step + from;
          pair_rows(rows, first, 2 * p + 1 < inner ? first + step : NULL, left + p * CHUNK);
        }
      }
      for (long n = 0; n < N; n += NR) {
        const float *b = B + n / NR * panel + k * kb;
        const long columns = least(NR, N - n);
        for (long p = 0; p < pairs; p++) {
          const float *first = b + 2 * p * kb;
          pair_rows(columns, first, 2 * p + 1 < inner ? first + kb : NULL, right + p * NR);
        }
        for (long m = 0; m < rows; m += MR) {
          const long some = least(MR, rows - m);
          float *c = C + (from + m) * ldc + n;
          if (columns == NR)
            tile_of_rounded(some, 2, pairs, left + m * ra, ra, ka, right, c, ldc, add || k);
          else
            tile_of_rounded(some, 1, pairs, left + m * ra, ra, ka, right, c, ldc, add || k);
        }
      }
    }
}

EXPORT int etrm_bfloat16(void) { return 1; }
#else
void use_bfloat16(int on) { (void)on; }
EXPORT int etrm_bfloat16(void) { return 0; }
#endif

void multiply(long M, long N, long K, const float *A, long lda, const float *B, long panel, long kb,
              float *C, long ldc, int add) {
#ifdef __AVX512BF16__
  if (rounded) {
    product_rounded(1, M, N, K, A, lda, B, panel, kb, C, ldc, add);
    return;
  }
#endif
  product(1, M, N, K, A, lda, B, panel, kb, C, ldc, add);
}

void multiply_transposed(long M, long N, long K, const float *A, long lda, const float *B,
                         long panel, long kb, float *C, long ldc, int add) {
#ifdef __AVX512BF16__
  if (rounded) {
    product_rounded(0, M, N, K, A, lda, B, panel, kb, C, ldc, add);
    return;
  }
#endif
  product(0, M, N, K, A, lda, B, panel, kb, C, ldc, add);
}

void pack(long K, long N, const float *W, long ldw, float *P) {
  for (long n = 0; n < N; n += NR)
    for (long k = 0; k < K; k++, P += NR)
      memcpy(P, W + k * ldw + n, (size_t)least(NR, N - n) * sizeof(float));
}

void pack_transposed(long N, long K, const float *W, long ldw, float *P) {
  const long padded = round_up(N, LANES);
  for (long n = 0; n < padded; n++) {
    float *to = P + n / NR * K * NR + n % NR;
    if (n < N) {
      const float *from = W + n * ldw;
      for (long k = 0; k < K; k++) to[k * NR] = from[k];
    } else {
      for (long k = 0; k < K; k++) to[k * NR] = 0.0f;
    }
  }
}

/* Floats of a vector: what the compiler made of -march=native. */
EXPORT int etrm_lanes(void) { return VW; }
