// Products in the layouts LD_EIGHTS and LD_FOURS: the shuffle is on the input's side, see avx512_records.h. For avx2.cpp alone.
//
// VPSHUFB stays within 16 bytes: those of 16 columns of codes, or of eight of bf16. So a register's inputs come from two or four
// registers.
#ifndef LOWDIM_AVX2_RECORDS_H
#define LOWDIM_AVX2_RECORDS_H

#include "avx2_sums.h"

namespace {

constexpr int64_t kRecordsAhead = 4096;

template <int64_t Bytes>
LD_INLINE void fetch_record(const char *p) {
#pragma GCC unroll 8
  for (int64_t at = 0; at < Bytes; at += 64) _mm_prefetch(p + kRecordsAhead + at, _MM_HINT_T0);
}

LD_INLINE __m256i load_two(const void *low, const void *high) {
  return join(place(static_cast<const uint8_t *>(low)), place(static_cast<const uint8_t *>(high)));
}

struct Int8Records {
  static constexpr int64_t kBytes = 192;
  explicit Int8Records(const ld_matrix *) {}
  // Half h of the values of a row.
  LD_INLINE __m256i codes(const char *values, int row, int h) const {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(values + 64 * row + 32 * h));
  }
};

struct Int4Records {
  static constexpr int64_t kBytes = 128;
  Int4 kind;
  explicit Int4Records(const ld_matrix *m) : kind(m) {}
  LD_INLINE __m256i codes(const char *values, int row, int h) const {
    return kind.codes(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(values + 32 * h)), row);
  }
};

// Inputs out of 32 bytes of each of the two (LD_EIGHTS) or four (LD_FOURS) times 64 columns of a record: a dword of values belongs to
// the one of its number, in turn.
template <int Registers>
LD_INLINE __m256i pick(const int8_t *x, __m256i places) {
  __m256i some[Registers];
#pragma GCC unroll 4
  for (int j = 0; j < Registers; ++j)
    some[j] = _mm256_shuffle_epi8(_mm256_load_si256(reinterpret_cast<const __m256i *>(x + 64 * j)), places);
  const __m256i picked = _mm256_blend_epi32(some[0], some[1], 0xAA);
  if (Registers == 2) return picked;
  return _mm256_blend_epi32(picked, _mm256_blend_epi32(some[Registers - 2], some[Registers - 1], 0xAA), 0xCC);
}

// The scales of a record's dwords: of the groups from `scales` on.
template <int Registers>
LD_INLINE __m256 scale_of(const float *scales, bool wide) {
  if (Registers == 2 && wide) return _mm256_set1_ps(*scales);
  if (Registers == 4 && !wide) return _mm256_broadcast_ps(reinterpret_cast<const __m128 *>(scales));
  const __m128i both = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(scales));  // of two groups
  const __m256 two = _mm256_castsi256_ps(_mm256_broadcastq_epi64(both));
  return Registers == 2 ? two : _mm256_permute_ps(two, 0x50);
}

// Tokens [Begin, Begin + Tokens) of a pair of rows, as many at once as registers hold the sums of.
template <class Kind, int Registers, int Begin, int Tokens>
LD_INLINE void record_codes(const ld_matrix *m, const ld_input *in, const Kind &kind, int64_t row, int64_t end, float *y, int64_t y_stride) {
  constexpr int kSome = Tokens <= 2 ? Tokens : 2;
  constexpr int64_t kColumns = 64 * Registers;
  const bool wide = m->group == 128;
  const int shift = wide ? 7 : 6;
  const char *p = records_of(m, row);
  ld_input part = *in;
  part.q += Begin * in->stride;
  part.scale += Begin * in->groups;
  Scales<kSome> scales[2];
  CodeSums<kSome> sums[2];
  for (int r = 0; r < 2; ++r) sums[r].clear();
  for (int64_t c = 0; c < m->cols; c += kColumns, p += Kind::kBytes) {
    const int64_t group = c >> shift;
    if ((group & 7) == 0)
      for (int r = 0; r < 2; ++r) scales[r].fill(m, &part, least(row + r, m->rows - 1), group);
    fetch_record<Kind::kBytes>(p);
    __m256i dot[2][kSome];
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
#pragma GCC unroll 2
      for (int r = 0; r < 2; ++r) {
        const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p + kRecordPlaces * r));
        const __m256i places = _mm256_and_si256(h ? _mm256_srli_epi16(both, 4) : both, _mm256_set1_epi8(15));
        const __m256i w = kind.codes(p + 2 * kRecordPlaces, r, h), size = _mm256_abs_epi8(w);
#pragma GCC unroll 2
        for (int t = 0; t < kSome; ++t) {
          const __m256i some = CodeSums<kSome>::fours(w, size, pick<Registers>(part.q + t * part.stride + c + 32 * h, places));
          dot[r][t] = h ? _mm256_add_epi32(dot[r][t], some) : some;
        }
      }
    }
