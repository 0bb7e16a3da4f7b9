// AVX2: back to a dense matrix, for products with many tokens. For avx2.cpp alone.
#ifndef LOWDIM_AVX2_UNPACK_H
#define LOWDIM_AVX2_UNPACK_H

#include "avx2.h"

namespace {

LD_INLINE Numbers in_order(Numbers v) { return v; }
LD_INLINE Numbers in_order(__m256i bf16) {
  const __m256i a = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(bf16)), b = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(bf16, 1));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))};
}

LD_INLINE __m256i rounded(__m256 v) {
  const __m256i bits = _mm256_castps_si256(v), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i number = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF))), 16);
  const __m256i nan = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
  return _mm256_blendv_epi8(number, nan, _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
}

// 16 columns
template <class Block>
LD_INLINE void emit(Block block, float *out) {
  const Numbers v = in_order(block);
  _mm256_storeu_ps(out, v.a);
  _mm256_storeu_ps(out + 8, v.b);
}
LD_INLINE void emit(Numbers v, uint16_t *out) {
  const __m256i both = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded(v.a), rounded(v.b)), 0xD8);
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(out), both);
}
LD_INLINE void emit(__m256i bf16, uint16_t *out) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(out), bf16); }

// 32 columns of codes
template <class Out>
LD_INLINE void emit_codes(__m256i codes, float scale, Out *out) {
  const __m128i part[2] = {_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1)};
  for (int i = 0; i < 2; ++i) {
    const __m256 a = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(part[i]));
    const __m256 b = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(part[i], 8)));
    emit(Numbers{_mm256_mul_ps(a, _mm256_set1_ps(scale)), _mm256_mul_ps(b, _mm256_set1_ps(scale))}, out + 16 * i);
  }
}

// Calls step(column, where its 64 columns go); what lies beyond `finish` is dropped.
template <class Out, class Step>
LD_INLINE void emit_columns(int64_t begin, int64_t finish, Out *out, Step step) {
  for (int64_t c = begin; c < finish; c += 64) {
    if (c + 64 <= finish) {
      step(c, out + c);
    } else {
      Out rest[64];
      step(c, rest);
      std::memcpy(out + c, rest, static_cast<size_t>(finish - c) * sizeof(Out));
    }
  }
}

template <class Kind, bool Last, class Out>
void unpack_numbers(const ld_matrix *m, int64_t row, Out *out) {
  const char *p = static_cast<const char *>(m->values) + (m->mask ? m->row_ptr[row] : row * m->cols * Kind::kBytes);
  const char *const end = static_cast<const char *>(m->values) + m->value_bytes;
  if (m->mask) {
    const uint8_t *const mask = mask_bytes(m, row);
    emit_columns(0, m->cols, out, [&](int64_t c, Out *to) LD_ALWAYS {
      for (int i = 0; i < 4; ++i) emit(Kind::template take<Last>(p, end, mask + c / 8 + 2 * i), to + 16 * i);
    });
  } else {
    emit_columns(0, m->cols, out, [&](int64_t c, Out *to) LD_ALWAYS {
      for (int i = 0; i < 4; ++i) emit(Kind::template get<Last>(p + (c + 16 * i) * Kind::kBytes, end), to + 16 * i);
    });
  }
}

template <bool Last, class Out>
LD_INLINE void unpack_packed_codes(const ld_matrix *m, int64_t row, int64_t begin, int64_t finish, const char *p, const char *end,
                                   Out *out) {
  const uint8_t *const mask = mask_bytes(m, row);
  const uint16_t *const scales = m->scales + row * ((m->cols + m->group - 1) / m->group);
  const int shift = m->group == 64 ? 6 : 7;
  emit_columns(begin, finish, out, [&](int64_t c, Out *to) LD_ALWAYS {
    const float scale = widen(scales[c >> shift]);
    emit_codes(take_codes<Last>(p, end, mask + c / 8), scale, to);
    emit_codes(take_codes<Last>(p, end, mask + c / 8 + 4), scale, to + 32);
  });
}

