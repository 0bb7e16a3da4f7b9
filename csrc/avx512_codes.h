// Rows of codes, of int8 and of int4, with and without a mask: a file for each, as both together take long to compile.
#ifndef LOWDIM_AVX512_CODES_H
#define LOWDIM_AVX512_CODES_H

#include "avx512.h"

// What multiplies some rows of a matrix of codes, `step` rows at a time.
Range ld_avx512_int8(const ld_matrix *m, Load how, int tokens, int step);
Range ld_avx512_int4(const ld_matrix *m, Load how, int tokens, int step);

namespace {

// Codes plus 128 as unsigned bytes, what VPDPBUSD wants; a pruned weight is 128. The input's `offset` takes the 128s off again.
struct Int8 {
  static constexpr int kRows = 1;  // that share bytes
  explicit Int8(const ld_matrix *) {}
  LD_INLINE __m512i codes(__m512i v, bool) const { return _mm512_xor_si512(v, _mm512_set1_epi8(-128)); }
};

struct Int4 {
  static constexpr int kRows = 2;
  __m512i table;
  explicit Int4(const ld_matrix *m)
      : table(_mm512_xor_si512(
            _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i *>(m->table))),
            _mm512_set1_epi8(-128))) {}
  // VPERMB looks at six bits of each index; the table repeats, so that the upper two do not matter.
  LD_INLINE __m512i codes(__m512i v, bool high) const {
    return _mm512_permutexvar_epi8(high ? _mm512_srli_epi16(v, 4) : v, table);
  }
};

// Rows that are read together share what is read of the input, but each is a memory stream of its own (INT4: each pair), and the
// processor fetches several streams ahead badly: two rows of 4096 int8 are three times slower than one after the other. Four rows
// pay while they are short and what follows them is fetched by hand, in order.
constexpr int kTogether = 4;
constexpr int64_t kPackedTogether = 4096, kDenseTogether = 2560;  // bytes of four rows up to which they pay,
constexpr int64_t kWideTogether = 2048, kWide = 2048;              // and of INT8 with more columns than that
constexpr int64_t kZen4Together = 1024;

// One, two or four rows of codes, read forward 64 columns at a time.
template <class Kind, int Rows, bool Packed, Load How>
struct Reader {
  const Kind kind;
  const char *p[Rows];
  const char *const end;
  const uint64_t *mask;
  const int64_t mask_words, cols;
  const bool odd;
  const char *line;  // to fetch next
  int lines;         // per word

  LD_INLINE Reader(const ld_matrix *m, const Kind &k, int64_t row)
      : kind(k),
        end(static_cast<const char *>(m->values) + m->value_bytes),
        mask(m->mask + (Packed ? row * m->mask_words : 0)),
        mask_words(m->mask_words),
        cols(m->cols),
        odd(Rows == 1 && row % 2) {
    for (int r = 0; r < Rows; ++r) {
      const int64_t unit = (row + r) / Kind::kRows;
      p[r] = static_cast<const char *>(m->values) + (Packed ? m->row_ptr[unit] : unit * m->cols);
    }
    line = p[0] + kAhead;
    lines = Packed ? 2 : kTogether / Kind::kRows;
    if (Packed && Rows == kTogether) {
      const int64_t unit = row / Kind::kRows, bytes = m->row_ptr[unit + kTogether / Kind::kRows] - m->row_ptr[unit];
      lines = bytes > (m->cols + 63) / 64 * 64 ? 2 : 1;
    }
  }

  LD_INLINE void fetch_ahead() {
    constexpr int kMost = Packed ? 2 : kTogether / Kind::kRows;
#pragma GCC unroll 4
    for (int i = 0; i < kMost; ++i)
      if (i == 0 || !Packed || lines == 2) _mm_prefetch(line + 64 * i, _MM_HINT_T1);
    line += 64 * lines;
  }

  // The next word's codes; dense: `left` columns are left.
  LD_INLINE void next(int64_t left, __m512i *codes) {
    if (Rows == kTogether) fetch_ahead();
    if (!Packed) {  // columns beyond the last meet inputs of zero
      for (int r = 0; r < Rows; ++r) {
        const __m512i v = left >= 64 ? _mm512_loadu_si512(p[r]) : _mm512_maskz_loadu_epi8(first(left), p[r]);
        if (How == Load::kAhead && Rows < kTogether && r % Kind::kRows == 0) _mm_prefetch(p[r] + 2 * kAhead, _MM_HINT_T0);
        p[r] += 64;
        codes[r] = kind.codes(v, r % 2 || odd);
      }
      return;
    }
    __mmask64 mask_of[Rows];
    uint64_t count[Rows], any = 0;
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const uint64_t bits = pinned(mask[r * mask_words]);
      mask_of[r] = bits;
      asm("" : "+k"(mask_of[r]));
      count[r] = __builtin_popcountll(bits);
      any |= count[r];
    }
    ++mask;
    const bool half = How == Load::kHalf && __builtin_expect(any < 32, 1);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const __m512i v = How == Load::kLast    ? load_last(p[r], end)
                        : How == Load::kAhead ? load_whole(p[r])
                        : half                ? load_half(p[r])
                                              : load(p[r]);
      if (How == Load::kAhead && Rows < kTogether && r % Kind::kRows == 0) _mm_prefetch(p[r] + kAhead, _MM_HINT_T0);
      codes[r] = _mm512_mask_expand_epi8(_mm512_set1_epi8(-128), mask_of[r], pinned(kind.codes(v, r % 2 || odd)));
      p[r] += count[r];
    }
  }
};

