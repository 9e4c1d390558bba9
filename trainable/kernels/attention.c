/* A residual self-attention branch of packed tokens: projection, RoPE, attention within rows,
   output projection, residual and norm, in groups of rows that stay in L2.

   `norm` and `bfloat16` as in mlp.c. Row r has `length[r]` tokens from `start[r]` on, of which the first
   `valid[r]` exist; rows lie one after another. Shapes: x, y, attended (N, D), qkv (N, 3D) after
   the rotation, sums (N, H, 2) the largest score and 1 / sum
   of the softmax, cosine and sine (N, C / 2) or NULL. */

#include "gemm.h"

#define GROUP 192  /* tokens of a group of rows; a longer row is a group of its own */
#define QUERIES 48 /* of a block of scores: a multiple of every MR */

enum { NONE = 0, PRE = 1, POST = 2, ALONE = 3 };

INLINE void rotate_row(long half, float *x, const float *cosine, const float *sine, float sign) {
  SIMD for (long i = 0; i < half; i++) {
    const float a = x[i], b = x[i + half], s = sign * sine[i];
    x[i] = a * cosine[i] - b * s;
    x[i + half] = b * cosine[i] + a * s;
  }
}

/* Rotates q and k of T tokens in place; sign -1 turns back. */
static void rotate(long T, long D, long C, float *qkv, long ld, const float *cosine,
                   const float *sine, float sign) {
  const long half = C / 2;
  for (long t = 0; t < T; t++) {
    float *row = qkv + t * ld;
    for (long at = 0; at < 2 * D; at += C) {
      if (C == 32)
        rotate_row(16, row + at, cosine + t * 16, sine + t * 16, sign);
      else
        rotate_row(half, row + at, cosine + t * half, sine + t * half, sign);
    }
  }
}

/* One head of one row, of whose L tokens the first `asking` ask: q, k, v with row stride ld, out
   with row stride ldo. keys: packed(L, C); scores: QUERIES * round_up(L, LANES). */
static void head_forward(long asking, long L, long C, const float *q, long ld, long D, float *out,
                         long ldo, float *sums, long H, float *keys, float *scores) {
  const float *k = q + D, *v = q + 2 * D, scale = 1.0f / sqrtf((float)C);
  const long wide = round_up(L, LANES);
  pack_transposed(L, C, k, ld, keys);
  for (long at = 0; at < asking; at += QUERIES) {
    const long Q = least(QUERIES, asking - at);
    float inverse[QUERIES];
    multiply_packed(Q, wide, C, q + at * ld, ld, keys, scores, wide, 0);
    for (long i = 0; i < Q; i++) {
      float *s = scores + i * wide;
      for (long j = L; j < wide; j++) s[j] = -INFINITY;
      vec most = load(s), sum = {0};
      for (long j = VW; j < wide; j += VW) most = larger(load(s + j), most);
      const float top = most_of(most);
      for (long j = 0; j < wide; j += VW) {
        const vec p = exp_of((load(s + j) - top) * scale);
        store(s + j, p);
        sum += p;
      }
      const float total = sum_of(sum);
      inverse[i] = 1.0f / total;
      if (sums) {
        sums[(at + i) * 2 * H] = top;
        sums[(at + i) * 2 * H + 1] = inverse[i];
      }
    }
    multiply(Q, C, L, scores, wide, v, NR, ld, out + at * ldo, ldo, 0);
    for (long i = 0; i < Q; i++) {
      float *to = out + (at + i) * ldo;
      SIMD for (long c = 0; c < C; c++) to[c] *= inverse[i];
    }
  }
}

/* Gradients of one head of one row, in dq, dk = dq + D, dv = dq + 2D with row stride ldd. */
static void head_backward(long asking, long L, long C, const float *q, long ld, long D,
                          const float *out, const float *d_out, long ldo, const float *sums, long H,
                          float *dq, long ldd, float *keys, float *values, float *scores,
                          float *d_scores) {
  const float *k = q + D, *v = q + 2 * D, scale = 1.0f / sqrtf((float)C);
  const long wide = round_up(L, LANES);
  pack_transposed(L, C, k, ld, keys);
  pack_transposed(L, C, v, ld, values);
  for (long at = 0; at < asking; at += QUERIES) {
    const long Q = least(QUERIES, asking - at);
    multiply_packed(Q, wide, C, q + at * ld, ld, keys, scores, wide, 0);
    multiply_packed(Q, wide, C, d_out + at * ldo, ldo, values, d_scores, wide, 0);
    for (long i = 0; i < Q; i++) {
      const float *o = out + (at + i) * ldo, *d = d_out + (at + i) * ldo;
      float *p = scores + i * wide, *dp = d_scores + i * wide, own = 0.0f;
      const float top = sums[(at + i) * 2 * H], share = sums[(at + i) * 2 * H + 1];
      _Pragma("omp simd reduction(+:own)") for (long c = 0; c < C; c++) own += o[c] * d[c];
      for (long j = 0; j < wide; j += VW) {
        const vec e = exp_of((load(p + j) - top) * scale) * share;
        store(p + j, e);
        store(dp + j, e * (load(dp + j) - own) * scale);
      }
    }
    multiply(Q, C, L, d_scores, wide, k, NR, ld, dq + at * ldd, ldd, 0);
    multiply_transposed(L, C, Q, d_scores, wide, q + at * ld, NR, ld, dq + D, ldd, at > 0);
    multiply_transposed(L, C, Q, scores, wide, d_out + at * ldo, NR, ldo, dq + 2 * D, ldd, at > 0);
  }
}

