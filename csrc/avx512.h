// What the AVX-512 kernels share: loads, kinds of values, sums. For avx512.cpp alone.
//
// Two facts about VPEXPAND on Zen 5 shape it. Its memory form is two to three times slower than its register form where the mask is
// partial or the address unaligned. Its zeroing form waits for the old value of its destination, which chains one expansion to
// the next at six cycles each; the merging form into a fresh copy of a constant does not.
#ifndef LOWDIM_AVX512_H
#define LOWDIM_AVX512_H

#include "common.h"

#include <immintrin.h>

namespace {

constexpr int64_t kRegister = 64;  // bytes that an unmasked load reads

inline __m512i pinned(__m512i v) {
  asm("" : "+v"(v));
  return v;
}

inline __m512i zero() { return pinned(_mm512_setzero_si512()); }

// In a general register: gcc would shift masks in mask registers and move them back to count them.
inline uint64_t pinned(uint64_t v) {
  asm("" : "+r"(v));
  return v;
}

// How packed codes are read: whole registers; halves, which is worth a branch where few words of 64 columns have more than 32 codes;
// or, in the last rows, no more than is there.
enum class Load { kWhole, kHalf, kLast };

inline __m512i load_half(const char *p) {
  __m512i v;
  asm("vmovdqu64 %1, %t0" : "=v"(v) : "m"(*reinterpret_cast<const char(*)[32]>(p)));
  return v;
}

// 64 bytes from any address. A load that crosses a cache line costs far more than its two halves, one of which does not cross; the
// first is written out, because the compiler would make one load of the two, or fold it into VPEXPAND.
inline __m512i load(const char *p) {
  return _mm512_inserti64x4(load_half(p), _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p + 32)), 1);
}

// The same where values end at `end`.
inline __m512i load_last(const char *p, const char *end) {
  const int64_t left = end - p;
  return pinned(_mm512_maskz_loadu_epi8(left >= kRegister ? ~0ULL : (1ULL << left) - 1, p));
}

inline __mmask64 first(int64_t count) { return count >= 64 ? ~0ULL : count <= 0 ? 0 : (1ULL << count) - 1; }

inline __m512 widen(__m256i bf16) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16)); }

inline __m512bh as_bf16(__m512i v) { return reinterpret_cast<__m512bh>(v); }

// Sums beside each other for each token, so that latency is hidden where tokens are few.
template <int Tokens>
constexpr int lanes() {
  return Tokens == 1 ? 4 : Tokens <= 3 ? 2 : 1;
}

template <int Tokens>
struct Sums {
  static constexpr int kLanes = lanes<Tokens>();
  __m512 at[Tokens][kLanes];

  inline void clear() {
    for (int t = 0; t < Tokens; ++t)
      for (int l = 0; l < kLanes; ++l) at[t][l] = _mm512_setzero_ps();
  }

  inline __m512 total(int t) const {
    __m512 sum = at[t][0];
    for (int l = 1; l < kLanes; ++l) sum = _mm512_add_ps(sum, at[t][l]);
    return sum;
  }

  inline void store(const ld_matrix *m, int64_t row, float *y, int64_t y_stride) const {
    const float bias = m->bias ? m->bias[row] : 0.0f;
    for (int t = 0; t < Tokens; ++t) y[t * y_stride + row] = _mm512_reduce_add_ps(total(t)) + bias;
  }
};

// The sums of four registers.
inline __m128 sums_of(__m512 a, __m512 b, __m512 c, __m512 d) {
  const auto halved = [](__m512 v) __attribute__((always_inline)) {
    return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  };
  const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(halved(a), halved(b)), _mm256_hadd_ps(halved(c), halved(d)));
  return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
}

// ---------------------------------------------------------------- fp32 and bf16

struct Fp32 {
  static constexpr int kColumns = 16, kBytes = 4;
  using Input = float;
  using Mask = __mmask16;
  static const Input *input(const ld_input *in) { return in->f32; }
  static __m512i expand(Mask mask, __m512i v) { return _mm512_mask_expand_epi32(zero(), mask, v); }
  static __m512 add(__m512 sum, __m512i w, const Input *x) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(w), _mm512_load_ps(x), sum);
  }
};

struct Bf16 {
  static constexpr int kColumns = 32, kBytes = 2;
  using Input = uint16_t;
  using Mask = __mmask32;
  static const Input *input(const ld_input *in) { return in->bf16; }
  static __m512i expand(Mask mask, __m512i v) { return _mm512_mask_expand_epi16(zero(), mask, v); }
  static __m512 add(__m512 sum, __m512i w, const Input *x) {
    return _mm512_dpbf16_ps(sum, as_bf16(w), as_bf16(_mm512_load_si512(x)));
  }
};

}  // namespace

#endif
