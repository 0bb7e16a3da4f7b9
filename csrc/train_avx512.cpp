// The kernels of sparse training for AVX-512.

#include <immintrin.h>

#include "steps_vector.h"

LD_VECTOR(16)

namespace {

LD_INLINE Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }

LD_INLINE Floats low(Floats a, Floats b) {
  return _mm512_permutex2var_ps(a, _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23), b);
}
LD_INLINE Floats high(Floats a, Floats b) {
  return _mm512_permutex2var_ps(a, _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31), b);
}

LD_INLINE uint32_t reaching(Floats v, float least) {
  return _mm512_cmp_ps_mask(_mm512_abs_ps(v), _mm512_set1_ps(least), _CMP_NLT_UQ);
}

constexpr int kTopVectors = 4;

}  // namespace

#include "train_body.h"

extern "C" const ld_train ld_train_avx512 = LD_TRAIN(avx512);
