// How the AVX2 kernels read the values of each kind. For avx2.cpp alone.
#ifndef LOWDIM_AVX2_H
#define LOWDIM_AVX2_H

#include "records.h"

#include <immintrin.h>

// Sums stay in registers only where everything that touches them is inlined.
#define LD_ALWAYS __attribute__((always_inline))
#define LD_INLINE inline LD_ALWAYS

namespace {

constexpr Places kPlaces;
constexpr int64_t kMargin = 256;      // bytes beyond the next value that are read at most
constexpr int64_t kStretch = 1024;    // columns whose nibbles are looked up at a time

template <class Register>
__attribute__((noinline)) Register load_near_end(const char *p, const char *end) {
  Register v = {};
  const int64_t left = end - p;
  if (left > 0) std::memcpy(&v, p, left < static_cast<int64_t>(sizeof v) ? static_cast<size_t>(left) : sizeof v);
  return v;
}

// Bytes at p. Where `Last`, none from `end` on.
template <class Register, bool Last>
LD_INLINE Register load(const char *p, const char *end) {
  if (Last) return load_near_end<Register>(p, end);
  Register v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// May the row, whose values end there, be read in whole registers?
inline bool inside(const ld_matrix *m, int64_t row) {
  if (m->kind == LD_INT3) return true;  // whole words are stored
  const int64_t line = m->kind == LD_INT4 ? row / 2 : row;
  const int64_t width = m->kind == LD_FP32 ? 4 : m->kind == LD_BF16 ? 2 : 1;
  return (m->mask ? m->row_ptr[line + 1] : (line + 1) * m->cols * width) + kMargin <= m->value_bytes;
}

LD_INLINE __m256i join(__m128i low, __m128i high) { return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1); }

LD_INLINE __m128i place(const uint8_t *entry) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(entry)); }

inline const uint8_t *mask_bytes(const ld_matrix *m, int64_t row) {
  return reinterpret_cast<const uint8_t *>(m->mask + row * m->mask_words);
}

// ---------------------------------------------------------------- fp32 and bf16

// 16 columns as two registers; which column lies where is the kind's own affair, but the same for weights and inputs.
struct Numbers {
  __m256 a, b;
};

struct Fp32 {
  using Input = float;
  static constexpr int64_t kBytes = 4;
  static const Input *input(const ld_input *in) { return in->f32; }
  static __m256 read_a(const float *x) { return _mm256_loadu_ps(x); }
  static __m256 read_b(const float *x) { return _mm256_loadu_ps(x + 8); }
  static Numbers read(const float *x) { return {read_a(x), read_b(x)}; }

  template <bool Last>
  static __m256 take8(const char *&p, const char *end, uint32_t mask) {
    const __m256i v = load<__m256i, Last>(p, end);
    const __m256i at = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(kPlaces.bytes[mask])));
    p += kBytes * __builtin_popcount(mask);
    return _mm256_castsi256_ps(_mm256_andnot_si256(_mm256_srai_epi32(at, 31), _mm256_permutevar8x32_epi32(v, at)));
  }
  static Numbers read(Numbers v) { return v; }

  // 16 columns of a row in their order: the next values of a packed row, or those of a dense row from p on.
  template <bool Last>
  static Numbers take(const char *&p, const char *end, const uint8_t *mask) {
    const __m256 a = take8<Last>(p, end, mask[0]);
    return {a, take8<Last>(p, end, mask[1])};
  }
  template <bool Last>
  static Numbers get(const char *p, const char *end) {
    return {load<__m256, Last>(p, end), load<__m256, Last>(p + 32, end)};
  }
};

