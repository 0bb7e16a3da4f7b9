// Products with codes of three bits, whose rows lie in blocks of eight. For avx512.cpp alone.
//
// A block is one stream of memory. With one token all its rows are taken at once; with more of them the registers hold the sums of
// fewer rows, and the block, near by then, is gone through again for the others.
#ifndef LOWDIM_AVX512_OCTETS_H
#define LOWDIM_AVX512_OCTETS_H

#include "avx512.h"

namespace {

// Rows [First, First + Rows) of the block that begins with `row`; of them those before `end` are there. `Words` words of 64 columns
// to a group, the last group's perhaps fewer.
template <int Tokens, int Words, int First, int Rows>
LD_INLINE void octet_part(const ld_matrix *m, const ld_input *in, const Int3 &kind, int64_t row, int64_t end, float *y, int64_t y_stride) {
  const char *p = static_cast<const char *>(m->values) + row / 8 * octet_bytes(m->cols);
  const int8_t *x = in->q;
  const int32_t *offset = in->offset;
  const int64_t x_stride = in->stride, offset_stride = in->groups * 16;
  Scales<Tokens> scales[Rows];
  Sums<Tokens> sums[Rows];
  for (int r = 0; r < Rows; ++r) sums[r].clear();

  const auto group = [&](int i, int words) LD_ALWAYS {
    __m512i dot[Rows][Tokens];
#pragma GCC unroll 8
    for (int t = 0; t < Tokens; ++t)
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) dot[r][t] = _mm512_load_si512(offset + t * offset_stride);
    offset += 16;
#pragma GCC unroll 2
    for (int c = 0; c < words; ++c, x += 64, p += kOctetWord) {
      const Octets word = Int3::word(p);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const __m512i w = kind.codes(word, First + r);
#pragma GCC unroll 8
        for (int t = 0; t < Tokens; ++t) dot[r][t] = _mm512_dpbusd_epi32(dot[r][t], w, _mm512_load_si512(x + t * x_stride));
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int t = 0; t < Tokens; ++t)
        sums[r].at[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r][t]), _mm512_set1_ps(scales[r].at[t][i]), sums[r].at[t]);
  };

  int64_t words = (m->cols + 63) / 64;
  for (int64_t g = 0; g < in->groups; g += 16) {
    const __mmask16 some = static_cast<__mmask16>(first(in->groups - g));
    for (int r = 0; r < Rows; ++r) {
      const int64_t own = least(row + First + r, m->rows - 1);  // a row that is not there takes the scales of one that is
      scales[r].fill(m->scales + own * in->groups + g, in->scale + g, in->groups, some);
    }
    const int count = static_cast<int>(least(16, in->groups - g));
    int i = 0;
    for (; i < count && words >= Words; ++i, words -= Words) group(i, Words);
    if (i < count) group(i, 1);
  }
  if (Rows % 4 == 0 && row + First + Rows <= end) {
    for (int r = 0; r < Rows; r += 4) {
      const int64_t at = row + First + r;
      const __m128 bias = m->bias ? _mm_loadu_ps(m->bias + at) : _mm_setzero_ps();
      for (int t = 0; t < Tokens; ++t) {
        const __m128 four = sums_of(sums[r].at[t], sums[(r + 1) % Rows].at[t], sums[(r + 2) % Rows].at[t], sums[(r + 3) % Rows].at[t]);
        _mm_storeu_ps(y + t * y_stride + at, _mm_add_ps(bias, four));
      }
    }
  } else {
    for (int r = 0; r < Rows && row + First + r < end; ++r) sums[r].store(m, row + First + r, y, y_stride);
  }
}

template <int Tokens, int Words, int First>
LD_INLINE void octet_block(const ld_matrix *m, const ld_input *in, const Int3 &kind, int64_t row, int64_t end, float *y, int64_t y_stride) {
  constexpr int kSome = Tokens == 1 ? 8 : Tokens == 2 ? 4 : Tokens <= 4 ? 2 : 1;
  octet_part<Tokens, Words, First, kSome>(m, in, kind, row, end, y, y_stride);
  if constexpr (First + kSome < 8) octet_block<Tokens, Words, First + kSome>(m, in, kind, row, end, y, y_stride);
}

template <int Tokens, int Words>
void octet_rows(const ld_matrix *m, const ld_input *in, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  const Int3 kind(m, -128);
  for (int64_t row = begin; row < end; row += 8) octet_block<Tokens, Words, 0>(m, in, kind, row, end, y, y_stride);
}

using OctetRows = void (*)(const ld_matrix *, const ld_input *, int64_t, int64_t, float *, int64_t);
template <int Words>
constexpr OctetRows kOctetRows[LD_MAX_TOKENS] = {octet_rows<1, Words>, octet_rows<2, Words>, octet_rows<3, Words>, octet_rows<4, Words>,
                                                 octet_rows<5, Words>, octet_rows<6, Words>, octet_rows<7, Words>, octet_rows<8, Words>};

void octets(const ld_matrix *m, const ld_input *in, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  const OctetRows *const by_tokens = m->group == 128 ? kOctetRows<2> : kOctetRows<1>;
  by_tokens[in->tokens - 1](m, in, begin, end, y, y_stride);
}

}  // namespace

#endif