#pragma GCC unroll 2
    for (int r = 0; r < 2; ++r)
#pragma GCC unroll 2
      for (int t = 0; t < kSome; ++t) {
        const __m256 by = scale_of<Registers>(scales[r].at[t] + (group & 7), wide);
        sums[r].at[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r][t]), by, sums[r].at[t]);
      }
  }
  for (int r = 0; r < 2 && row + r < end; ++r) sums[r].finish(m, row + r, y + Begin * y_stride, y_stride);
  if constexpr (kSome < Tokens) record_codes<Kind, Registers, Begin + kSome, Tokens - kSome>(m, in, kind, row, end, y, y_stride);
}

// Both bytes of values: twice their places, and one more.
LD_INLINE __m256i bytes_of(__m256i places) {
  return _mm256_add_epi16(_mm256_mullo_epi16(places, _mm256_set1_epi16(0x0202)), _mm256_set1_epi16(0x0100));
}

// 16 inputs of bf16; eight, in 16 bytes, of the 16 columns at x and eight of those at x + `next`.
LD_INLINE __m256i pick_numbers(const uint16_t *x, int64_t next, __m256i bytes) {
  const __m256i left = load_two(x, x + next), right = load_two(x + 8, x + next + 8);
  return _mm256_blendv_epi8(_mm256_shuffle_epi8(left, bytes), _mm256_shuffle_epi8(right, bytes), _mm256_slli_epi16(bytes, 3));
}

template <int Registers, int Begin, int Tokens>
LD_INLINE void record_floats(const ld_matrix *m, const ld_input *in, int64_t row, int64_t end, float *y, int64_t y_stride) {
  constexpr int kSome = Tokens <= 2 ? Tokens : 2;
  constexpr int64_t kBytes = 320, kColumns = 64 * Registers;
  const char *p = records_of(m, row);
  const uint16_t *x = in->bf16 + Begin * in->stride;
  __m256 sums[2][kSome][2];
  for (auto &of_row : sums)
    for (auto &of_token : of_row) of_token[0] = of_token[1] = _mm256_setzero_ps();
  for (int64_t c = 0; c < m->cols; c += kColumns, x += kColumns, p += kBytes) {
    fetch_record<kBytes>(p);
#pragma GCC unroll 2
    for (int quarter = 0; quarter < 2; ++quarter) {  // 16 values with low halves of places, and 16 with high ones
      __m256i both[2];
      for (int r = 0; r < 2; ++r)
        both[r] = _mm256_cvtepu8_epi16(place(reinterpret_cast<const uint8_t *>(p) + kRecordPlaces * r + 16 * quarter));
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        __m256i bytes[2];
        for (int r = 0; r < 2; ++r)
          bytes[r] = bytes_of(half ? _mm256_srli_epi16(both[r], 4) : _mm256_and_si256(both[r], _mm256_set1_epi16(15)));
#pragma GCC unroll 2
        for (int t = 0; t < kSome; ++t) {
          const uint16_t *const from = x + t * in->stride + kColumns / 2 * half + kColumns / 4 * quarter;
#pragma GCC unroll 2
          for (int r = 0; r < 2; ++r) {
            __m256i picked;
            if (Registers == 2)
              picked = pick_numbers(from, 16, bytes[r]);
            else
              picked = _mm256_blend_epi32(pick_numbers(from, 32, bytes[r]), pick_numbers(from + 16, 32, bytes[r]), 0xCC);
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
  if constexpr (kSome < Tokens) record_floats<Registers, Begin + kSome, Tokens - kSome>(m, in, row, end, y, y_stride);
}

template <int Registers, int Tokens>
void record_rows(const ld_matrix *m, const ld_input *in, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  if (m->kind == LD_BF16) {
    for (int64_t row = begin; row < end; row += 2) record_floats<Registers, 0, Tokens>(m, in, row, end, y, y_stride);
  } else if (m->kind == LD_INT8) {
    const Int8Records kind(m);
    for (int64_t row = begin; row < end; row += 2) record_codes<Int8Records, Registers, 0, Tokens>(m, in, kind, row, end, y, y_stride);
  } else {
    const Int4Records kind(m);
    for (int64_t row = begin; row < end; row += 2) record_codes<Int4Records, Registers, 0, Tokens>(m, in, kind, row, end, y, y_stride);
  }
}

}  // namespace
#endif
