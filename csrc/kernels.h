/* What every instruction set provides, and what they share. Internal. */
#ifndef LOWDIM_KERNELS_H
#define LOWDIM_KERNELS_H

#include "lowdim.h"

/* Up to LD_MAX_TOKENS inputs of one layer in the form that its kind wants, prepared once and shared by q, k and v, and by
 * gate and up. Rows are `stride` elements apart, stride being cols rounded up to 256; what lies beyond cols is zero. Arrays are
 * 64-byte aligned; those that the kind does not use are NULL. */
typedef struct ld_input {
  int32_t kind, group, tokens;
  int64_t cols, stride, groups; /* groups = ceil(cols / group) */
  float *f32;                   /* LD_FP32: [tokens, stride] */
  uint16_t *bf16;               /* LD_BF16: [tokens, stride], rounded to nearest even */
  int8_t *q;                    /* codes: [tokens, stride], in [-127, 127] */
  float *scale;                 /* [tokens, groups]: x = q * scale; 0 where the group is all zero */
  int32_t *offset;              /* [tokens, groups, 16]: entry l is -128 * the sum of the group's q[c] with c / 4 % 16 == l, where
                                 * kernels that use weights + 128 in 16 lanes of four bytes begin their sums; others leave it */
} ld_input;

typedef struct ld_kernels {
  const char *name;
  int (*supported)(void); /* by this processor */
  /* x: fp32 [tokens, cols], x_stride apart, into the arrays of `in`, whose sizes are set. Quantised: amax = max |x| of the
   * group; scale = amax / 127, q = rint(x * (127 / amax)); amax < 1e-30: all zero; NaN or infinity: scale NaN, q zero. */
  void (*prepare)(const float *x, int64_t x_stride, ld_input *in);
  /* y[t * y_stride + r] = the product plus bias, r in [begin, end). For LD_INT4, LD_EIGHTS and LD_FOURS begin is even, for LD_INT3 begin
   * is a multiple of 8 and so is end, unless it is that of the matrix. Every result has the same bits
   * whatever the other tokens and rows of the call. */
  void (*rows)(const ld_matrix *m, const ld_input *in, int64_t begin, int64_t end, float *y, int64_t y_stride);
  void (*unpack)(const ld_matrix *m, int64_t begin, int64_t end, int32_t out_kind, void *out, int64_t stride);
} ld_kernels;

#ifdef __cplusplus
extern "C" {
#endif
extern const ld_kernels ld_kernels_avx512, ld_kernels_avx2, ld_kernels_neon, ld_kernels_portable;
const ld_kernels *ld_current(void);

/* Bytes of workspace for ld_input's arrays, and their placement in it (`memory` 64-byte aligned). */
int64_t ld_input_bytes(int32_t kind, int32_t group, int32_t tokens, int64_t cols);
void ld_input_place(ld_input *in, int32_t kind, int32_t group, int32_t tokens, int64_t cols, void *memory);

/* Run work(context, begin, end) over [0, total) in chunks of `chunk`, on at most `threads` threads of the pool that OpenMP keeps
 * (torch's own, where torch is loaded first). Each thread takes the chunks of a contiguous part of its own, in order, so that it
 * reads memory in one long stream, and then helps the others. (Threads that take turns are up to 1.7 times slower: they keep losing
 * what the processor fetches ahead.) */
typedef void (*ld_work)(void *context, int64_t begin, int64_t end);
void ld_parallel(int32_t threads, int64_t total, int64_t chunk, ld_work work, void *context);

/* Run body(context, member, members) on at most `threads` threads of that pool at once, members being how many there are. */
typedef void (*ld_member)(void *context, int32_t member, int32_t members);
void ld_team(int32_t threads, ld_member body, void *context);
#ifdef __cplusplus
}
#endif
#endif
