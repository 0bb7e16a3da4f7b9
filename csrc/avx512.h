// What the AVX-512 kernels share: loads, kinds of values, sums. For the files of that level alone.
//
// Two facts about VPEXPAND on Zen 5 shape it. Its memory form is two to three times slower than its register form where the mask is
// partial or the address unaligned. Its zeroing form waits for the old value of its destination, which chains one expansion to
// the next at six cycles each; the merging form into a fresh copy of a constant does not.
#ifndef LOWDIM_AVX512_H
#define LOWDIM_AVX512_H

#include "records.h"

#include <cpuid.h>
#include <immintrin.h>

// What a row's loop calls: left to itself, the compiler inlines as much as the size of the whole file allows.
#define LD_ALWAYS __attribute__((always_inline))
#define LD_INLINE inline LD_ALWAYS

// How packed values are read: whole registers; halves, which is worth a branch where few words of 64 columns have more than 32 codes;
// in the last rows, no more than is there; or, on Zen 4, whole registers at once, while what follows is fetched by hand.
enum class Load { kWhole, kHalf, kLast, kAhead };

// Products of rows [begin, end) with all tokens of an input.
using Range = void (*)(const ld_matrix *, const ld_input *, int64_t begin, int64_t end, float *y, int64_t y_stride);

namespace {

constexpr int64_t kRegister = 64;  // bytes that an unmasked load reads
constexpr int64_t kAhead = 4096;   // and bytes ahead of it that are fetched by hand

LD_INLINE __m512i pinned(__m512i v) {
  asm("" : "+v"(v));
  return v;
}

LD_INLINE __m512i zero() { return pinned(_mm512_setzero_si512()); }

// In a general register: gcc would shift masks in mask registers and move them back to count them.
LD_INLINE uint64_t pinned(uint64_t v) {
  asm("" : "+r"(v));
  return v;
}

// Zen 4 fetches ahead too little of rows whose values it expands, loads 64 unaligned bytes as fast as their halves, and gains nothing by
// reading several rows together unless they are very short: up to 1.3 times the speed. On Zen 5 the opposite of each is true.
inline bool zen4() {
  static const bool is = [] {
    unsigned a, b, c, d;
    if (!__get_cpuid(0, &a, &b, &c, &d) || b != 0x68747541) return false;  // Auth(enticAMD)
    return __get_cpuid(1, &a, &b, &c, &d) && (a >> 8 & 15) + (a >> 20 & 255) == 25;
  }();
  return is;
}

LD_INLINE __m512i load_half(const char *p) {
  __m512i v;
  asm("vmovdqu64 %1, %t0" : "=v"(v) : "m"(*reinterpret_cast<const char(*)[32]>(p)));
  return v;
}

// 64 bytes from any address. A load that crosses a cache line costs far more than its two halves, one of which does not cross; the
// first is written out, because the compiler would make one load of the two, or fold it into VPEXPAND.
LD_INLINE __m512i load(const char *p) {
  return _mm512_inserti64x4(load_half(p), _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p + 32)), 1);
}

LD_INLINE __m512i load_whole(const char *p) { return pinned(_mm512_loadu_si512(p)); }

// The same where values end at `end`.
LD_INLINE __m512i load_last(const char *p, const char *end) {
  const int64_t left = end - p;
  return pinned(_mm512_maskz_loadu_epi8(left >= kRegister ? ~0ULL : (1ULL << left) - 1, p));
}

LD_INLINE __mmask64 first(int64_t count) { return count >= 64 ? ~0ULL : count <= 0 ? 0 : (1ULL << count) - 1; }

LD_INLINE __m512 widen(__m256i bf16) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16)); }

LD_INLINE __m512bh as_bf16(__m512i v) { return reinterpret_cast<__m512bh>(v); }

// What a row comes to with each token. However many tokens or rows are read together, each result is added up in the same order, so
// that no token's depends on the others.
template <int Tokens>
struct Sums {
  __m512 at[Tokens];

  LD_INLINE void clear() {
    for (int t = 0; t < Tokens; ++t) at[t] = _mm512_setzero_ps();
  }

  LD_INLINE void store(const ld_matrix *m, int64_t row, float *y, int64_t y_stride) const {
    const float bias = m->bias ? m->bias[row] : 0.0f;
    for (int t = 0; t < Tokens; ++t) y[t * y_stride + row] = _mm512_reduce_add_ps(at[t]) + bias;
  }
};

