/* Products of factors rounded to bfloat16, summed in float32.

   Both factors are copied as they are rounded, in pairs of neighbours along the inner dimension: the
   left one by rows (TILES, or DOTS of rows) or by pairs of rows (DOTS of columns), the right one as
   panels of pairs of rows, NR columns wide. Vectors (AVX512-BF16) sum pairs as float32 does single
   numbers; tiles (AMX) sum 16 x 32 by 32 x 16 at once. */

#include "gemm.h"

#ifdef __AVX512BF16__
#include <immintrin.h>

#define CHUNK 192               /* rows of A that are rounded together: a multiple of MR, of 32 */
#define COLUMNS 512             /* of B, likewise: a multiple of NR */
#define PIECE 384               /* longest sum of a piece */
#define PAIRS (PIECE / 2)
#define BY_ROWS (PAIRS + LANES) /* pairs of a row; rows must not share sets of the cache */

/* Two vectors as pairs of bfloat16, (a, b) for each element. */
INLINE __m512i pairs_of(__m512 a, __m512 b) {
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(b, a);
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                         23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, both);
}

INLINE __mmask16 first_of(long n) { return (__mmask16)((1u << least(16, n < 0 ? 0 : n)) - 1); }

/* 16 columns, of which `n` exist, of rows `k` and `k + 1`, of which `K` exist, as pairs. */
INLINE __m512i pair_rows(long n, long k, long K, const float *from, long step) {
  const __mmask16 some = first_of(n);
  return pairs_of(_mm512_maskz_loadu_ps(k < K ? some : 0, from + k * step),
                  _mm512_maskz_loadu_ps(k + 1 < K ? some : 0, from + (k + 1) * step));
}

/* A row's neighbours as pairs: `n` numbers, then zeros up to a whole vector. */
INLINE void pair_columns(long n, const float *from, uint32_t *to) {
  for (long i = 0; i < n; i += 32) {
    const __m512 a = _mm512_maskz_loadu_ps(first_of(n - i), from + i);
    const __m512 b = _mm512_maskz_loadu_ps(first_of(n - i - 16), from + i + 16);
    _mm512_storeu_si512(to + i / 2, (__m512i)_mm512_cvtne2ps_pbh(b, a));
  }
}

INLINE void transpose(__m512i r[16]) {
  __m512i t[16];
  UNROLL for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  UNROLL for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  UNROLL for (int j = 0; j < 4; j++) {
    t[j] = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88);
    t[4 + j] = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
    t[8 + j] = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
    t[12 + j] = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
  }
  UNROLL for (int j = 0; j < 8; j++) {
    r[j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0x88);
    r[8 + j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0xdd);
  }
}

/* `rows` columns of K rows of A as rows of pairs, zeros up to whole vectors. */
INLINE void pair_turned(long rows, long K, const float *from, long step, uint32_t *to) {
  for (long m = 0; m < rows; m += 16)
    for (long k = 0; k < K; k += 32) {
      __m512i pairs[16];
      UNROLL for (int i = 0; i < 16; i++)
        pairs[i] = pair_rows(rows - m, k + 2 * i, K, from + m, step);
      transpose(pairs);
      UNROLL for (int i = 0; i < 16; i++)
        _mm512_storeu_si512(to + (m + i) * BY_ROWS + k / 2, pairs[i]);
    }
}

