// Inputs into the form that the AVX-512 kernels want, and matrices back into dense ones. For avx512.cpp alone.
#ifndef LOWDIM_AVX512_UNPACK_H
#define LOWDIM_AVX512_UNPACK_H

#include "avx512.h"

namespace {

// ---------------------------------------------------------------- activations

void to_bf16(const float *x, int64_t cols, uint16_t *out, int64_t stride) {
  for (int64_t c = 0; c < stride; c += 16) {
    const __m512 v = _mm512_maskz_loadu_ps(static_cast<__mmask16>(first(cols - c)), x + c);
    _mm256_store_si256(reinterpret_cast<__m256i *>(out + c), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
  }
}

void to_codes(const float *x, const ld_input *in, int8_t *q, float *scale, int32_t *offset) {
  for (int64_t c = in->groups * in->group; c < in->stride; c += 64) _mm512_store_si512(q + c, _mm512_setzero_si512());
  for (int64_t g = 0; g < in->groups; ++g) {
    const int64_t from = g * in->group;
    __m512 v[8], amax = _mm512_setzero_ps();
    __mmask16 odd = 0;
    for (int i = 0; i < in->group / 16; ++i) {
      v[i] = _mm512_maskz_loadu_ps(static_cast<__mmask16>(first(in->cols - from - 16 * i)), x + from + 16 * i);
      amax = _mm512_max_ps(amax, _mm512_abs_ps(v[i]));
      odd |= _mm512_fpclass_ps_mask(v[i], 0x99);  // NaN or infinity
    }
    const float most = _mm512_reduce_max_ps(amax);
    const bool zero = odd || most < 1e-30f;
    scale[g] = odd ? __builtin_nanf("") : zero ? 0.0f : most / 127.0f;
    const __m512 inverse = _mm512_set1_ps(zero ? 0.0f : 127.0f / most);
    for (int i = 0; i < in->group / 16; ++i) {
      const __m512i code = odd ? _mm512_setzero_si512() : _mm512_cvtps_epi32(_mm512_mul_ps(v[i], inverse));
      _mm_store_si128(reinterpret_cast<__m128i *>(q + from + 16 * i), _mm512_cvtsepi32_epi8(code));
    }
    __m512i start = _mm512_setzero_si512();
    for (int64_t c = from; c < from + in->group; c += 64)
      start = _mm512_dpbusd_epi32(start, _mm512_set1_epi8(-128), _mm512_load_si512(q + c));
    _mm512_store_si512(offset + 16 * g, _mm512_sub_epi32(_mm512_setzero_si512(), start));
  }
}

void prepare(const float *x, int64_t x_stride, ld_input *in) {
  for (int t = 0; t < in->tokens; ++t, x += x_stride) {
    if (in->kind == LD_FP32) {
      for (int64_t c = 0; c < in->stride; c += 16)
        _mm512_store_ps(in->f32 + t * in->stride + c,
                        _mm512_maskz_loadu_ps(static_cast<__mmask16>(first(in->cols - c)), x + c));
    } else if (in->kind == LD_BF16) {
      to_bf16(x, in->cols, in->bf16 + t * in->stride, in->stride);
    } else {
      to_codes(x, in, in->q + t * in->stride, in->scale + t * in->groups, in->offset + t * in->groups * 16);
    }
  }
}

// ---------------------------------------------------------------- unpacking

// 32 numbers, of which `left` are stored; all of them where Whole.
template <bool Whole>
inline void put(float *out, int64_t left, __m512 a, __m512 b) {
  if (Whole) {
    _mm512_storeu_ps(out, a);
    _mm512_storeu_ps(out + 16, b);
  } else {
    _mm512_mask_storeu_ps(out, static_cast<__mmask16>(first(left)), a);
    _mm512_mask_storeu_ps(out + 16, static_cast<__mmask16>(first(left - 16)), b);
  }
}
template <bool Whole>
inline void put(uint16_t *out, int64_t left, __m512i bf16) {
  if (Whole)
    _mm512_storeu_si512(out, bf16);
  else
    _mm512_mask_storeu_epi16(out, static_cast<__mmask32>(first(left)), bf16);
}
template <bool Whole>
inline void put(uint16_t *out, int64_t left, __m512 a, __m512 b) {
  put<Whole>(out, left, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a)));
}
template <bool Whole>
inline void put(float *out, int64_t left, __m512i bf16) {
  put<Whole>(out, left, widen(_mm512_castsi512_si256(bf16)), widen(_mm512_extracti64x4_epi64(bf16, 1)));
}

