// The step kernels for AVX2 with FMA.

#include <immintrin.h>

#include "steps_vector.h"

LD_VECTOR(8)

namespace {

LD_INLINE Floats fused(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }

// Lane i: the sum of v[i]'s lanes.
LD_INLINE Floats fold(const Floats *v) {
  const __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
  const __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

LD_INLINE __m256i widened(const void *p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i *>(p))); }

LD_INLINE Floats codes(const int8_t *p) { return _mm256_cvtepi32_ps(widened(p)); }

LD_INLINE void halves(const uint8_t *p, Floats *out) {
  const __m256i bytes = widened(p);
  out[0] = _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(bytes, 28), 28));
  out[1] = _mm256_cvtepi32_ps(_mm256_srai_epi32(bytes, 4));
}

LD_INLINE __m256 in_turn(const uint16_t *p, int64_t) {
  const __m256i eight = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(eight, 16));
}

constexpr int kTile = 2, kTogether = 2;

}  // namespace

#include "steps_body.h"

extern "C" const ld_steps ld_steps_avx2 = LD_STEPS(avx2);
