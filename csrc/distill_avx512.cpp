// Distillation for AVX-512.

#include <immintrin.h>

#include "steps_vector.h"

LD_VECTOR(16)

namespace {

LD_INLINE Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }

LD_INLINE Halves narrow(Floats v) { return reinterpret_cast<Halves>(_mm512_cvtneps_pbh(v)); }

}  // namespace

#define LD_HAVE_NARROW
#include "distill_body.h"

extern "C" const ld_distill ld_distill_avx512 = LD_DISTILL(avx512);