// One row, read forward 64 columns at a time.
struct Row {
  const ld_matrix *m;
  int64_t row;
  const char *p, *end;
  const uint64_t *mask;

  Row(const ld_matrix *matrix, int64_t r, int64_t width)
      : m(matrix), row(r), end(static_cast<const char *>(m->values) + m->value_bytes), mask(m->mask + (m->mask ? r * m->mask_words : 0)) {
    const int64_t unit = m->kind == LD_INT4 ? r / 2 : r;
    p = static_cast<const char *>(m->values) + (m->mask ? m->row_ptr[unit] : unit * m->cols * width);
  }

  // Its end is so far from that of the values that whole registers can be read.
  bool inside(int64_t width) const {
    const int64_t unit = m->kind == LD_INT4 ? row / 2 : row;
    return (m->mask ? m->row_ptr[unit + 1] : (unit + 1) * m->cols * width) + kRegister <= m->value_bytes;
  }

  uint64_t bits(int64_t c) const { return m->mask ? mask[c / 64] : first(m->cols - c); }
};

template <bool Whole, class Out>
inline void unpack_word(Row &row, int64_t c, Out *out, Bf16) {
  const uint64_t word = row.bits(c);
  for (int half = 0; half < 2; ++half) {
    const uint64_t bits = pinned(word >> 32 * half & 0xFFFFFFFF);
    const __m512i v = Whole ? load(row.p) : load_last(row.p, row.end);
    put<Whole>(out + c + 32 * half, row.m->cols - c - 32 * half, Bf16::expand(static_cast<__mmask32>(bits), v));
    row.p += 2 * __builtin_popcountll(bits);
  }
}

template <bool Whole, class Out>
inline void unpack_word(Row &row, int64_t c, Out *out, Fp32) {
  const uint64_t word = row.bits(c);
  for (int half = 0; half < 2; ++half) {
    __m512 v[2];
    for (int i = 0; i < 2; ++i) {
      const uint64_t bits = pinned(word >> (32 * half + 16 * i) & 0xFFFF);
      v[i] = _mm512_castsi512_ps(Fp32::expand(static_cast<__mmask16>(bits), Whole ? load(row.p) : load_last(row.p, row.end)));
      row.p += 4 * __builtin_popcountll(bits);
    }
    put<Whole>(out + c + 32 * half, row.m->cols - c - 32 * half, v[0], v[1]);
  }
}

// 64 codes, of which `left` are stored, times their scale.
template <bool Whole, class Out>
inline void put_codes(Out *out, int64_t left, __m512i codes, float scale) {
  const __m512 by = _mm512_set1_ps(scale);
  const auto quarter = [&](__m128i some) __attribute__((always_inline)) {
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(some)), by);
  };
  put<Whole>(out, left, quarter(_mm512_castsi512_si128(codes)), quarter(_mm512_extracti32x4_epi32(codes, 1)));
  put<Whole>(out + 32, left - 32, quarter(_mm512_extracti32x4_epi32(codes, 2)), quarter(_mm512_extracti32x4_epi32(codes, 3)));
}

// The codes as they are stored: INT8; or through the table: INT4.
struct Stored {
  __m512i table;
  bool pairs, high;
  const uint16_t *scales;
};