/* Rows from `first` on that make a group; its tokens in *tokens. */
INLINE long group(long first, long rows, const int64_t *length, long *tokens) {
  long last = first;
  *tokens = 0;
  do *tokens += length[last++];
  while (last < rows && *tokens + length[last] <= GROUP);
  return last;
}

static void largest(long rows, const int64_t *length, long *tokens, long *longest) {
  *tokens = GROUP, *longest = 1;
  for (long r = 0; r < rows; r++) {
    if (length[r] > *tokens) *tokens = length[r];
    if (length[r] > *longest) *longest = length[r];
  }
}

/* With `first_only` the first token of each row alone asks, and y, attended, sums, grad and the scale
   of post-norm have one row per row: (rows, …).
   qkv NULL: it is not kept for the backward pass (attended, sums and scale may be NULL too). */
EXPORT void etrm_attention_forward(long rows, const int64_t *start, const int64_t *length,
                            const int64_t *valid, long D, long H, int first_only, int norm,
                            int bfloat16, float eps,
                            const float *x, const float *cosine, const float *sine,
                            const float *w_qkv, const float *w_out, float *y, float *qkv,
                            float *attended, float *sums, float *scale) {
  use_bfloat16(bfloat16);
  const long C = D / H, half = C / 2;
  long most, longest;
  largest(rows, length, &most, &longest);
  const long wide = round_up(longest, LANES);
  float *p_qkv = scratch((size_t)(packed(3 * D, D) + packed(D, D) + packed(longest, C) +
                                  QUERIES * wide + most * (5 * D + 1)));
  float *p_out = p_qkv + packed(3 * D, D), *keys = p_out + packed(D, D);
  float *scores = keys + packed(longest, C), *normed = scores + QUERIES * wide;
  float *own_qkv = normed + most * D, *own_att = own_qkv + most * 3 * D;
  float *own_scale = own_att + most * D;
  pack_transposed(3 * D, D, w_qkv, D, p_qkv);
  pack_transposed(D, D, w_out, D, p_out);
  for (long first = 0, next, T; first < rows; first = next) {
    next = group(first, rows, length, &T);
    if (T == 0) continue;
    const long at = start[first];
    const float *in = x + at * D;
    const long to = first_only ? first : at, R = first_only ? next - first : T;
    float *out = y + to * D, *all = qkv ? qkv + at * 3 * D : own_qkv;
    float *att = attended ? attended + to * D : own_att;
    if (norm == PRE) {
      rms_forward(T, D, in, normed, scale ? scale + at : own_scale, eps);
      in = normed;
    }
    multiply_packed(T, 3 * D, D, in, D, p_qkv, all, 3 * D, 0);
    if (cosine) rotate(T, D, C, all, 3 * D, cosine + at * half, sine + at * half, 1.0f);
    for (long r = first; r < next; r++) {
      const long from = start[r] - at, row = first_only ? r - first : from;
      const long asking = first_only ? least(1, valid[r]) : valid[r];
      const long silent = (first_only ? 1 : length[r]) - asking;
      for (long h = 0; h < H; h++)
        head_forward(asking, valid[r], C, all + from * 3 * D + h * C, 3 * D, D,
                     att + row * D + h * C, D, sums ? sums + ((to + row) * H + h) * 2 : NULL, H,
                     keys, scores);
      memset(att + (row + asking) * D, 0, (size_t)(silent * D) * sizeof(float));
      if (first_only) memcpy(out + row * D, x + start[r] * D, (size_t)D * sizeof(float));
    }
    if (!first_only) memcpy(out, x + at * D, (size_t)(T * D) * sizeof(float));
    multiply_packed(R, D, D, att, D, p_out, out, D, norm != ALONE);
    if (norm == POST) rms_forward(R, D, out, out, scale ? scale + to : own_scale, eps);
  }
}

/* Adds to d_qkv_w and d_out_w (either may be NULL), writes dx (may be NULL). qkv NULL: it is computed
   again, bit for bit. */
