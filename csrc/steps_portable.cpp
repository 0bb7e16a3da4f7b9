// The step kernels for any processor.

#include "steps_vector.h"

LD_VECTOR(4)

namespace {

LD_INLINE Floats fused(Floats a, Floats b, Floats c) { return a * b + c; }

// Lane i: the sum of v[i]'s lanes.
LD_INLINE Floats fold(const Floats *v) {
  Floats sums;
  for (int i = 0; i < 4; ++i) sums[i] = (v[i][0] + v[i][2]) + (v[i][1] + v[i][3]);
  return sums;
}

constexpr int kTile = 2, kTogether = 2;

}  // namespace

#include "steps_body.h"

extern "C" const ld_steps ld_steps_portable = LD_STEPS(portable);
