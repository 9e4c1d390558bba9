/* Small matrix products: C (+)= A B with everything in a core's cache.

   A register tile of MR x NR stays in registers while the inner dimension runs. A is read one
   number at a time, by rows (ka = 1) or by columns (ra = 1, its transpose); B one vector at a time,
   in panels of NR columns: element (k, n) at B[n / NR * panel + k * kb + n % NR]. A row-major
   matrix is panel = NR, kb = its width; `pack` and `pack_transposed` make panels for
   `multiply_packed`. N must be a multiple of LANES.

   After `use_bfloat16(DOTS)` or `(TILES)` factors of the calling thread's products are rounded to
   bfloat16 and their products summed in float32 (rounded.c). */

#ifndef ETRM_GEMM_H
#define ETRM_GEMM_H

#include "vector.h"

#define INNER 256 /* longest sum of a piece: long sums are cut */

/* How factors are rounded: not at all, for instructions on vectors of pairs, for those on tiles. */
enum { FLOAT32 = 0, DOTS = 1, TILES = 2 };

/* What products of this thread do from now on; only what `etrm_bfloat16` names, or less. */
void use_bfloat16(int how);

/* The quickest way of this processor, FLOAT32 where none is quicker. */
int etrm_bfloat16(void);

/* C (+)= A B as `multiply` and, not by_rows, `multiply_transposed`; kb PACKED: B is packed. */
enum { PACKED = 0 };
void product_rounded(int how, int by_rows, long M, long N, long K, const float *A, long step,
                     const float *B, long panel, long kb, float *C, long ldc, int add);

/* C (M, N) (+)= A (M, K) B, A with row stride lda. */
void multiply(long M, long N, long K, const float *A, long lda, const float *B, long panel, long kb,
              float *C, long ldc, int add);

/* C (M, N) (+)= Aᵀ B for A (K, M) with row stride lda. */
void multiply_transposed(long M, long N, long K, const float *A, long lda, const float *B,
                         long panel, long kb, float *C, long ldc, int add);

/* C (M, N) (+)= A (M, K) B with B's panels in P. */
void multiply_packed(long M, long N, long K, const float *A, long lda, const float *P, float *C,
                     long ldc, int add);

/* Panels of W (K, N) with row stride ldw. */
void pack(long K, long N, const float *W, long ldw, float *P);
void pack_rounded(long K, long N, const float *W, long ldw, uint32_t *P);

/* Panels of Wᵀ for W (N, K) with row stride ldw: N is padded with zeros to a multiple of LANES. */
void pack_transposed(long N, long K, const float *W, long ldw, float *P);
void pack_transposed_rounded(long N, long K, const float *W, long ldw, uint32_t *P);

/* Tokens whose part of `weights` sums is added at once, a multiple of `tile`: sums that do not stay in
   L2 pass through memory less often. */
INLINE long spanned(long weights, long tile) { return weights > (1 << 18) ? 4 * tile : tile; }

/* Floats of such panels. */
INLINE long packed(long N, long K) { return round_up(N, NR) * (K < LANES ? LANES : K); }

#endif
