// Products in the layout LD_EIGHTS: the shuffle is on the input's side, see avx512_eights.h. For avx2.cpp alone.
//
// VPSHUFB stays within 16 bytes: those of 16 columns of codes, or of eight of bf16. So half of a register's inputs come from one
// register, half from another.
#ifndef LOWDIM_AVX2_EIGHTS_H
#define LOWDIM_AVX2_EIGHTS_H

#include "avx2_sums.h"

namespace {

constexpr int64_t kEightsAhead = 4096;

template <int64_t Bytes>
LD_INLINE void fetch_record(const char *p) {
#pragma GCC unroll 8
  for (int64_t at = 0; at < Bytes; at += 64) _mm_prefetch(p + kEightsAhead + at, _MM_HINT_T0);
}

LD_INLINE __m256i load_two(const void *low, const void *high) {
  return join(place(static_cast<const uint8_t *>(low)), place(static_cast<const uint8_t *>(high)));
}

struct Int8Eights {
  static constexpr int64_t kBytes = 192;
  explicit Int8Eights(const ld_matrix *) {}
  // Half h of the values of a row.
  LD_INLINE __m256i codes(const char *values, int row, int h) const {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(values + 64 * row + 32 * h));
  }
};

struct Int4Eights {
  static constexpr int64_t kBytes = 128;
  Int4 kind;
  explicit Int4Eights(const ld_matrix *m) : kind(m) {}
  LD_INLINE __m256i codes(const char *values, int row, int h) const {
    return kind.codes(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(values + 32 * h)), row);
  }
};

// Tokens [Begin, Begin + Tokens) of a pair of rows, as many at once as registers hold the sums of.
template <class Kind, int Begin, int Tokens>
LD_INLINE void eights_codes(const ld_matrix *m, const ld_input *in, const Kind &kind, int64_t row, int64_t end, float *y, int64_t y_stride) {
  constexpr int kSome = Tokens <= 2 ? Tokens : 2;
  const int shift = m->group == 64 ? 6 : 7;
  const char *p = records_of(m, row);
  ld_input part = *in;
  part.q += Begin * in->stride;
  part.scale += Begin * in->groups;
  Scales<kSome> scales[2];
  CodeSums<kSome> sums[2];
  for (int r = 0; r < 2; ++r) sums[r].clear();
  for (int64_t c = 0; c < m->cols; c += kRecordColumns, p += Kind::kBytes) {
    if ((c & ((512 << (shift - 6)) - 1)) == 0)
      for (int r = 0; r < 2; ++r) scales[r].fill(m, &part, least(row + r, m->rows - 1), c >> shift);
    fetch_record<Kind::kBytes>(p);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const int64_t column = c + 64 * h, group = column >> shift;
      if (h && column >= m->cols) break;  // there are no scales for what fills up
      __m256i places[2], w[2];
#pragma GCC unroll 2
      for (int r = 0; r < 2; ++r) {
        const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p + kRecordPlaces * r));
        places[r] = _mm256_and_si256(h ? _mm256_srli_epi16(both, 4) : both, _mm256_set1_epi8(15));
        w[r] = kind.codes(p + 2 * kRecordPlaces, r, h);
      }
#pragma GCC unroll 2
      for (int t = 0; t < kSome; ++t) {
        const int8_t *const q = part.q + t * part.stride + column;
        const __m256i even = load_two(q, q + 32), odd = load_two(q + 16, q + 48);
#pragma GCC unroll 2
        for (int r = 0; r < 2; ++r) {
          const __m256i picked = _mm256_blend_epi32(_mm256_shuffle_epi8(even, places[r]), _mm256_shuffle_epi8(odd, places[r]), 0xCC);
          const __m256i dot = CodeSums<kSome>::fours(w[r], _mm256_abs_epi8(w[r]), picked);
          sums[r].at[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_set1_ps(scales[r].at[t][group & 7]), sums[r].at[t]);
        }
      }
    }
  }
  for (int r = 0; r < 2 && row + r < end; ++r) sums[r].finish(m, row + r, y + Begin * y_stride, y_stride);
  if constexpr (kSome < Tokens) eights_codes<Kind, Begin + kSome, Tokens - kSome>(m, in, kind, row, end, y, y_stride);
}