EXPORT void etrm_attention_backward(long rows, const int64_t *start, const int64_t *length,
                             const int64_t *valid, long D, long H, int first_only, int norm,
                             int bfloat16, const float *x, const float *cosine, const float *sine, const float *w_qkv,
                             const float *w_out, const float *y, const float *qkv,
                             const float *attended, const float *sums, const float *scale,
                             const float *grad, float *dx, float *d_qkv_w, float *d_out_w) {
  use_bfloat16(bfloat16);
  const long C = D / H, half = C / 2, ld = 3 * D + LANES; /* rows must not share cache sets */
  long most, longest;
  largest(rows, length, &most, &longest);
  const long wide = round_up(longest, LANES);
  float *p_qkv = scratch((size_t)(packed(D, 3 * D) + packed(D, D) + 2 * packed(longest, C) +
                                  packed(3 * D, D) + 2 * QUERIES * wide + most * (7 * D + ld)));
  float *p_out = p_qkv + packed(D, 3 * D), *p_again = p_out + packed(D, D);
  float *keys = p_again + packed(3 * D, D);
  float *values = keys + packed(longest, C), *scores = values + packed(longest, C);
  float *d_scores = scores + QUERIES * wide, *normed = d_scores + QUERIES * wide;
  float *ds = normed + most * D, *d_att = ds + most * D, *d_normed = d_att + most * D;
  float *again = d_normed + most * D, *d_all = again + most * 3 * D;
  pack(D, D, w_out, D, p_out);
  if (!qkv) pack_transposed(3 * D, D, w_qkv, D, p_again);
  if (dx) pack(3 * D, D, w_qkv, D, p_qkv);
  for (long first = 0, next, T; first < rows; first = next) {
    next = group(first, rows, length, &T);
    if (T == 0) continue;
    const long at = start[first];
    const long to = first_only ? first : at, R = first_only ? next - first : T;
    const float *in = x + at * D, *d = grad + to * D;
    if (norm == PRE) {
      rms_again(T, D, in, scale + at, normed);
      in = normed;
    } else if (norm == POST) {
      rms_backward(R, D, d, y + to * D, scale + to, NULL, ds);
      d = ds;
    }
    const float *all = qkv ? qkv + at * 3 * D : again;
    if (!qkv) {
      multiply_packed(T, 3 * D, D, in, D, p_again, again, 3 * D, 0);
      if (cosine) rotate(T, D, C, again, 3 * D, cosine + at * half, sine + at * half, 1.0f);
    }
    if (d_out_w) multiply_transposed(D, D, R, d, D, attended + to * D, NR, D, d_out_w, D, 1);
    multiply_packed(R, D, D, d, D, p_out, d_att, D, 0);
    for (long r = first; r < next; r++) {
      const long from = start[r] - at, row = first_only ? r - first : from;
      const long asking = first_only ? least(1, valid[r]) : valid[r];
      for (long h = 0; h < H; h++)
        head_backward(asking, valid[r], C, all + from * 3 * D + h * C, 3 * D, D,
                      attended + (to + row) * D + h * C, d_att + row * D + h * C, D,
                      sums + ((to + row) * H + h) * 2, H, d_all + from * ld + h * C, ld, keys,
                      values, scores, d_scores);
      for (long t = asking; t < length[r]; t++)
        memset(d_all + (from + t) * ld, 0, (size_t)(t < valid[r] ? D : 3 * D) * sizeof(float));
    }
    if (cosine) rotate(T, D, C, d_all, ld, cosine + at * half, sine + at * half, -1.0f);
    if (d_qkv_w) multiply_transposed(3 * D, D, T, d_all, ld, in, NR, D, d_qkv_w, D, 1);
    if (!dx) continue;
    float *back = dx + at * D; /* gradient of the residual, then of the branch */
    if (first_only && norm != PRE) {
      memset(back, 0, (size_t)(T * D) * sizeof(float));
      for (long r = first; r < next && norm != ALONE; r++)
        memcpy(dx + start[r] * D, d + (r - first) * D, (size_t)D * sizeof(float));
    } else if (norm == NONE || norm == POST) {
      memcpy(back, d, (size_t)(T * D) * sizeof(float));
    }
    if (norm != PRE) {
      multiply_packed(T, D, 3 * D, d_all, ld, p_qkv, back, D, norm != ALONE);
      continue;
    }
    multiply_packed(T, D, 3 * D, d_all, ld, p_qkv, d_normed, D, 0);
    rms_backward(T, D, d_normed, normed, scale + at, first_only ? NULL : grad + at * D, back);
    for (long r = first; r < next && first_only; r++)
      add_to(D, dx + start[r] * D, grad + r * D);
  }
}
