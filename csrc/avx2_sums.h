// Sums of the AVX2 kernels. For avx2.cpp alone.
#ifndef LOWDIM_AVX2_SUMS_H
#define LOWDIM_AVX2_SUMS_H

#include "avx2.h"

namespace {

LD_INLINE float total(__m256 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

LD_INLINE void store(const ld_matrix *m, int64_t row, __m256 sum, float *y) {
  *y = total(sum) + (m->bias ? m->bias[row] : 0.0f);
}

// Scales of 8 groups of a row, times those of the inputs.
template <int Tokens>
struct Scales {
  alignas(32) float at[Tokens][8];

  void fill(const ld_matrix *m, const ld_input *in, int64_t row, int64_t group) {
    const uint16_t *const scales = m->scales + row * in->groups + group;
    const int64_t count = least(8, in->groups - group);
    for (int t = 0; t < Tokens; ++t) {
      const float *const x = in->scale + t * in->groups + group;
      if (count == 8) {
        const __m256i w = _mm256_slli_epi32(_mm256_cvtepu16_epi32(place(reinterpret_cast<const uint8_t *>(scales))), 16);
        _mm256_store_ps(at[t], _mm256_mul_ps(_mm256_castsi256_ps(w), _mm256_loadu_ps(x)));
      } else {
        for (int64_t i = 0; i < 8; ++i) at[t][i] = i < count ? widen(scales[i]) * x[i] : 0.0f;
      }
    }
  }
};

// The product of one row with each token, 64 columns at a time: those sums are exact.
template <int Tokens>
struct CodeSums {
  __m256 at[Tokens];

  LD_INLINE void clear() {
    for (int t = 0; t < Tokens; ++t) at[t] = _mm256_setzero_ps();
  }
  // VPMADDUBSW multiplies unsigned by signed bytes, so the sign of the weight moves to the input. Two products of at most
  // 128 * 127 fit into its 16 bits.
  static LD_INLINE __m256i fours(__m256i w, __m256i size, __m256i x) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(size, _mm256_sign_epi8(x, w)), _mm256_set1_epi16(1));
  }
  LD_INLINE void add(__m256i first, __m256i second, const ld_input *in, int64_t column, const Scales<Tokens> &scales, int64_t scale) {
    const __m256i first_size = _mm256_abs_epi8(first), second_size = _mm256_abs_epi8(second);
#pragma GCC unroll 8
    for (int t = 0; t < Tokens; ++t) {
      const __m256i *const q = reinterpret_cast<const __m256i *>(in->q + t * in->stride + column);
      const __m256i low = fours(first, first_size, _mm256_load_si256(q)), high = fours(second, second_size, _mm256_load_si256(q + 1));
      const __m256i dot = _mm256_add_epi32(low, high);
      at[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_set1_ps(scales.at[t][scale]), at[t]);
    }
  }
  LD_INLINE void finish(const ld_matrix *m, int64_t row, float *y, int64_t y_stride) const {
    for (int t = 0; t < Tokens; ++t) store(m, row, at[t], y + t * y_stride + row);
  }
};

}  // namespace
#endif
