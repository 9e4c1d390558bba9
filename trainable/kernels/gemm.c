/* The products of gemm.h. */

#include "gemm.h"

INLINE void tile(const int mr, const int nv, const int by_rows, long K, const float *A, long step,
                 const float *B, long kb, float *C, long ldc, int add) {
  const long ra = by_rows ? step : 1, ka = by_rows ? 1 : step;
  vec acc[MR][2];
  UNROLL for (int r = 0; r < mr; r++) UNROLL for (int v = 0; v < nv; v++)
    acc[r][v] = (vec){0};
  for (long k = 0; k < K; k++) {
    vec b[2];
    UNROLL for (int v = 0; v < nv; v++) {
      b[v] = load(B + v * VW);
      __builtin_prefetch(B + v * VW + K * NR, 0, 2); /* what follows in packed panels: to L2 */
    }
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

/* Long sums are cut in pieces: B's panel then stays in L1, and rounding errors stay small.
   Row m of A's side begins at A[m * block]. */
INLINE void product(const int by_rows, long M, long N, long K, const float *A, long step, long block,
                    const float *B, long panel, long kb, float *C, long ldc, int add) {
  const long next = by_rows ? 1 : step;
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

static _Thread_local int rounded = FLOAT32;
void use_bfloat16(int how) { rounded = how <= etrm_bfloat16() ? how : FLOAT32; }

void multiply(long M, long N, long K, const float *A, long lda, const float *B, long panel, long kb,
              float *C, long ldc, int add) {
  if (rounded)
    product_rounded(rounded, 1, M, N, K, A, lda, B, panel, kb, C, ldc, add);
  else
    product(1, M, N, K, A, lda, lda, B, panel, kb, C, ldc, add);
}

#define CHUNK 384   /* rows of Aᵀ that are copied together: a multiple of MR */
#define COLUMNS 512 /* of B, likewise: a multiple of NR */
#define APART 512   /* floats from row to row of A from which on its columns are copied */
#define AGAIN 256   /* columns of B from which on they are read often enough to be */

/* Columns of A as panels of MR. */
INLINE void pack_columns(long M, long K, const float *A, long step, float *P) {
  for (long m = 0; m < M; m += MR)
    for (long k = 0; k < K; k++, P += MR)
      if (M - m >= MR)
        memcpy(P, A + k * step + m, MR * sizeof(float));
      else
        memcpy(P, A + k * step + m, (size_t)(M - m) * sizeof(float));
}

/* C (+)= Aᵀ B where rows of A lie far apart: a tile that reads them in place touches a page per row
   and uses a part of each cache line, so A and B are copied in pieces, A's to L2. */
static void product_of_copies(long M, long N, long K, const float *A, long step, const float *B,
                              long panel, long kb, float *C, long ldc, int add) {
  static _Thread_local float left[CHUNK * INNER] __attribute__((aligned(64)));
  static _Thread_local float right[INNER * COLUMNS] __attribute__((aligned(64)));
  for (long k = 0; k < K; k += INNER) {
    const long inner = least(INNER, K - k);
    for (long first = 0; first < N; first += COLUMNS) {
      const long columns = least(COLUMNS, N - first);
      for (long n = 0; n < columns; n += NR)
        pack(inner, least(NR, columns - n), B + (first + n) / NR * panel + k * kb, kb, right + n * inner);
      for (long from = 0; from < M; from += CHUNK) {
        const long rows = least(CHUNK, M - from);
        pack_columns(rows, inner, A + k * step + from, step, left);
        product(0, rows, columns, inner, left, MR, inner, right, inner * NR, NR, C + from * ldc + first,
                ldc, add || k);
      }
    }
  }
}

void multiply_transposed(long M, long N, long K, const float *A, long lda, const float *B,
                         long panel, long kb, float *C, long ldc, int add) {
  if (rounded)
    product_rounded(rounded, 0, M, N, K, A, lda, B, panel, kb, C, ldc, add);
  else if (lda >= APART && N >= AGAIN)
    product_of_copies(M, N, K, A, lda, B, panel, kb, C, ldc, add);
  else
    product(0, M, N, K, A, lda, 1, B, panel, kb, C, ldc, add);
}

void multiply_packed(long M, long N, long K, const float *A, long lda, const float *P, float *C,
                     long ldc, int add) {
  if (rounded)
    product_rounded(rounded, 1, M, N, K, A, lda, P, 0, PACKED, C, ldc, add);
  else
    product(1, M, N, K, A, lda, lda, P, K * NR, NR, C, ldc, add);
}

void pack(long K, long N, const float *W, long ldw, float *P) {
  if (rounded) {
    pack_rounded(K, N, W, ldw, (uint32_t *)P);
    return;
  }
  for (long n = 0; n < N; n += NR)
    for (long k = 0; k < K; k++, P += NR)
      memcpy(P, W + k * ldw + n, (size_t)least(NR, N - n) * sizeof(float));
}

void pack_transposed(long N, long K, const float *W, long ldw, float *P) {
  if (rounded) {
    pack_transposed_rounded(N, K, W, ldw, (uint32_t *)P);
    return;
  }
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
