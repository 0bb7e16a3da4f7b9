// Products in the layouts LD_EIGHTS and LD_FOURS. For avx512.cpp alone.
//
// The shuffle is on the input's side: a row's places pick its 64 inputs out of the 128 or 256 of a stretch, and its values are read
// whole. Nothing is counted and nothing expanded. A pair of rows is one stream of memory, which is fetched ahead by hand: the
// processor's own prefetcher, fast enough for a dense row, falls behind what this needs.
#ifndef LOWDIM_AVX512_RECORDS_H
#define LOWDIM_AVX512_RECORDS_H

#include "avx512.h"

namespace {

constexpr int64_t kRecordsAhead = 8192;

template <int64_t Bytes>
LD_INLINE void fetch_record(const char *p) {
#pragma GCC unroll 8
  for (int64_t at = 0; at < Bytes; at += 64) _mm_prefetch(p + kRecordsAhead + at, _MM_HINT_T0);
}

// (v & low) | base
LD_INLINE __m512i within(__m512i v, __m512i low, __m512i base) { return _mm512_ternarylogic_epi64(v, low, base, 0xEA); }

// ---------------------------------------------------------------- int8 and int4

struct Int8Records {
  static constexpr int64_t kBytes = 192;
  explicit Int8Records(const ld_matrix *) {}
  LD_INLINE __m512i codes(const char *values, int row) const { return _mm512_loadu_si512(values + 64 * row); }
};

struct Int4Records {
  static constexpr int64_t kBytes = 128;
  __m512i table;
  explicit Int4Records(const ld_matrix *m)
      : table(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i *>(m->table)))) {}
  LD_INLINE __m512i codes(const char *values, int row) const {
    const __m512i v = _mm512_loadu_si512(values);
    return _mm512_permutexvar_epi8(row ? _mm512_srli_epi16(v, 4) : v, table);
  }
};

// The columns of a record fill two registers (LD_EIGHTS) or four (LD_FOURS); a dword of values belongs to the one of its number, in turn.
template <int Registers>
LD_INLINE __m512i pick(const __m512i *x, __m512i places) {
  __m512i picked = _mm512_shuffle_epi8(x[0], places);
  if (Registers == 2) return _mm512_mask_shuffle_epi8(picked, 0xF0F0F0F0F0F0F0F0, x[1], places);
  picked = _mm512_mask_shuffle_epi8(picked, 0x00F000F000F000F0, x[1], places);
  picked = _mm512_mask_shuffle_epi8(picked, 0x0F000F000F000F00, x[2], places);
  return _mm512_mask_shuffle_epi8(picked, 0xF000F000F000F000, x[3], places);
}

// The scales of a record's dwords, of groups of `Words` times 64 columns.
template <int Registers, int Words>
LD_INLINE __m512 scale_of(const float *scales, int record) {
  if (Registers == Words) return _mm512_set1_ps(scales[record]);
  if (Registers == 2 * Words) {  // of two groups
    const __m128i both = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(scales + 2 * record));
    const __m512 two = _mm512_broadcast_f32x2(_mm_castsi128_ps(both));
    return Registers == 2 ? two : _mm512_permute_ps(two, 0x50);
  }
  return _mm512_broadcast_f32x4(_mm_load_ps(scales + 4 * record));
}

template <class Kind, int Tokens, int Registers, int Words>
LD_INLINE void record_pair(const ld_matrix *m, const ld_input *in, const Kind &kind, int64_t row, int64_t end, float *y, int64_t y_stride) {
  const __m512i low = _mm512_set1_epi8(15), flip = _mm512_set1_epi8(-128);
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
    const int count = static_cast<int>((least(16, in->groups - g) * Words + Registers - 1) / Registers);
    for (int i = 0; i < count; ++i, x += 64 * Registers, p += Kind::kBytes) {
      fetch_record<Kind::kBytes>(p);
      __m512i places[2], w[2], start[2];
#pragma GCC unroll 2
      for (int r = 0; r < 2; ++r) {
        const __m512i both = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p + kRecordPlaces * r)));
        places[r] = _mm512_and_si512(_mm512_srlv_epi64(both, halves), low);
        w[r] = kind.codes(p + 2 * kRecordPlaces, r);
        // VPDPBUSD wants one side unsigned: inputs plus 128, and what that adds taken off before.
        start[r] = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_dpbusd_epi32(_mm512_setzero_si512(), flip, w[r]));
      }