// `Words` words of 64 columns to a group, the last group's perhaps fewer.
template <class Kind, int Tokens, int Words, int Rows, bool Packed, Load How>
inline void code_rows(const ld_matrix *m, const ld_input *in, const Kind &kind, int64_t row, float *y, int64_t y_stride) {
  Reader<Kind, Rows, Packed, How> reader(m, kind, row);
  const int8_t *x = in->q;
  const int32_t *offset = in->offset;
  const int64_t x_stride = in->stride, offset_stride = in->groups * 16;
  int64_t left = m->cols;
  Scales<Tokens> scales[Rows];
  Sums<Tokens> sums[Rows];
  for (int r = 0; r < Rows; ++r) sums[r].clear();

  const auto group = [&](int i, int words) LD_ALWAYS {
    __m512i dot[Rows][Tokens];
#pragma GCC unroll 8
    for (int t = 0; t < Tokens; ++t)
      for (int r = 0; r < Rows; ++r) dot[r][t] = _mm512_load_si512(offset + t * offset_stride);
    offset += 16;
#pragma GCC unroll 2
    for (int c = 0; c < words; ++c, x += 64, left -= 64) {
      __m512i w[Rows];
      reader.next(left, w);
#pragma GCC unroll 8
      for (int t = 0; t < Tokens; ++t) {
        const __m512i v = _mm512_load_si512(x + t * x_stride);
        for (int r = 0; r < Rows; ++r) dot[r][t] = _mm512_dpbusd_epi32(dot[r][t], w[r], v);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
      for (int t = 0; t < Tokens; ++t)
        sums[r].at[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r][t]), _mm512_set1_ps(scales[r].at[t][i]), sums[r].at[t]);
    }
  };

  const int64_t full = m->cols > 64 * (Words - 1) ? (m->cols - 64 * (Words - 1) + 64 * Words - 1) / (64 * Words) : 0;
  int64_t g = 0;
  for (; g + 16 <= full; g += 16) {
    for (int r = 0; r < Rows; ++r) scales[r].fill(m->scales + (row + r) * in->groups + g, in->scale + g, in->groups, 0xFFFF);
    for (int i = 0; i < 16; i += 2) {
      group(i, Words);
      group(i + 1, Words);
    }
  }
  if (g < in->groups) {
    const __mmask16 some = static_cast<__mmask16>(first(in->groups - g));
    for (int r = 0; r < Rows; ++r) scales[r].fill(m->scales + (row + r) * in->groups + g, in->scale + g, in->groups, some);
    int i = 0;
    for (; g + i < full; ++i) group(i, Words);
    if (g + i < in->groups) group(i, 1);
  }
  if (Rows == kTogether) {
    const __m128 bias = m->bias ? _mm_loadu_ps(m->bias + row) : _mm_setzero_ps();
    for (int t = 0; t < Tokens; ++t)
      _mm_storeu_ps(y + t * y_stride + row, _mm_add_ps(bias, sums_of(sums[0].at[t], sums[1 % Rows].at[t], sums[2 % Rows].at[t],
                                                                     sums[3 % Rows].at[t])));
  } else {
    for (int r = 0; r < Rows; ++r) sums[r].store(m, row + r, y, y_stride);
  }
}

template <class Kind, int Tokens, Load How, int Rows, bool Packed, int Words>
void codes(const ld_matrix *m, const ld_input *in, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  const Kind kind(m);
  for (int64_t row = begin; row < end; row += Rows)
    code_rows<Kind, Tokens, Words, Rows, Packed, How>(m, in, kind, row, y, y_stride);
}

template <class Kind, int Tokens, Load How, int Rows>
Range codes_of(bool packed, bool wide) {
  constexpr Load kDense = How == Load::kAhead ? How : Load::kWhole;
  if (wide) return packed ? codes<Kind, Tokens, How, Rows, true, 2> : codes<Kind, Tokens, kDense, Rows, false, 2>;
  return packed ? codes<Kind, Tokens, How, Rows, true, 1> : codes<Kind, Tokens, kDense, Rows, false, 1>;
}

template <class Kind, int Tokens, Load How>
Range codes_of(bool packed, bool wide, int step) {
  if (Tokens <= 2 && step == kTogether) return codes_of<Kind, Tokens, How, Tokens <= 2 ? kTogether : 1>(packed, wide);
  if (Kind::kRows == 2 && Tokens <= 4 && step == 2)
    return codes_of<Kind, Tokens, How, Kind::kRows == 2 && Tokens <= 4 ? 2 : 1>(packed, wide);
  return codes_of<Kind, Tokens, How, 1>(packed, wide);
}

template <class Kind, Load How>
Range codes_of(const ld_matrix *m, int tokens, int step) {
  const bool packed = m->mask != nullptr, wide = m->group == 128;
  switch (tokens) {
    case 1: return codes_of<Kind, 1, How>(packed, wide, step);
    case 2: return codes_of<Kind, 2, How>(packed, wide, step);
    case 3: return codes_of<Kind, 3, How>(packed, wide, step);
    case 4: return codes_of<Kind, 4, How>(packed, wide, step);
    case 5: return codes_of<Kind, 5, How>(packed, wide, step);
    case 6: return codes_of<Kind, 6, How>(packed, wide, step);
    case 7: return codes_of<Kind, 7, How>(packed, wide, step);
    default: return codes_of<Kind, 8, How>(packed, wide, step);
  }
}

template <class Kind>
Range codes_of(const ld_matrix *m, Load how, int tokens, int step) {
  switch (how) {
    case Load::kWhole: return codes_of<Kind, Load::kWhole>(m, tokens, step);
    case Load::kHalf: return codes_of<Kind, Load::kHalf>(m, tokens, step);
    case Load::kLast: return codes_of<Kind, Load::kLast>(m, tokens, step);
    default: return codes_of<Kind, Load::kAhead>(m, tokens, step);
  }
}

}  // namespace

#endif
