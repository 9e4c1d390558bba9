/* Small matrix products: C (+)= A B with everything in a core's cache.

   A register tile of MR x NR stays in registers while the inner dimension runs. A is read one
   number at a time, by rows (ka = 1) or by columns (ra = 1, its transpose); B one vector at a time,
   in panels of NR columns: element (k, n) at B[n / NR * panel + k * kb + n % NR]. A row-major
   matrix is panel = NR, kb = its width; `pack_transposed` makes panels of a matrix's transpose.
   N must be a multiple of LANES.

   After `use_bfloat16(1)` factors of the calling thread's products are rounded to bfloat16 and their
   products summed in float32, where the processor has an instruction for it: twice the speed. */

#ifndef ETRM_GEMM_H
#define ETRM_GEMM_H

#include "vector.h"

/* Whether products of this thread round their factors to bfloat16, from now on. */
void use_bfloat16(int on);

/* C (M, N) (+)= A (M, K) B, A with row stride lda. */
void multiply(long M, long N, long K, const float *A, long lda, const float *B, long panel, long kb,
              float *C, long ldc, int add);

/* C (M, N) (+)= Aᵀ B for A (K, M) with row stride lda. */
void multiply_transposed(long M, long N, long K, const float *A, long lda, const float *B,
                         long panel, long kb, float *C, long ldc, int add);

/* Panels of W (K, N) with row stride ldw: where its rows would share sets of the cache. */
void pack(long K, long N, const float *W, long ldw, float *P);

/* Panels of Wᵀ for W (N, K) with row stride ldw: N is padded with zeros to a multiple of LANES. */
void pack_transposed(long N, long K, const float *W, long ldw, float *P);

/* Floats of such panels. */
INLINE long packed(long N, long K) { return round_up(N, NR) * K; }

#endif