#pragma GCC unroll 8
      for (int t = 0; t < Tokens; ++t) {
        __m512i q[Registers];
#pragma GCC unroll 4
        for (int j = 0; j < Registers; ++j) q[j] = _mm512_xor_si512(_mm512_load_si512(x + t * in->stride + 64 * j), flip);
#pragma GCC unroll 2
        for (int r = 0; r < 2; ++r) {
          const __m512i dot = _mm512_dpbusd_epi32(start[r], pick<Registers>(q, places[r]), w[r]);
          sums[r].at[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale_of<Registers, Words>(scales[r].at[t], i), sums[r].at[t]);
        }
      }
    }
  }
  for (int r = 0; r < 2 && row + r < end; ++r) sums[r].store(m, row + r, y, y_stride);
}

// ---------------------------------------------------------------- bf16

// 32 inputs out of 64 columns (LD_EIGHTS), or each half of them out of 64 of its own.
template <int Registers>
LD_INLINE __m512i pick(const uint16_t *x, __m512i places) {
  const __m512i some = _mm512_permutex2var_epi16(_mm512_load_si512(x), places, _mm512_load_si512(x + 32));
  if (Registers == 2) return some;
  const __m512i others = _mm512_permutex2var_epi16(_mm512_load_si512(x + 64), places, _mm512_load_si512(x + 96));
  return _mm512_mask_blend_epi64(0xF0, some, others);
}

// Tokens [Begin, Begin + Tokens) of a pair of rows, as many at once as registers hold the sums of.
template <int Registers, int Begin, int Tokens>
LD_INLINE void record_floats(const ld_matrix *m, const ld_input *in, int64_t row, int64_t end, float *y, int64_t y_stride) {
  constexpr int kSome = Tokens <= 4 ? Tokens : (Tokens + 1) / 2;
  constexpr int64_t kBytes = 320, kColumns = 64 * Registers;
  const int64_t first_of = Registers == 2 ? 0x0101010101010101 : 0x0101010100000000;  // the 16 columns of a value, of four
  const __m256i group = Registers == 2 ? _mm256_set_epi64x(3 * first_of, 2 * first_of, first_of, 0)
                                       : _mm256_set_epi64x(first_of + 0x0202020202020202, first_of, first_of + 0x0202020202020202, first_of);
  const __m512i base = _mm512_slli_epi16(_mm512_cvtepi8_epi16(group), 4), low = _mm512_set1_epi16(15);
  const char *p = records_of(m, row);
  const uint16_t *x = in->bf16 + Begin * in->stride;
  __m512 sums[2][kSome][2];
  for (auto &of_row : sums)
    for (auto &of_token : of_row) of_token[0] = of_token[1] = _mm512_setzero_ps();
  for (int64_t c = 0; c < m->cols; c += kColumns, x += kColumns, p += kBytes) {
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
          const __m512i picked = pick<Registers>(x + t * in->stride + kColumns / 2 * h, places[h]);
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
  if constexpr (kSome < Tokens) record_floats<Registers, Begin + kSome, Tokens - kSome>(m, in, row, end, y, y_stride);
}

// ---------------------------------------------------------------- rows

using RecordRows = void (*)(const ld_matrix *, const ld_input *, int64_t, int64_t, float *, int64_t);

template <class Kind, int Tokens, int Registers, int Words>
void record_codes(const ld_matrix *m, const ld_input *in, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  const Kind kind(m);
  for (int64_t row = begin; row < end; row += 2) record_pair<Kind, Tokens, Registers, Words>(m, in, kind, row, end, y, y_stride);
}

template <int Tokens, int Registers>
void record_bf16(const ld_matrix *m, const ld_input *in, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  for (int64_t row = begin; row < end; row += 2) record_floats<Registers, 0, Tokens>(m, in, row, end, y, y_stride);
}

template <int Tokens, int Registers>
constexpr RecordRows kRecords[] = {record_bf16<Tokens, Registers>, record_codes<Int8Records, Tokens, Registers, 1>,
                                   record_codes<Int8Records, Tokens, Registers, 2>, record_codes<Int4Records, Tokens, Registers, 1>,
                                   record_codes<Int4Records, Tokens, Registers, 2>};
template <int Registers>
constexpr const RecordRows *kRecordsByTokens[LD_MAX_TOKENS] = {kRecords<1, Registers>, kRecords<2, Registers>, kRecords<3, Registers>,
                                                               kRecords<4, Registers>, kRecords<5, Registers>, kRecords<6, Registers>,
                                                               kRecords<7, Registers>, kRecords<8, Registers>};

void record_rows(const ld_matrix *m, const ld_input *in, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  const int form = m->kind == LD_BF16 ? 0 : (m->kind == LD_INT8 ? 1 : 3) + (m->group == 128);
  const RecordRows *const forms = (m->layout == LD_FOURS ? kRecordsByTokens<4> : kRecordsByTokens<2>)[in->tokens - 1];
  forms[form](m, in, begin, end, y, y_stride);
}

}  // namespace

#endif
