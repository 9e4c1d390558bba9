/* A residual SwiGLU branch of packed tokens: one pass over memory, tokens in tiles that stay in L2.

   norm 0: y = x + f(x); 1 (pre): y = x + f(rms(x)); 2 (post): y = rms(x + f(x));
   3: y = f(x), no residual. f(x) = down(silu(gate(x)) * up(x)). Shapes: x, y (N, D);
   gate_up (2I, D), its first I rows the gate; down (D, I); joint (N, 2I); scale (N).
   bfloat16: what `use_bfloat16` takes. */

#include "gemm.h"

#define TOKENS 96 /* of a tile: a multiple of every MR */

enum { NONE = 0, PRE = 1, POST = 2, ALONE = 3 };

/* joint NULL: nothing is kept for the backward pass; scale may then be NULL too. */
EXPORT void etrm_mlp_forward(long N, long D, long I, int norm, int bfloat16, float eps,
                      const float *x, const float *gate_up, const float *down, float *y,
                      float *joint, float *scale) {
  use_bfloat16(bfloat16);
  float *packed_up = scratch((size_t)(packed(2 * I, D) + packed(D, I) + TOKENS * (D + 3 * I + 1)));
  float *packed_down = packed_up + packed(2 * I, D), *normed = packed_down + packed(D, I);
  float *act = normed + TOKENS * D, *own_joint = act + TOKENS * I;
  float *own_scale = own_joint + TOKENS * 2 * I;
  pack_transposed(2 * I, D, gate_up, D, packed_up);
  pack_transposed(D, I, down, I, packed_down);
  for (long at = 0; at < N; at += TOKENS) {
    const long T = least(TOKENS, N - at);
    const float *in = x + at * D;
    float *out = y + at * D, *both = joint ? joint + at * 2 * I : own_joint;
    float *factor = scale ? scale + at : own_scale;
    if (norm == PRE) {
      rms_forward(T, D, in, normed, factor, eps);
      in = normed;
    }
    multiply_packed(T, 2 * I, D, in, D, packed_up, both, 2 * I, 0);
    for (long t = 0; t < T; t++) {
      const float *gate = both + t * 2 * I, *up = gate + I;
      float *to = act + t * I;
      for (long i = 0; i < I; i += VW) {
        const vec g = load(gate + i);
        store(to + i, g * sigmoid_of(g) * load(up + i));
      }
    }
    if (norm != ALONE) memcpy(out, x + at * D, (size_t)(T * D) * sizeof(float));
    multiply_packed(T, D, I, act, I, packed_down, out, D, norm != ALONE);
    if (norm == POST) rms_forward(T, D, out, out, factor, eps);
  }
}

/* Adds to d_gate_up and d_down (either may be NULL), writes dx (may be NULL). `y` is read for
   post-norm only. joint NULL: it is computed again, bit for bit. */
EXPORT void etrm_mlp_backward(long N, long D, long I, int norm, int bfloat16, const float *x,
                       const float *gate_up, const float *down, const float *y, const float *joint, const float *scale,
                       const float *grad, float *dx, float *d_gate_up, float *d_down) {
  use_bfloat16(bfloat16);
  const long wide = 2 * I + LANES, own = I + LANES; /* rows must not share sets of the cache */
  const long span = spanned(3 * I * D, TOKENS);
  float *p_down = scratch((size_t)(packed(I, D) + packed(D, 2 * I) + packed(2 * I, D) +
                                   TOKENS * (D + 3 * I) + span * (2 * D + own + wide)));
  float *p_gate_up = p_down + packed(I, D), *p_up = p_gate_up + packed(D, 2 * I);
  float *d_normed = p_up + packed(2 * I, D), *d_act = d_normed + TOKENS * D;
  float *again = d_act + TOKENS * I, *normed = again + TOKENS * 2 * I, *ds = normed + span * D;
  float *act = ds + span * D, *d_joint = act + span * own;
  pack(D, I, down, I, p_down);
  if (!joint) pack_transposed(2 * I, D, gate_up, D, p_up);
  if (dx) pack(2 * I, D, gate_up, D, p_gate_up);
  for (long from = 0; from < N; from += span) {
    const long S = least(span, N - from);
    const float *all_in = norm == PRE ? normed : x + from * D;
    const float *all_d = norm == POST ? ds : grad + from * D;
    for (long in_span = 0; in_span < S; in_span += TOKENS) {
      const long at = from + in_span, T = least(TOKENS, S - in_span);
      const float *in = all_in + in_span * D, *d = all_d + in_span * D;
      if (norm == PRE)
        rms_again(T, D, x + at * D, scale + at, normed + in_span * D);
      else if (norm == POST)
        rms_backward(T, D, grad + at * D, y + at * D, scale + at, NULL, ds + in_span * D);
      const float *both = joint ? joint + at * 2 * I : again;
      if (!joint) multiply_packed(T, 2 * I, D, in, D, p_up, again, 2 * I, 0);
      multiply_packed(T, I, D, d, D, p_down, d_act, I, 0);
      float *own_act = act + in_span * own, *own_joint = d_joint + in_span * wide;
      for (long t = 0; t < T; t++) {
        const float *gate = both + t * 2 * I, *up = gate + I, *da = d_act + t * I;
        float *to = own_act + t * own, *d_gate = own_joint + t * wide, *d_up = d_gate + I;
        for (long i = 0; i < I; i += VW) {
          const vec g = load(gate + i), u = load(up + i), d = load(da + i);
          const vec sigmoid = sigmoid_of(g), silu = g * sigmoid;
          store(to + i, silu * u);
          store(d_up + i, d * silu);
          store(d_gate + i, d * u * sigmoid * (1.0f + g - silu));
        }
      }
      if (!dx) continue;
      float *to = dx + at * D;
      if (norm == NONE || norm == POST) {
        memcpy(to, d, (size_t)(T * D) * sizeof(float));
        multiply_packed(T, D, 2 * I, own_joint, wide, p_gate_up, to, D, 1);
      } else if (norm == ALONE) {
        multiply_packed(T, D, 2 * I, own_joint, wide, p_gate_up, to, D, 0);
      } else {
        multiply_packed(T, D, 2 * I, own_joint, wide, p_gate_up, d_normed, D, 0);
        rms_backward(T, D, d_normed, in, scale + at, grad + at * D, to);
      }
    }
    if (d_down) multiply_transposed(D, I, S, all_d, D, act, NR, own, d_down, I, 1);
    if (d_gate_up) multiply_transposed(2 * I, D, S, d_joint, wide, all_in, NR, D, d_gate_up, D, 1);
  }
}
