// Distillation for AVX2.

#include <immintrin.h>

#include "steps_vector.h"

LD_VECTOR(8)

namespace {

LD_INLINE Floats fused(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }

}  // namespace

#include "distill_body.h"

extern "C" const ld_distill ld_distill_avx2 = LD_DISTILL(avx2);
