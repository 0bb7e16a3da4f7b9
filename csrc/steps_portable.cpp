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

LD_INLINE Floats codes(const int8_t *p) { return Floats{float(p[0]), float(p[1]), float(p[2]), float(p[3])}; }

LD_INLINE void halves(const uint8_t *p, Floats *out) {
  for (int i = 0; i < 4; ++i) {
    out[0][i] = static_cast<float>(((p[i] & 15) ^ 8) - 8);
    out[1][i] = static_cast<float>((p[i] >> 4 ^ 8) - 8);
  }
}

LD_INLINE Floats in_turn(const uint16_t *p, int64_t from) {
  Words bits;
  for (int i = 0; i < 4; ++i) bits[i] = uint32_t{p[from + i]} << 16;
  return reinterpret_cast<Floats>(bits);
}

constexpr int kTile = 2, kTogether = 2;

}  // namespace

#include "steps_body.h"

extern "C" const ld_steps ld_steps_portable = LD_STEPS(portable);
