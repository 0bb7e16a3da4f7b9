// Products in the layout LD_EIGHTS. For avx512.cpp alone.
//
// The shuffle is on the input's side: a row's places pick its 64 inputs out of the 128 of a stretch, and its values are read whole.
// Nothing is counted and nothing expanded. A pair of rows is one stream of memory, which is fetched ahead by hand: the processor's own
// prefetcher, fast enough for a dense row, falls behind what this needs.
#ifndef LOWDIM_AVX512_EIGHTS_H
#define LOWDIM_AVX512_EIGHTS_H

#include "avx512.h"

namespace {

constexpr int64_t kEightsAhead = 8192;

template <int64_t Bytes>
LD_INLINE void fetch_record(const char *p) {
#pragma GCC unroll 8
  for (int64_t at = 0; at < Bytes; at += 64) _mm_prefetch(p + kEightsAhead + at, _MM_HINT_T0);
}

// (v & low) | base
LD_INLINE __m512i within(__m512i v, __m512i low, __m512i base) { return _mm512_ternarylogic_epi64(v, low, base, 0xEA); }

// ---------------------------------------------------------------- int8 and int4

struct Int8Eights {
  static constexpr int64_t kBytes = 192;
  explicit Int8Eights(const ld_matrix *) {}
  LD_INLINE __m512i codes(const char *values, int row) const { return _mm512_loadu_si512(values + 64 * row); }
};

struct Int4Eights {
  static constexpr int64_t kBytes = 128;
  __m512i table;
  explicit Int4Eights(const ld_matrix *m)
      : table(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i *>(m->table)))) {}
  LD_INLINE __m512i codes(const char *values, int row) const {
    const __m512i v = _mm512_loadu_si512(values);
    return _mm512_permutexvar_epi8(row ? _mm512_srli_epi16(v, 4) : v, table);
  }
};

// The scales of a record's lanes: of one group of 128 columns, or of two of 64.
template <int Words>
LD_INLINE __m512 scale_of(const float *scales, int record) {
  if (Words == 2) return _mm512_set1_ps(scales[record]);
  return _mm512_mask_broadcastss_ps(_mm512_set1_ps(scales[2 * record]), 0xFF00, _mm_load_ss(scales + 2 * record + 1));
}

template <class Kind, int Tokens, int Words>
LD_INLINE void eights_pair(const ld_matrix *m, const ld_input *in, const Kind &kind, int64_t row, int64_t end, float *y, int64_t y_stride) {
  alignas(64) static constexpr int64_t kBase[8] = {0, 0x1010101010101010, 0x2020202020202020, 0x3030303030303030,
                                                   0x4040404040404040, 0x5050505050505050, 0x6060606060606060, 0x7070707070707070};
  const __m512i base = _mm512_load_si512(kBase), low = _mm512_set1_epi8(15), flip = _mm512_set1_epi8(-128);
  const __m512i halves = _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4);
  const char *p = records_of(m, row);
  const int8_t *x = in->q;
  Scales<Tokens> scales[2];
  Sums<Tokens> sums[2];
  for (int r = 0; r < 2; ++r) sums[r].clear();

  for (int64_t g = 0; g < in->groups; g += 16) {
    const __mmask16 some = static_cast<__mmask16>(first(in->groups - g));
    for (int r = 0; r < 2; ++r) {
      const int64_t own = least(row + r, m->rows - 1);  // a row that is not there takes the scales of one that is
      scales[r].fill(m->scales + own * in->groups + g, in->scale + g, in->groups, some);
    }
    const int count = static_cast<int>((least(16, in->groups - g) * Words + 1) / 2);
    for (int i = 0; i < count; ++i, x += kRecordColumns, p += Kind::kBytes) {
      fetch_record<Kind::kBytes>(p);
#pragma GCC unroll 2
      for (int r = 0; r < 2; ++r) {
        const __m512i both = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p + kRecordPlaces * r)));
        const __m512i places = within(_mm512_srlv_epi64(both, halves), low, base);
        const __m512i w = kind.codes(p + 2 * kRecordPlaces, r);
        // VPDPBUSD wants one side unsigned: inputs plus 128, and what that adds taken off before.
        const __m512i start = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_dpbusd_epi32(_mm512_setzero_si512(), flip, w));