template <bool Whole, class Out>
inline void unpack_word(Row &row, int64_t c, Out *out, const Stored &stored) {
  const uint64_t bits = pinned(row.bits(c));
  __m512i v = Whole ? load(row.p) : load_last(row.p, row.end);
  if (stored.pairs) v = _mm512_permutexvar_epi8(stored.high ? _mm512_srli_epi16(v, 4) : v, stored.table);
  v = _mm512_mask_expand_epi8(zero(), bits, pinned(v));
  row.p += row.m->mask ? __builtin_popcountll(bits) : 64;
  put_codes<Whole>(out + c, row.m->cols - c, v, widen(stored.scales[c / row.m->group]));
}

// From the order in which a record's values stand to that of their columns, dword by dword.
template <int64_t Layout>
LD_INLINE __m512i in_order(__m512i v) {
  const __m512i eights = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
  const __m512i fours = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(Layout == LD_EIGHTS ? eights : fours, v);
}

// Which of a record's columns a row keeps. Bits of different places are apart, so that their sum is all of them.
template <int64_t Layout>
inline void record_mask(const char *places, bool numbers, uint64_t *mask) {
  const __m512i both = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(places)));
  __m512i at = _mm512_and_si512(_mm512_srlv_epi64(both, _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4)), _mm512_set1_epi8(15));
  if (!numbers) at = in_order<Layout>(at);
  const __m512i low = _mm512_broadcast_i32x4(_mm_set_epi64x(0, static_cast<int64_t>(0x8040201008040201)));
  const __m512i high = _mm512_broadcast_i32x4(_mm_set_epi64x(static_cast<int64_t>(0x8040201008040201), 0));
  const __m512i a = _mm512_shuffle_epi8(low, at), b = _mm512_shuffle_epi8(high, at);
  if (Layout == LD_EIGHTS) {
    const __m512i bits = _mm512_or_si512(_mm512_sad_epu8(a, zero()), _mm512_slli_epi64(_mm512_sad_epu8(b, zero()), 8));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(mask), _mm512_cvtepi64_epi16(bits));
  } else {
    const __m512i one = _mm512_set1_epi8(1);
    const __m512i bits = _mm512_or_si512(_mm512_dpbusd_epi32(zero(), a, one), _mm512_slli_epi32(_mm512_dpbusd_epi32(zero(), b, one), 8));
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(mask), _mm512_cvtepi32_epi16(bits));
  }
}

// The values of a row in the order of their columns, where they can be read 64 bytes at a time.
template <int64_t Layout>
LD_INLINE const char *ordered(const ld_matrix *m, const char *record, int64_t row, __m512i table, char *held) {
  const char *const values = record + 2 * kRecordPlaces;
  if (m->kind == LD_BF16) {
    std::memcpy(held, values + 128 * row, 128);
  } else if (m->kind == LD_INT8) {
    _mm512_store_si512(held, in_order<Layout>(_mm512_loadu_si512(values + 64 * row)));
  } else {
    const __m512i v = _mm512_loadu_si512(values);
    _mm512_store_si512(held, in_order<Layout>(_mm512_permutexvar_epi8(row ? _mm512_srli_epi16(v, 4) : v, table)));
  }
  return held;
}

// 64 columns, of which `left` are stored.
template <bool Whole, class Out>
inline void unpack_columns(const ld_matrix *m, const char *values, uint64_t mask, float scale, int64_t left, Out *out) {
  if (m->kind == LD_BF16) {
    for (int64_t i = 0; i < 2; ++i) {
      const uint32_t bits = static_cast<uint32_t>(mask >> 32 * i);
      put<Whole>(out + 32 * i, left - 32 * i, Bf16::expand(bits, load(values)));
      values += 2 * __builtin_popcount(bits);
    }
  } else {
    put_codes<Whole>(out, left, _mm512_mask_expand_epi8(zero(), mask, load(values)), scale);
  }
}

