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

inline void put(float *out, __mmask16 some, __m512 v) { _mm512_mask_storeu_ps(out, some, v); }
inline void put(uint16_t *out, __mmask16 some, __m512 v) {
  _mm256_mask_storeu_epi16(out, some, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
}

template <class Out>
void unpack_codes(const ld_matrix *m, int64_t row, Out *out) {
  const int64_t groups = (m->cols + m->group - 1) / m->group;
  const bool pairs = m->kind == LD_INT4;
  const int64_t unit = pairs ? row / 2 : row;
  const int half = pairs ? static_cast<int>(row & 1) : 0;
  const char *p = static_cast<const char *>(m->values) + (m->mask ? m->row_ptr[unit] : unit * m->cols);
  const char *const end = static_cast<const char *>(m->values) + m->value_bytes;
  const __m512i table =
      pairs ? _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i *>(m->table))) : _mm512_setzero_si512();
  for (int64_t c = 0; c < m->cols; c += 64) {
    const uint64_t bits = m->mask ? m->mask[row * m->mask_words + c / 64] : first(m->cols - c);
    __m512i v = load_last(p, end);
    if (pairs) v = _mm512_permutexvar_epi8(half ? _mm512_srli_epi16(v, 4) : v, table);
    v = _mm512_mask_expand_epi8(zero(), bits, pinned(v));
    p += m->mask ? __builtin_popcountll(bits) : 64;
    const __m512 scale = _mm512_set1_ps(widen(m->scales[row * groups + c / m->group]));
    const __m128i quarter[4] = {_mm512_castsi512_si128(v), _mm512_extracti32x4_epi32(v, 1), _mm512_extracti32x4_epi32(v, 2),
                                _mm512_extracti32x4_epi32(v, 3)};
    for (int i = 0; i < 4; ++i)
      put(out + c + 16 * i, static_cast<__mmask16>(first(m->cols - c - 16 * i)),
          _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(quarter[i])), scale));
  }
}

inline void put_floats(uint16_t *out, int64_t left, __m512i bf16, Bf16) {
  _mm512_mask_storeu_epi16(out, static_cast<__mmask32>(first(left)), bf16);
}
inline void put_floats(float *out, int64_t left, __m512i bf16, Bf16) {
  put(out, static_cast<__mmask16>(first(left)), widen(_mm512_castsi512_si256(bf16)));
  put(out + 16, static_cast<__mmask16>(first(left - 16)), widen(_mm512_extracti64x4_epi64(bf16, 1)));
}
template <class Out>
inline void put_floats(Out *out, int64_t left, __m512i fp32, Fp32) {
  put(out, static_cast<__mmask16>(first(left)), _mm512_castsi512_ps(fp32));
}

template <class Kind, class Out>
void unpack_floats(const ld_matrix *m, int64_t row, Out *out) {
  const int64_t begin = m->mask ? m->row_ptr[row] : row * m->cols * Kind::kBytes;
  const char *p = static_cast<const char *>(m->values) + begin;
  const char *const end = static_cast<const char *>(m->values) + m->value_bytes;
  for (int64_t c = 0; c < m->cols; c += Kind::kColumns) {
    const uint64_t word = m->mask ? m->mask[row * m->mask_words + c / 64] >> (c % 64) : ~0ULL;
    const uint64_t bits = word & (~0ULL >> (64 - Kind::kColumns));
    put_floats(out + c, m->cols - c, Kind::expand(static_cast<typename Kind::Mask>(bits), load_last(p, end)), Kind());
    p += Kind::kBytes * __builtin_popcountll(bits);
  }
}

template <class Out>
void unpack_rows(const ld_matrix *m, int64_t begin, int64_t end, Out *out, int64_t stride) {
  for (int64_t row = begin; row < end; ++row, out += stride) {
    if (m->kind == LD_FP32)
      unpack_floats<Fp32>(m, row, out);
    else if (m->kind == LD_BF16)
      unpack_floats<Bf16>(m, row, out);
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
