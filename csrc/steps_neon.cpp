// The step kernels for NEON.

#include <arm_neon.h>

#include "steps_vector.h"

LD_VECTOR(4)

namespace {

LD_INLINE Floats fused(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }

// Lane i: the sum of v[i]'s lanes.
LD_INLINE Floats fold(const Floats *v) { return vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3])); }

LD_INLINE int32x4_t widened(const void *p) {
  int32_t four;
  __builtin_memcpy(&four, p, 4);
  return vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)))));
}

LD_INLINE Floats codes(const int8_t *p) { return vcvtq_f32_s32(widened(p)); }

LD_INLINE void halves(const uint8_t *p, Floats *out) {
  const int32x4_t bytes = widened(p);
  out[0] = vcvtq_f32_s32(vshrq_n_s32(vshlq_n_s32(bytes, 28), 28));
  out[1] = vcvtq_f32_s32(vshrq_n_s32(bytes, 4));
}

LD_INLINE Floats in_turn(const uint16_t *p, int64_t from) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + from), 16)); }

constexpr int kTile = 4, kTogether = 4;

}  // namespace

#include "steps_body.h"

extern "C" const ld_steps ld_steps_neon = LD_STEPS(neon);