template <class Kind, bool Last, class Out>
void unpack_dense_codes(const ld_matrix *m, int64_t row, Out *out) {
  const Kind kind(m);
  const char *const p = static_cast<const char *>(m->values) + row / Kind::kRows * m->cols;
  const char *const end = static_cast<const char *>(m->values) + m->value_bytes;
  const uint16_t *const scales = m->scales + row * ((m->cols + m->group - 1) / m->group);
  const int shift = m->group == 64 ? 6 : 7;
  emit_columns(0, m->cols, out, [&](int64_t c, Out *to) LD_ALWAYS {
    const float scale = widen(scales[c >> shift]);
    emit_codes(kind.codes(load<__m256i, Last>(p + c, end), row % Kind::kRows), scale, to);
    emit_codes(kind.codes(load<__m256i, Last>(p + c + 32, end), row % Kind::kRows), scale, to + 32);
  });
}

template <class Out>
void unpack_octet_codes(const ld_matrix *m, int64_t row, Out *out) {
  const Int3 kind(m);
  const char *const p = static_cast<const char *>(m->values) + row / 8 * octet_bytes(m->cols);
  const uint16_t *const scales = m->scales + row * ((m->cols + m->group - 1) / m->group);
  emit_columns(0, m->cols, out, [&](int64_t c, Out *to) LD_ALWAYS {
    const float scale = widen(scales[c / m->group]);
    emit_codes(kind.codes(p + c / 64 * kOctetWord, row % 8), scale, to);
    emit_codes(kind.codes(p + c / 64 * kOctetWord + 32, row % 8), scale, to + 32);
  });
}

// Which columns of a record a row keeps, a bit each. Bits of different places are apart, so that the sum over a dword is all of them.
template <int64_t Layout>
LD_INLINE void record_mask(int32_t kind, const char *places, uint16_t *mask) {
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(places));
  const int64_t bits = static_cast<int64_t>(0x8040201008040201);
  const __m256i low = _mm256_set_epi64x(0, bits, 0, bits), high = _mm256_set_epi64x(bits, 0, bits, 0);
  const __m256i one = _mm256_set1_epi8(1), ones = _mm256_set1_epi16(1);
  alignas(32) uint32_t kept[16];
  for (int h = 0; h < 2; ++h) {
    const __m256i at = _mm256_and_si256(h ? _mm256_srli_epi16(both, 4) : both, _mm256_set1_epi8(15));
    const __m256i a = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_shuffle_epi8(low, at), one), ones);
    const __m256i b = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_shuffle_epi8(high, at), one), ones);
    _mm256_store_si256(reinterpret_cast<__m256i *>(kept + 8 * h), _mm256_or_si256(a, _mm256_slli_epi32(b, 8)));
  }
  for (int64_t g = 0; g < kRecordValues / Layout; ++g) {
    uint32_t all = 0;
    for (int64_t i = 0; i < Layout; i += 4) all |= kept[position(kind, Layout, g, i) / 4];
    mask[g] = static_cast<uint16_t>(all);
  }
}

// The codes of a row in the order of their columns.
template <int64_t Layout>
LD_INLINE void record_codes(const ld_matrix *m, const char *record, int64_t row, int8_t *out) {
  alignas(32) char stored[kRecordValues];
  const char *values = record + 2 * kRecordPlaces + (m->kind == LD_INT8 ? kRecordValues * row : 0);
  if (m->kind == LD_INT4) {
    const Int4 kind(m);
    for (int h = 0; h < 2; ++h) {
      const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(values + 32 * h));
      _mm256_store_si256(reinterpret_cast<__m256i *>(stored + 32 * h), kind.codes(v, static_cast<int>(row)));
    }
    values = stored;
  }
  for (int64_t at = 0; at < kRecordValues; at += 4) std::memcpy(out + at, values + position(m->kind, Layout, at / Layout, at % Layout), 4);
}