INLINE void dots(const int mr, const int nv, long pairs, const uint32_t *A, long ra, long ka,
                 const uint32_t *B, float *C, long ldc, int add) {
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

#define DOTS_OF(mr) case mr: dots(mr, nv, pairs, A, ra, ka, B, C, ldc, add); return;
INLINE void dots_of(long mr, const int nv, long pairs, const uint32_t *A, long ra, long ka,
                    const uint32_t *B, float *C, long ldc, int add) {
  switch (mr) {
    DOTS_OF(1) DOTS_OF(2) DOTS_OF(3) DOTS_OF(4) DOTS_OF(5) DOTS_OF(6)
    DOTS_OF(7) DOTS_OF(8) DOTS_OF(9) DOTS_OF(10) DOTS_OF(11) DOTS_OF(12)
  }
}

#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

/* Linux gives a process the tiles' registers when it asks for them; its children have them too. */
static int tiles_allowed = 0;
__attribute__((constructor)) static void ask_for_tiles(void) {
  const long ask = 0x1023, tile_data = 18; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA */
  tiles_allowed = syscall(SYS_arch_prctl, ask, tile_data) == 0;
}

/* All eight tiles whole: 16 rows of 64 bytes. */
INLINE void begin_tiles(void) {
  struct {
    uint8_t palette, start, unused[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } shape = {.palette = 1};
  for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = 16;
  _tile_loadconfig(&shape);
}
INLINE void end_tiles(void) { _tile_release(); }

/* 16 or 32 rows by 16 or 32 columns. Tiles 0 to 3 sum, 4 and 5 are A's, 6 and 7 are B's. */
INLINE void whole_tiles(const int two_rows, const int two_columns, long pairs, const uint32_t *A,
                        const uint32_t *B, float *C, long ldc, int add) {
  const long a = BY_ROWS * 4, b = NR * 4, c = ldc * 4;
  if (add) {
    _tile_loadd(0, C, c);
    if (two_columns) _tile_loadd(1, C + 16, c);
    if (two_rows) _tile_loadd(2, C + 16 * ldc, c);
    if (two_rows && two_columns) _tile_loadd(3, C + 16 * ldc + 16, c);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (long k = 0; k < pairs; k += 16) {
    _tile_loadd(4, A + k, a);
    _tile_loadd(6, B + k * NR, b);
    _tile_dpbf16ps(0, 4, 6);
    if (two_columns) {
      _tile_loadd(7, B + k * NR + 16, b);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (two_rows) {
      _tile_loadd(5, A + 16 * BY_ROWS + k, a);
      _tile_dpbf16ps(2, 5, 6);
      if (two_columns) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, C, c);
  if (two_columns) _tile_stored(1, C + 16, c);
  if (two_rows) _tile_stored(2, C + 16 * ldc, c);
  if (two_rows && two_columns) _tile_stored(3, C + 16 * ldc + 16, c);
}

/* Up to 32 rows; those that do not fill a tile are summed aside. */
INLINE void tiles(long rows, const int two_columns, long pairs, const uint32_t *A,
                  const uint32_t *B, float *C, long ldc, int add) {
  float aside[16 * NR] __attribute__((aligned(64)));
  if (rows == 32) {
    whole_tiles(1, two_columns, pairs, A, B, C, ldc, add);
    return;
  }
  if (rows >= 16) {
    whole_tiles(0, two_columns, pairs, A, B, C, ldc, add);
    rows -= 16, A += 16 * BY_ROWS, C += 16 * ldc;
  }
  if (rows == 0) return;
  whole_tiles(0, two_columns, pairs, A, B, aside, NR, 0);
  for (long r = 0; r < rows; r++)
    for (int v = 0; v <= two_columns; v++) {
      vec sum = load(aside + r * NR + v * VW);
      if (add) sum += load(C + r * ldc + v * VW);
      store(C + r * ldc + v * VW, sum);
    }
}
#else
static const int tiles_allowed = 0;
INLINE void begin_tiles(void) {}
INLINE void end_tiles(void) {}
INLINE void tiles(long rows, const int two_columns, long pairs, const uint32_t *A,
                  const uint32_t *B, float *C, long ldc, int add) {
  (void)rows, (void)two_columns, (void)pairs, (void)A, (void)B, (void)C, (void)ldc, (void)add;
}
#endif

/* B's columns as pairs of rows, zeros up to whole tiles; panels of `words` numbers. */
INLINE void pair_panels(long K, long N, const float *B, long panel, long kb, long pairs, uint32_t *to,
                        long words) {
  for (long n = 0; n < N; n += NR) {
    const float *b = B + n / NR * panel;
    uint32_t *put = to + n / NR * words;
    for (long p = 0; p < pairs; p++)
      for (long i = 0; i < least(NR, N - n); i += 16)
        _mm512_storeu_si512(put + p * NR + i, pair_rows(N - n - i, 2 * p, K, b + i, kb));
  }
}

void pack_rounded(long K, long N, const float *W, long ldw, uint32_t *P) {
  const long pairs = round_up(K, 32) / 2;
  pair_panels(K, N, W, NR, ldw, pairs, P, pairs * NR);
}

void pack_transposed_rounded(long N, long K, const float *W, long ldw, uint32_t *P) {
  const long all = round_up(K, 32) / 2;
  for (long n = 0; n < N; n += 16)
    for (long k = 0; k < K; k += 32) {
      __m512i pairs[16];
      for (int i = 0; i < 16; i++) {
        const float *from = W + (n + i) * ldw + k;
        const __mmask16 low = n + i < N ? first_of(K - k) : 0;
        const __mmask16 high = n + i < N ? first_of(K - k - 16) : 0;
        pairs[i] = (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(high, from + 16),
                                                _mm512_maskz_loadu_ps(low, from));
      }
      transpose(pairs);
      for (int i = 0; i < 16; i++)
        _mm512_storeu_si512(P + n / NR * all * NR + (k / 2 + i) * NR + n % NR, pairs[i]);
    }
}

void product_rounded(int how, int by_rows, long M, long N, long K, const float *A, long step,
                     const float *B, long panel, long kb, float *C, long ldc, int add) {
  static _Thread_local uint32_t left[CHUNK * BY_ROWS] __attribute__((aligned(64)));
  static _Thread_local uint32_t right[PAIRS * COLUMNS] __attribute__((aligned(64)));
  const int tiled = how == TILES, turned = !by_rows && !tiled, packed = kb == PACKED;
  const long ra = turned ? 1 : BY_ROWS, ka = turned ? CHUNK : 1, height = tiled ? 32 : MR;
  const long words = packed ? round_up(K, 32) / 2 * NR : PAIRS * NR;
  if (tiled) begin_tiles();
  for (long k = 0; k < K; k += PIECE) {
    const long inner = least(PIECE, K - k);
    const long pairs = tiled ? round_up(inner, 32) / 2 : (inner + 1) / 2;
    for (long first = 0, columns; first < N; first += columns) {
      columns = packed ? N : least(COLUMNS, N - first);
      if (!packed)
        pair_panels(inner, columns, B + first / NR * panel + k * kb, panel, kb, pairs, right, words);
      for (long from = 0; from < M; from += CHUNK) {
        const long rows = least(CHUNK, M - from);
        if (by_rows) {
          for (long m = 0; m < rows; m++)
            pair_columns(inner, A + (from + m) * step + k, left + m * BY_ROWS);
        } else if (tiled) {
          pair_turned(rows, inner, A + k * step + from, step, left);
        } else {
          for (long p = 0; p < pairs; p++)
            for (long m = 0; m < rows; m += 16)
              _mm512_storeu_si512(left + p * CHUNK + m,
                                  pair_rows(rows - m, 2 * p, inner, A + k * step + from + m, step));
        }
        for (long n = 0; n < columns; n += NR) {
          const uint32_t *b = packed ? (const uint32_t *)B + k / 2 * NR : right;
          b += n / NR * words;
          for (long m = 0; m < rows; m += height) {
            const long some = least(height, rows - m);
            const uint32_t *a = left + m * ra;
            float *c = C + (from + m) * ldc + first + n;
            const int plus = add || k, two = columns - n >= NR;
            if (tiled && two)
              tiles(some, 1, pairs, a, b, c, ldc, plus);
            else if (tiled)
              tiles(some, 0, pairs, a, b, c, ldc, plus);
            else if (two)
              dots_of(some, 2, pairs, a, ra, ka, b, c, ldc, plus);
            else
              dots_of(some, 1, pairs, a, ra, ka, b, c, ldc, plus);
          }
        }
      }
    }
  }
  if (tiled) end_tiles();
}

/* On an Intel CPU vectors of pairs gained nothing over float32, and rounding came on top. */
EXPORT int etrm_bfloat16(void) {
  if (tiles_allowed) return TILES;
  return __builtin_cpu_is("intel") ? FLOAT32 : DOTS;
}
#else
void product_rounded(int how, int by_rows, long M, long N, long K, const float *A, long step,
                     const float *B, long panel, long kb, float *C, long ldc, int add) {
  (void)how, (void)by_rows, (void)M, (void)N, (void)K, (void)A, (void)step;
  (void)B, (void)panel, (void)kb, (void)C, (void)ldc, (void)add;
}
void pack_rounded(long K, long N, const float *W, long ldw, uint32_t *P) {
  (void)K, (void)N, (void)W, (void)ldw, (void)P;
}
void pack_transposed_rounded(long N, long K, const float *W, long ldw, uint32_t *P) {
  (void)N, (void)K, (void)W, (void)ldw, (void)P;
}
EXPORT int etrm_bfloat16(void) { return FLOAT32; }
#endif
