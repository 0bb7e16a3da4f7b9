// The kernels of sparse training for any processor.

#include "steps_vector.h"

LD_VECTOR(4)

namespace {

LD_INLINE Floats fused(Floats a, Floats b, Floats c) { return a * b + c; }

LD_INLINE Floats low(Floats a, Floats b) { return Floats{a[0], b[0], a[1], b[1]}; }
LD_INLINE Floats high(Floats a, Floats b) { return Floats{a[2], b[2], a[3], b[3]}; }

LD_INLINE uint32_t reaching(Floats v, float least) {
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= static_cast<uint32_t>(!(__builtin_fabsf(v[i]) < least)) << i;
  return bits;
}

constexpr int kTopVectors = 2;

}  // namespace

#include "train_body.h"

extern "C" const ld_train ld_train_portable = LD_TRAIN(portable);