// The masks of an unchecked matrix may name more values than there are, for which the buffers have room.
template <int64_t Layout, class Out>
void unpack_records(const ld_matrix *m, int64_t row, Out *out) {
  const char *record = records_of(m, row);
  const int64_t group = m->kind == LD_BF16 ? 64 : m->group, columns = record_columns(Layout);
  const uint16_t *const scales = m->scales + (m->kind == LD_BF16 ? 0 : row * ((m->cols + group - 1) / group));
  for (int64_t c = 0; c < m->cols; c += columns, record += record_bytes(m->kind)) {
    uint16_t kept[kMostColumns / 16];
    record_mask<Layout>(m->kind, record + row % 2 * kRecordPlaces, kept);
    const uint8_t *const mask = reinterpret_cast<const uint8_t *>(kept);
    if (m->kind == LD_BF16) {
      uint16_t values[kMostColumns + 32] = {};
      values_of(m, record, row % 2, values);
      const char *p = reinterpret_cast<const char *>(values);
      emit_columns(c, least(c + columns, m->cols), out, [&](int64_t at, Out *to) LD_ALWAYS {
        for (int i = 0; i < 4; ++i) emit(Bf16::take<false>(p, nullptr, mask + (at - c) / 8 + 2 * i), to + 16 * i);
      });
    } else {
      int8_t values[kMostColumns + 32] = {};
      record_codes<Layout>(m, record, row % 2, values);
      const char *p = reinterpret_cast<const char *>(values);
      emit_columns(c, least(c + columns, m->cols), out, [&](int64_t at, Out *to) LD_ALWAYS {
        const float scale = widen(scales[at / group]);
        emit_codes(take_codes<false>(p, nullptr, mask + (at - c) / 8), scale, to);
        emit_codes(take_codes<false>(p, nullptr, mask + (at - c) / 8 + 4), scale, to + 32);
      });
    }
  }
}

template <bool Last, class Out>
void unpack_row(const ld_matrix *m, int64_t row, Out *out) {
  if (m->kind == LD_FP32) return unpack_numbers<Fp32, Last>(m, row, out);
  if (m->kind == LD_BF16) return unpack_numbers<Bf16, Last>(m, row, out);
  if (m->kind == LD_INT3) return unpack_octet_codes(m, row, out);
  if (!m->mask) return m->kind == LD_INT8 ? unpack_dense_codes<Int8, Last>(m, row, out) : unpack_dense_codes<Int4, Last>(m, row, out);
  const char *p = static_cast<const char *>(m->values) + m->row_ptr[m->kind == LD_INT8 ? row : row / 2];
  const char *const end = static_cast<const char *>(m->values) + m->value_bytes;
  if (m->kind == LD_INT8) return unpack_packed_codes<Last>(m, row, 0, m->cols, p, end, out);
  alignas(32) char codes[kStretch + kMargin];
  for (int64_t c = 0; c < m->cols; c += kStretch) {
    const int64_t finish = least(c + kStretch, m->cols);
    look_up<Last>(m, row, c, finish, p, end, codes);
    unpack_packed_codes<false>(m, row, c, finish, codes, nullptr, out);
  }
}

template <class Out>
void unpack_rows(const ld_matrix *m, int64_t begin, int64_t end, Out *out, int64_t stride) {
  for (int64_t r = begin; r < end; ++r, out += stride)
    if (m->layout == LD_EIGHTS)
      unpack_records<LD_EIGHTS>(m, r, out);
    else if (m->layout == LD_FOURS)
      unpack_records<LD_FOURS>(m, r, out);
    else if (inside(m, r))
      unpack_row<false>(m, r, out);
    else
      unpack_row<true>(m, r, out);
}

void unpack(const ld_matrix *m, int64_t begin, int64_t end, int32_t out_kind, void *out, int64_t stride) {
  if (out_kind == LD_FP32)
    unpack_rows(m, begin, end, static_cast<float *>(out), stride);
  else
    unpack_rows(m, begin, end, static_cast<uint16_t *>(out), stride);
}

}  // namespace
#endif
