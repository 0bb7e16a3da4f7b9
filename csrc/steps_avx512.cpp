// The step kernels for AVX-512.

#include <immintrin.h>

#include "steps_vector.h"

LD_VECTOR(16)

namespace {

LD_INLINE Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }

LD_INLINE __m512 pairs(__m512 a, __m512 b) { return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)); }

LD_INLINE __m512 fours(__m512 a, __m512 b) {
  const __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)), _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
}

LD_INLINE __m512 quarters(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
}

// Lane i: the sum of v[i]'s lanes.
LD_INLINE Floats fold(const Floats *v) {
  __m512 four[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) four[i] = fours(pairs(v[4 * i], v[4 * i + 1]), pairs(v[4 * i + 2], v[4 * i + 3]));
  return quarters(quarters(four[0], four[1]), quarters(four[2], four[3]));
}

LD_INLINE Floats codes(const int8_t *p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
}

LD_INLINE void halves(const uint8_t *p, Floats *out) {
  const __m512 levels = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);  // a permutation looks at four bits
  const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
  out[0] = _mm512_permutexvar_ps(bytes, levels);
  out[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), levels);
}

LD_INLINE __m512 in_turn(const uint16_t *p, int64_t) {
  const __m256i eight = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
  return _mm512_broadcast_f32x8(_mm256_castsi256_ps(_mm256_slli_epi32(eight, 16)));
}

constexpr int kTile = 4, kTogether = 4;

}  // namespace

#include "steps_body.h"

extern "C" const ld_steps ld_steps_avx512 = LD_STEPS(avx512);