// The sums of four registers, each in the order of _mm512_reduce_add_ps: halves, quarters, pairs.
LD_INLINE __m128 sums_of(__m512 a, __m512 b, __m512 c, __m512 d) {
  const auto halved = [](__m512 v, __m512 w) LD_ALWAYS {
    return _mm512_add_ps(_mm512_shuffle_f32x4(v, w, 0x44), _mm512_shuffle_f32x4(v, w, 0xEE));
  };
  const __m512 ab = halved(a, b), cd = halved(c, d);
  const __m512 four = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
  const __m512 two = _mm512_add_ps(four, _mm512_permute_ps(four, 0x4E));
  const __m512 one = _mm512_add_ps(two, _mm512_permute_ps(two, 0xB1));
  return _mm512_castps512_ps128(_mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), one));
}

// Scales of up to 16 groups of one row, times those of the input.
template <int Tokens>
struct Scales {
  alignas(64) float at[Tokens][16];
  LD_INLINE void fill(const uint16_t *row, const float *input, int64_t groups, __mmask16 some) {
    if (some == 0xFFFF) {  // a masked load that misses the cache holds up what follows it
      const __m512 w = widen(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(row)));
      for (int t = 0; t < Tokens; ++t) _mm512_store_ps(at[t], _mm512_mul_ps(w, _mm512_loadu_ps(input + t * groups)));
      return;
    }
    const __m512 w = widen(_mm256_maskz_loadu_epi16(some, row));
    for (int t = 0; t < Tokens; ++t)
      _mm512_store_ps(at[t], _mm512_mul_ps(w, _mm512_maskz_loadu_ps(some, input + t * groups)));
  }
};

// ---------------------------------------------------------------- three bits

// A word of a block of eight rows.
struct Octets {
  __m512i a, b, c;
};

// The codes of one of the rows, each xor `flip`. VPERMB looks at six bits of an index; the table repeats, so that the upper three do
// not matter, and what a shift brings along from the next byte does not either.
struct Int3 {
  __m512i table;
  Int3(const ld_matrix *m, char flip) {
    int64_t levels;
    std::memcpy(&levels, m->table, sizeof levels);
    table = _mm512_xor_si512(_mm512_set1_epi64(levels), _mm512_set1_epi8(flip));
  }
  LD_INLINE static Octets word(const char *p) {
    return {_mm512_loadu_si512(p), _mm512_loadu_si512(p + 64), _mm512_loadu_si512(p + 128)};
  }
  LD_INLINE __m512i codes(const Octets &word, int row) const {
    const __m512i run = row < 2 || row == 6 ? word.a : row < 4 || row == 7 ? word.b : word.c;
    __m512i index = run;
    if (row >= 6) {  // bit 2 from the last run
      const __m512i high = row == 6 ? _mm512_srli_epi16(word.c, 4) : _mm512_srli_epi16(word.c, 5);
      index = _mm512_ternarylogic_epi64(_mm512_set1_epi8(4), high, _mm512_srli_epi16(run, 6), 0xCA);
    } else if (row % 2) {
      index = _mm512_srli_epi16(run, 3);
    }
    return _mm512_permutexvar_epi8(index, table);
  }
};

// ---------------------------------------------------------------- fp32 and bf16

struct Fp32 {
  static constexpr int kColumns = 16, kBytes = 4;
  using Input = float;
  using Mask = __mmask16;
  static const Input *input(const ld_input *in) { return in->f32; }
  LD_INLINE static __m512i expand(Mask mask, __m512i v) { return _mm512_mask_expand_epi32(zero(), mask, v); }
  LD_INLINE static __m512 add(__m512 sum, __m512i w, const Input *x) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(w), _mm512_load_ps(x), sum);
  }
};

struct Bf16 {
  static constexpr int kColumns = 32, kBytes = 2;
  using Input = uint16_t;
  using Mask = __mmask32;
  static const Input *input(const ld_input *in) { return in->bf16; }
  LD_INLINE static __m512i expand(Mask mask, __m512i v) { return _mm512_mask_expand_epi16(zero(), mask, v); }
  LD_INLINE static __m512 add(__m512 sum, __m512i w, const Input *x) {
    return _mm512_dpbf16_ps(sum, as_bf16(w), as_bf16(_mm512_load_si512(x)));
  }
};

}  // namespace

#endif
