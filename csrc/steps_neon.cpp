// The step kernels for NEON.

#include <arm_neon.h>

#include "steps_vector.h"

LD_VECTOR(4)

namespace {

LD_INLINE Floats fused(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }

// Lane i: the sum of v[i]'s lanes.
LD_INLINE Floats fold(const Floats *v) { return vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3])); }

constexpr int kTile = 4, kTogether = 4;

}  // namespace

#include "steps_body.h"

extern "C" const ld_steps ld_steps_neon = LD_STEPS(neon);
