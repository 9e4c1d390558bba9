/* Vectors of floats in GCC's portable notation, and the elementwise functions of the kernels.

   The width follows the instruction set that the compiler was given; every loop is written once.
   Nothing here assumes finite numbers: a NaN stays a NaN. */

#ifndef ETRM_VECTOR_H
#define ETRM_VECTOR_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))

#if defined(__AVX512F__)
#define VW 16 /* floats of a vector */
#define MR 12 /* rows of a register tile */
#elif defined(__AVX__)
#define VW 8
#define MR 6
#elif defined(__aarch64__)
#define VW 4
#define MR 12
#else
#define VW 4
#define MR 6
#endif
#define NR (2 * VW) /* columns of a register tile */
#define LANES 16    /* widths must be multiples of this */

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define SIMD _Pragma("omp simd")

typedef float vec __attribute__((vector_size(4 * VW), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * VW), aligned(4), may_alias));

INLINE long least(long a, long b) { return a < b ? a : b; }
INLINE long round_up(long n, long to) { return (n + to - 1) / to * to; }

INLINE vec load(const float *p) { return *(const vec *)p; }
INLINE void store(float *p, vec x) { *(vec *)p = x; }
INLINE vec all(float x) { return (vec){0} + x; }
INLINE vec choose(ints where, vec a, vec b) {
  return (vec)(((ints)a & where) | ((ints)b & ~where));
}
INLINE vec larger(vec a, vec b) { return choose(a > b, a, b); }

/* Sum and largest of a vector's elements, in a fixed order: halves, then their halves. */
typedef float quarter __attribute__((vector_size(16)));
typedef union {
  vec all;
  quarter part[VW / 4];
} parts;

INLINE float sum_of(vec x) {
  const parts p = {x};
  quarter q = p.part[0];
  for (int i = 1; i < VW / 4; i++) q += p.part[i];
  return (q[0] + q[2]) + (q[1] + q[3]);
}

INLINE float most_of(vec x) {
  const parts p = {x};
  float most = p.part[0][0];
  quarter q = p.part[0];
  for (int i = 1; i < VW / 4; i++) {
    typedef int32_t mask __attribute__((vector_size(16)));
    const mask more = p.part[i] > q;
    q = (quarter)(((mask)p.part[i] & more) | ((mask)q & ~more));
  }
  for (int i = 0; i < 4; i++) most = q[i] > most ? q[i] : most;
  return most;
}

/* e^x with an error below 2 units in the last place, for x within +-87.3 (beyond, its end). */
INLINE vec exp_of(vec x) {
  const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
  x = choose(x < -87.3f, all(-87.3f), x);
  x = choose(x > 87.3f, all(87.3f), x);
  const vec t = x * 1.44269504088896341f + magic, n = t - magic;
  const vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
  vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return p * (vec)(((ints)t << 23) + (127 << 23)); /* the low bits of t are n */
}

INLINE vec sigmoid_of(vec x) { return 1.0f / (1.0f + exp_of(-x)); }

/* Memory of the calling thread that lives until the next call; grows, is never given back. */
static inline float *scratch(size_t floats) {
  static _Thread_local float *memory = NULL;
  static _Thread_local size_t size = 0;
  if (floats > size) {
    free(memory);
    size = (size_t)round_up((long)floats, 1024);
    memory = aligned_alloc(64, size * sizeof(float));
    if (memory == NULL) abort();
  }
  return memory;
}

/* y = x / rms(x) by rows; returns the factors in scale. `y` may be `x`. */
static inline void rms_forward(long rows, long width, const float *x, float *y, float *scale, float eps) {
  for (long r = 0; r < rows; r++) {
    const float *from = x + r * width;
    float *to = y + r * width;
    float sum = 0.0f;
    _Pragma("omp simd reduction(+:sum)") for (long i = 0; i < width; i++) sum += from[i] * from[i];
    float factor = 1.0f / sqrtf(sum / (float)width + eps);
    SIMD for (long i = 0; i < width; i++) to[i] = from[i] * factor;
    scale[r] = factor;
  }
}

/* y = x * scale by rows: what `rms_forward` wrote, again. */
static inline void rms_again(long rows, long width, const float *x, const float *scale, float *y) {
  for (long r = 0; r < rows; r++) {
    const float factor = scale[r];
    SIMD for (long i = 0; i < width; i++) y[r * width + i] = x[r * width + i] * factor;
  }
}

/* d = (grad - y * mean(grad * y)) * scale [+ plus]; `d` may be `grad`. */
static inline void rms_backward(long rows, long width, const float *grad, const float *y,
                         const float *scale, const float *plus, float *d) {
  for (long r = 0; r < rows; r++) {
    const float *g = grad + r * width, *out = y + r * width;
    float *to = d + r * width;
    float sum = 0.0f;
    _Pragma("omp simd reduction(+:sum)") for (long i = 0; i < width; i++) sum += g[i] * out[i];
    float mean = sum / (float)width, factor = scale[r];
    if (plus) {
      const float *more = plus + r * width;
      SIMD for (long i = 0; i < width; i++) to[i] = (g[i] - out[i] * mean) * factor + more[i];
    } else {
      SIMD for (long i = 0; i < width; i++) to[i] = (g[i] - out[i] * mean) * factor;
    }
  }
}

INLINE void add_to(long n, float *to, const float *from) {
  SIMD for (long i = 0; i < n; i++) to[i] += from[i];
}

#endif