template <int Begin, int Tokens>
LD_INLINE void eights_floats(const ld_matrix *m, const ld_input *in, int64_t row, int64_t end, float *y, int64_t y_stride) {
  constexpr int kSome = Tokens <= 2 ? Tokens : 2;
  constexpr int64_t kBytes = 320;
  const char *p = records_of(m, row);
  const uint16_t *x = in->bf16 + Begin * in->stride;
  __m256 sums[2][kSome][2];
  for (auto &of_row : sums)
    for (auto &of_token : of_row) of_token[0] = of_token[1] = _mm256_setzero_ps();
  for (int64_t c = 0; c < m->cols; c += kRecordColumns, x += kRecordColumns, p += kBytes) {
    fetch_record<kBytes>(p);
#pragma GCC unroll 2
    for (int quarter = 0; quarter < 2; ++quarter) {  // 16 values with low halves of places, and 16 with high ones
      __m256i both[2];
      for (int r = 0; r < 2; ++r)
        both[r] = _mm256_cvtepu8_epi16(place(reinterpret_cast<const uint8_t *>(p) + kRecordPlaces * r + 16 * quarter));
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        __m256i bytes[2];
        for (int r = 0; r < 2; ++r) {  // of both bytes of a value: twice its place, and one more
          const __m256i at = half ? _mm256_srli_epi16(both[r], 4) : _mm256_and_si256(both[r], _mm256_set1_epi16(15));
          bytes[r] = _mm256_add_epi16(_mm256_mullo_epi16(at, _mm256_set1_epi16(0x0202)), _mm256_set1_epi16(0x0100));
        }
#pragma GCC unroll 2
        for (int t = 0; t < kSome; ++t) {
          const uint16_t *const from = x + t * in->stride + 64 * half + 32 * quarter;
          const __m256i left = load_two(from, from + 16), right = load_two(from + 8, from + 24);
#pragma GCC unroll 2
          for (int r = 0; r < 2; ++r) {
            const __m256i picked = _mm256_blendv_epi8(_mm256_shuffle_epi8(left, bytes[r]), _mm256_shuffle_epi8(right, bytes[r]),
                                                      _mm256_slli_epi16(bytes[r], 3));
            const char *const values = p + 2 * kRecordPlaces + 128 * r + 64 * half + 32 * quarter;
            const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(values));
            sums[r][t][0] = _mm256_fmadd_ps(Bf16::even(w), Bf16::even(picked), sums[r][t][0]);
            sums[r][t][1] = _mm256_fmadd_ps(Bf16::odd(w), Bf16::odd(picked), sums[r][t][1]);
          }
        }
      }
    }
  }
  for (int r = 0; r < 2 && row + r < end; ++r)
    for (int t = 0; t < kSome; ++t)
      store(m, row + r, _mm256_add_ps(sums[r][t][0], sums[r][t][1]), y + (Begin + t) * y_stride + row + r);
  if constexpr (kSome < Tokens) eights_floats<Begin + kSome, Tokens - kSome>(m, in, row, end, y, y_stride);
}

template <int Tokens>
void eights_rows(const ld_matrix *m, const ld_input *in, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  if (m->kind == LD_BF16) {
    for (int64_t row = begin; row < end; row += 2) eights_floats<0, Tokens>(m, in, row, end, y, y_stride);
  } else if (m->kind == LD_INT8) {
    const Int8Eights kind(m);
    for (int64_t row = begin; row < end; row += 2) eights_codes<Int8Eights, 0, Tokens>(m, in, kind, row, end, y, y_stride);
  } else {
    const Int4Eights kind(m);
    for (int64_t row = begin; row < end; row += 2) eights_codes<Int4Eights, 0, Tokens>(m, in, kind, row, end, y, y_stride);
  }
}

}  // namespace
#endif