#pragma GCC unroll 8
        for (int t = 0; t < Tokens; ++t) {
          const int8_t *const q = x + t * in->stride;
          const __m512i picked = _mm512_permutex2var_epi8(_mm512_load_si512(q), places, _mm512_load_si512(q + 64));
          const __m512i dot = _mm512_dpbusd_epi32(start, _mm512_xor_si512(picked, flip), w);
          sums[r].at[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale_of<Words>(scales[r].at[t], i), sums[r].at[t]);
        }
      }
    }
  }
  for (int r = 0; r < 2 && row + r < end; ++r) sums[r].store(m, row + r, y, y_stride);
}

// ---------------------------------------------------------------- bf16

// Tokens [Begin, Begin + Tokens) of a pair of rows, as many at once as registers hold the sums of.
template <int Begin, int Tokens>
LD_INLINE void eights_floats(const ld_matrix *m, const ld_input *in, int64_t row, int64_t end, float *y, int64_t y_stride) {
  constexpr int kSome = Tokens <= 4 ? Tokens : (Tokens + 1) / 2;
  constexpr int64_t kBytes = 320;
  const __m512i base = _mm512_slli_epi16(_mm512_cvtepi8_epi16(_mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0)), 4);
  const __m512i low = _mm512_set1_epi16(15);
  const char *p = records_of(m, row);
  const uint16_t *x = in->bf16 + Begin * in->stride;
  __m512 sums[2][kSome][2];
  for (auto &of_row : sums)
    for (auto &of_token : of_row) of_token[0] = of_token[1] = _mm512_setzero_ps();
  for (int64_t c = 0; c < m->cols; c += kRecordColumns, x += kRecordColumns, p += kBytes) {
    fetch_record<kBytes>(p);
#pragma GCC unroll 2
    for (int r = 0; r < 2; ++r) {
      const __m512i both = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p + kRecordPlaces * r)));
      const __m512i places[2] = {within(both, low, base), _mm512_or_si512(_mm512_srli_epi16(both, 4), base)};
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const __m512bh w = as_bf16(_mm512_loadu_si512(p + 2 * kRecordPlaces + 128 * r + 64 * h));
#pragma GCC unroll 4
        for (int t = 0; t < kSome; ++t) {
          const uint16_t *const from = x + t * in->stride + 64 * h;
          const __m512i picked = _mm512_permutex2var_epi16(_mm512_load_si512(from), places[h], _mm512_load_si512(from + 32));
          sums[r][t][h] = _mm512_dpbf16_ps(sums[r][t][h], w, as_bf16(picked));
        }
      }
    }
  }
  for (int r = 0; r < 2 && row + r < end; ++r) {
    Sums<kSome> both;
    for (int t = 0; t < kSome; ++t) both.at[t] = _mm512_add_ps(sums[r][t][0], sums[r][t][1]);
    both.store(m, row + r, y + Begin * y_stride, y_stride);
  }
  if constexpr (kSome < Tokens) eights_floats<Begin + kSome, Tokens - kSome>(m, in, row, end, y, y_stride);
}

// ---------------------------------------------------------------- rows

using EightsRows = void (*)(const ld_matrix *, const ld_input *, int64_t, int64_t, float *, int64_t);

template <class Kind, int Tokens, int Words>
void eights_codes(const ld_matrix *m, const ld_input *in, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  const Kind kind(m);
  for (int64_t row = begin; row < end; row += 2) eights_pair<Kind, Tokens, Words>(m, in, kind, row, end, y, y_stride);
}

template <int Tokens>
void eights_bf16(const ld_matrix *m, const ld_input *in, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  for (int64_t row = begin; row < end; row += 2) eights_floats<0, Tokens>(m, in, row, end, y, y_stride);
}

template <int Tokens>
constexpr EightsRows kEights[] = {eights_bf16<Tokens>, eights_codes<Int8Eights, Tokens, 1>, eights_codes<Int8Eights, Tokens, 2>,
                                  eights_codes<Int4Eights, Tokens, 1>, eights_codes<Int4Eights, Tokens, 2>};
constexpr const EightsRows *kEightsByTokens[LD_MAX_TOKENS] = {kEights<1>, kEights<2>, kEights<3>, kEights<4>,
                                                              kEights<5>, kEights<6>, kEights<7>, kEights<8>};

void eights(const ld_matrix *m, const ld_input *in, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  const int form = m->kind == LD_BF16 ? 0 : (m->kind == LD_INT8 ? 1 : 3) + (m->group == 128);
  kEightsByTokens[in->tokens - 1][form](m, in, begin, end, y, y_stride);
}

}  // namespace

#endif