struct Bf16 {
  using Input = uint16_t;
  static constexpr int64_t kBytes = 2;
  static const Input *input(const ld_input *in) { return in->bf16; }
  // Even columns and odd ones.
  static __m256 even(__m256i v) { return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16)); }
  static __m256 odd(__m256i v) {
    return _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(static_cast<int>(0xFFFF0000))));
  }
  static Numbers read(__m256i v) {
    asm("" : "+x"(v));
    return {even(v), odd(v)};
  }
  // An input is read for each register anew: there are too few to keep it.
  static __m256 read_a(const uint16_t *x) { return even(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(x))); }
  static __m256 read_b(const uint16_t *x) { return odd(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(x))); }
  static Numbers read(const uint16_t *x) { return read(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(x))); }

  template <bool Last>
  static __m256i take(const char *&p, const char *end, const uint8_t *mask) {
    const uint32_t low = mask[0], high = mask[1];
    const char *const middle = p + kBytes * __builtin_popcount(low);
    const __m256i v = join(load<__m128i, Last>(p, end), load<__m128i, Last>(middle, end));
    p = middle + kBytes * __builtin_popcount(high);
    return _mm256_shuffle_epi8(v, join(place(kPlaces.pairs[low]), place(kPlaces.pairs[high])));
  }
  template <bool Last>
  static __m256i get(const char *p, const char *end) {
    return load<__m256i, Last>(p, end);
  }
};

// ---------------------------------------------------------------- int8 and int4

// The next codes of a row in the 32 columns that four bytes of its mask name, zeros elsewhere.
template <bool Last>
LD_INLINE __m256i take_codes(const char *&p, const char *end, const uint8_t *mask) {
  __m128i part[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const uint32_t bits = mask[i];
    const __m128i v = _mm_cvtsi64_si128(load<int64_t, Last>(p, end));
    part[i] = _mm_shuffle_epi8(v, _mm_loadl_epi64(reinterpret_cast<const __m128i *>(kPlaces.bytes[bits])));
    p += __builtin_popcount(bits);
  }
  return join(_mm_unpacklo_epi64(part[0], part[1]), _mm_unpacklo_epi64(part[2], part[3]));
}

struct Int8 {
  static constexpr int kRows = 1;  // that share their bytes
  explicit Int8(const ld_matrix *) {}
  LD_INLINE __m256i codes(__m256i v, int64_t) const { return v; }
};

struct Int4 {
  static constexpr int kRows = 2;
  __m256i table;
  explicit Int4(const ld_matrix *m) : table(_mm256_broadcastsi128_si256(place(reinterpret_cast<const uint8_t *>(m->table)))) {}
  LD_INLINE __m256i codes(__m256i v, int64_t half) const {
    const __m256i index = half ? _mm256_srli_epi16(v, 4) : v;
    return _mm256_shuffle_epi8(table, _mm256_and_si256(index, _mm256_set1_epi8(15)));
  }
};

// Three bits. Each row of a block takes its codes from one or two of the three runs of a word; p: where in the first they begin.
struct Int3 {
  __m256i table;
  explicit Int3(const ld_matrix *m) {
    int64_t levels;
    std::memcpy(&levels, m->table, sizeof levels);
    table = _mm256_set1_epi64x(levels);
  }
  LD_INLINE __m256i codes(const char *p, int64_t row) const {
    const auto run = [&](int64_t i) LD_ALWAYS { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p + 64 * i)); };
    if (row < 6) return look_up(row % 2 ? _mm256_srli_epi16(run(row / 2), 3) : run(row / 2));
    const __m256i low = _mm256_and_si256(_mm256_srli_epi16(run(row - 6), 6), _mm256_set1_epi8(3));
    const __m256i high = row == 6 ? _mm256_srli_epi16(run(2), 4) : _mm256_srli_epi16(run(2), 5);
    return look_up(_mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi8(4))));
  }
  LD_INLINE __m256i look_up(__m256i index) const {
    return _mm256_shuffle_epi8(table, _mm256_and_si256(index, _mm256_set1_epi8(7)));
  }
};

// The codes of a row in the columns [begin, finish), looked up together before they are spread: fewer instructions than for eight
// at a time. Moves p behind their bytes.
template <bool Last>
void look_up(const ld_matrix *m, int64_t row, int64_t begin, int64_t finish, const char *&p, const char *end, char *codes) {
  const Int4 kind(m);
  const uint64_t *const mask = m->mask + row * m->mask_words;
  int64_t count = 0;
  for (int64_t c = begin; c < finish; c += 64) count += __builtin_popcountll(mask[c / 64]);
  for (int64_t i = 0; i < count; i += 32)
    _mm256_store_si256(reinterpret_cast<__m256i *>(codes + i), kind.codes(load<__m256i, Last>(p + i, end), row % 2));
  p += count;
}

}  // namespace
#endif