// The masks of an unchecked matrix may name fewer values, but never more.
template <int64_t Layout, class Out>
void unpack_records(const ld_matrix *m, int64_t row, Out *out) {
  const bool numbers = m->kind == LD_BF16;
  const char *record = records_of(m, row);
  const uint16_t *const scales = numbers ? nullptr : m->scales + row * ((m->cols + m->group - 1) / m->group);
  const __m512i table = m->kind == LD_INT4
                            ? _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i *>(m->table)))
                            : _mm512_setzero_si512();
  constexpr int64_t kColumns = 1024 / Layout;
  alignas(64) char held[2 * kRecordValues + kRegister];
  for (int64_t c = 0; c < m->cols; c += kColumns, record += record_bytes(m->kind)) {
    uint64_t mask[kColumns / 64];
    record_mask<Layout>(record + row % 2 * kRecordPlaces, numbers, mask);
    const char *values = ordered<Layout>(m, record, row % 2, table, held);
    for (int64_t word = 0; word < kColumns / 64; ++word) {
      const int64_t at = c + 64 * word, left = m->cols - at;
      if (left <= 0) break;
      const float scale = numbers ? 0.0f : widen(scales[at / m->group]);
      if (left >= 64)
        unpack_columns<true>(m, values, mask[word], scale, left, out + at);
      else
        unpack_columns<false>(m, values, mask[word], scale, left, out + at);
      values += 4 * Layout * (numbers ? 2 : 1);
    }
  }
}

template <class Out>
void unpack_octets(const ld_matrix *m, int64_t row, Out *out) {
  const Int3 kind(m, 0);
  const char *p = static_cast<const char *>(m->values) + row / 8 * octet_bytes(m->cols);
  const uint16_t *const scales = m->scales + row * ((m->cols + m->group - 1) / m->group);
  for (int64_t c = 0; c < m->cols; c += 64, p += kOctetWord) {
    const __m512i v = kind.codes(Int3::word(p), static_cast<int>(row % 8));
    const float scale = widen(scales[c / m->group]);
    if (c + 64 <= m->cols)
      put_codes<true>(out + c, 64, v, scale);
    else
      put_codes<false>(out + c, m->cols - c, v, scale);
  }
}

template <class Kind, class Out>
void unpack_row(Row row, int64_t width, Out *out, const Kind &kind) {
  int64_t c = 0;
  if (row.inside(width))
    for (; c + 64 <= row.m->cols; c += 64) unpack_word<true>(row, c, out, kind);
  for (; c < row.m->cols; c += 64) unpack_word<false>(row, c, out, kind);
}

template <class Out>
void unpack_codes(const ld_matrix *m, int64_t row, Out *out) {
  const bool pairs = m->kind == LD_INT4;
  const __m512i table =
      pairs ? _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i *>(m->table))) : _mm512_setzero_si512();
  const int64_t groups = (m->cols + m->group - 1) / m->group;
  unpack_row(Row(m, row, 1), 1, out, Stored{table, pairs, row % 2 != 0, m->scales + row * groups});
}

template <class Out>
void unpack_rows(const ld_matrix *m, int64_t begin, int64_t end, Out *out, int64_t stride) {
  for (int64_t row = begin; row < end; ++row, out += stride) {
    if (m->layout == LD_EIGHTS)
      unpack_records<LD_EIGHTS>(m, row, out);
    else if (m->layout == LD_FOURS)
      unpack_records<LD_FOURS>(m, row, out);
    else if (m->kind == LD_FP32)
      unpack_row(Row(m, row, 4), 4, out, Fp32());
    else if (m->kind == LD_BF16)
      unpack_row(Row(m, row, 2), 2, out, Bf16());
    else if (m->kind == LD_INT3)
      unpack_octets(m, row, out);
    else
      unpack_codes(m, row, out);
  }
}

void unpack(const ld_matrix *m, int64_t begin, int64_t end, int32_t out_kind, void *out, int64_t stride) {
  if (out_kind == LD_FP32)
    unpack_rows(m, begin, end, static_cast<float *>(out), stride);
  else
    unpack_rows(m, begin, end, static_cast<uint16_t *>(out), stride);
}

}  // namespace

#endif
