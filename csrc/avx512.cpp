// AVX-512 with VBMI2, VNNI and BF16: Ice Lake's successors from Sapphire Rapids on, Zen 4 and later.

#include "avx512_records.h"
#include "avx512_octets.h"
#include "avx512_unpack.h"

namespace {

// ---------------------------------------------------------------- fp32 and bf16

// Part i of a row goes into lane i % kLanes, which hides latency where tokens are few: VDPBF16PS takes six cycles, VFMADD four.
constexpr int kLanes = 4;
constexpr int64_t kAhead = 4096;

template <int Tokens>
struct Lanes {
  __m512 at[Tokens][kLanes];

  LD_INLINE void clear() {
    for (int t = 0; t < Tokens; ++t)
      for (int l = 0; l < kLanes; ++l) at[t][l] = _mm512_setzero_ps();
  }

  LD_INLINE Sums<Tokens> sums() const {
    Sums<Tokens> result;
    for (int t = 0; t < Tokens; ++t) {
      result.at[t] = at[t][0];
      for (int l = 1; l < kLanes; ++l) result.at[t] = _mm512_add_ps(result.at[t], at[t][l]);
    }
    return result;
  }
};

template <class Kind, int Tokens, Load How>
LD_INLINE Sums<Tokens> packed_row(const ld_matrix *m, const typename Kind::Input *x, int64_t x_stride, int64_t row) {
  constexpr int kColumns = kLanes * Kind::kColumns;
  constexpr uint64_t kPart = ~0ULL >> (64 - Kind::kColumns);
  const char *p = static_cast<const char *>(m->values) + m->row_ptr[row];
  const char *const end = static_cast<const char *>(m->values) + m->value_bytes;
  const uint64_t *mask = m->mask + row * m->mask_words;
  Lanes<Tokens> lanes;
  lanes.clear();

  const auto parts = [&](uint64_t first_word, uint64_t second_word) LD_ALWAYS {
    __m512i w[kLanes];
    typename Kind::Mask mask_of[kLanes];
    uint64_t count[kLanes];
#pragma GCC unroll 4
    for (int i = 0; i < kLanes; ++i) {
      const int column = i * Kind::kColumns;
      const uint64_t bits = pinned((column < 64 ? first_word : second_word) >> (column % 64) & kPart);
      mask_of[i] = static_cast<typename Kind::Mask>(bits);
      asm("" : "+k"(mask_of[i]));
      count[i] = __builtin_popcountll(bits);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kLanes; ++i) {
      w[i] = How == Load::kLast ? load_last(p, end) : How == Load::kAhead ? load_whole(p) : load(p);
      if (How == Load::kAhead && (Kind::kBytes == 2 || i % 2 == 0)) _mm_prefetch(p + kAhead, _MM_HINT_T0);
      p += Kind::kBytes * count[i];
    }
#pragma GCC unroll 4
    for (int i = 0; i < kLanes; ++i) {
      w[i] = Kind::expand(mask_of[i], w[i]);
#pragma GCC unroll 4
      for (int t = 0; t < Tokens; ++t) lanes.at[t][i] = Kind::add(lanes.at[t][i], w[i], x + t * x_stride + i * Kind::kColumns);
    }
    x += kColumns;
  };

  const uint64_t *const stop = mask + (m->cols + 63) / 64;
  for (; mask + kColumns / 64 <= stop; mask += kColumns / 64) parts(mask[0], mask[kColumns / 64 - 1]);
  if (mask < stop) parts(mask[0], 0);
  return lanes.sums();
}

template <class Kind, int Tokens>
LD_INLINE Sums<Tokens> dense_row(const ld_matrix *m, const typename Kind::Input *x, int64_t x_stride, int64_t row) {
  const char *const p = static_cast<const char *>(m->values) + row * m->cols * Kind::kBytes;
  Lanes<Tokens> lanes;
  lanes.clear();
  int64_t c = 0;
  for (; c + kLanes * Kind::kColumns <= m->cols; c += kLanes * Kind::kColumns) {
#pragma GCC unroll 4
    for (int i = 0; i < kLanes; ++i) {
      const int64_t at = c + i * Kind::kColumns;
      const __m512i w = _mm512_loadu_si512(p + at * Kind::kBytes);
#pragma GCC unroll 4
      for (int t = 0; t < Tokens; ++t) lanes.at[t][i] = Kind::add(lanes.at[t][i], w, x + t * x_stride + at);
    }
  }
  for (; c < m->cols; c += Kind::kColumns) {
    const __m512i w = _mm512_maskz_loadu_epi8(first((m->cols - c) * Kind::kBytes), p + c * Kind::kBytes);
    for (int t = 0; t < Tokens; ++t) lanes.at[t][0] = Kind::add(lanes.at[t][0], w, x + t * x_stride + c);
  }
  return lanes.sums();
}

// ---------------------------------------------------------------- int8 and int4

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

// ---------------------------------------------------------------- rows

using Range = void (*)(const ld_matrix *, const ld_input *, int64_t, int64_t, float *, int64_t);

// Tokens [Begin, Begin + Tokens) of a row; all at once where registers hold their lanes, else in halves, the row being near by then.
template <class Kind, int Begin, int Tokens, bool Packed, Load How>
LD_INLINE void float_row(const ld_matrix *m, const ld_input *in, int64_t row, float *y, int64_t y_stride) {
  constexpr int kSome = Tokens <= 4 ? Tokens : (Tokens + 1) / 2;
  const typename Kind::Input *const x = Kind::input(in) + Begin * in->stride;
  const Sums<kSome> sums =
      Packed ? packed_row<Kind, kSome, How>(m, x, in->stride, row) : dense_row<Kind, kSome>(m, x, in->stride, row);
  sums.store(m, row, y + Begin * y_stride, y_stride);
  if constexpr (kSome < Tokens) float_row<Kind, Begin + kSome, Tokens - kSome, Packed, How>(m, in, row, y, y_stride);
}

template <class Kind, int Tokens, Load How, bool Packed>
void floats(const ld_matrix *m, const ld_input *in, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  for (int64_t row = begin; row < end; ++row) float_row<Kind, 0, Tokens, Packed, How>(m, in, row, y, y_stride);
}

template <class Kind, int Tokens, Load How, int Rows, bool Packed, int Words>
void codes(const ld_matrix *m, const ld_input *in, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  const Kind kind(m);
  for (int64_t row = begin; row < end; row += Rows)
    code_rows<Kind, Tokens, Words, Rows, Packed, How>(m, in, kind, row, y, y_stride);
}

template <class Kind, int Tokens, Load How>
Range floats_of(bool packed) {
  constexpr Load kPacked = How == Load::kHalf ? Load::kWhole : How;
  return packed ? floats<Kind, Tokens, kPacked, true> : floats<Kind, Tokens, Load::kWhole, false>;
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

template <int Tokens, Load How>
Range pick(const ld_matrix *m, int step) {
  const bool packed = m->mask != nullptr, wide = m->group == 128;
  switch (m->kind) {
    case LD_FP32: return floats_of<Fp32, Tokens, How>(packed);
    case LD_BF16: return floats_of<Bf16, Tokens, How>(packed);
    case LD_INT8: return codes_of<Int8, Tokens, How>(packed, wide, step);
    default: return codes_of<Int4, Tokens, How>(packed, wide, step);
  }
}

template <Load How>
Range pick(const ld_matrix *m, int tokens, int step) {
  switch (tokens) {
    case 1: return pick<1, How>(m, step);
    case 2: return pick<2, How>(m, step);
    case 3: return pick<3, How>(m, step);
    case 4: return pick<4, How>(m, step);
    case 5: return pick<5, How>(m, step);
    case 6: return pick<6, How>(m, step);
    case 7: return pick<7, How>(m, step);
    default: return pick<8, How>(m, step);
  }
}

// Where the bytes of a row, or of the pair that it belongs to, begin.
int64_t begin_of(const ld_matrix *m, int64_t row) { return m->row_ptr[m->kind == LD_INT4 ? (row + 1) / 2 : row]; }

// The end of the rows, in steps, after whose values a whole register can be read.
int64_t safe_end(const ld_matrix *m, int64_t begin, int64_t end, int64_t step) {
  if (m->mask)
    while (end > begin && begin_of(m, end) + kRegister > m->value_bytes) end -= step;
  return end > begin ? end : begin;
}

// At most two codes in five: few words of 64 columns have more than 32.
bool sparse(const ld_matrix *m, int64_t begin, int64_t end) {
  const int64_t rows = m->kind == LD_INT4 ? (end - begin + 1) / 2 : end - begin;
  return m->mask && (begin_of(m, end) - begin_of(m, begin)) * 5 <= rows * m->cols * 2;
}

// How many rows of [begin, end) are read together.
int together(const ld_matrix *m, int tokens, int64_t begin, int64_t end) {
  if (m->kind != LD_INT8 && m->kind != LD_INT4) return 1;
  const int64_t shared = m->kind == LD_INT4 ? 2 : 1;
  const int64_t bytes = m->mask ? (begin_of(m, end) - begin_of(m, begin)) * kTogether / (end - begin) : m->cols * kTogether / shared;
  const int64_t packed = zen4() ? kZen4Together : shared == 1 && m->cols > kWide ? kWideTogether : kPackedTogether;
  if (tokens <= 2 && bytes <= (m->mask ? packed : kDenseTogether)) return kTogether;
  if (m->mask && m->cols > kWide && zen4()) return 1;
  return shared == 2 && tokens <= 4 ? 2 : 1;
}

void rows(const ld_matrix *m, const ld_input *in, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  if (begin >= end) return;
  if (in_records(m)) return record_rows(m, in, begin, end, y, y_stride);
  if (m->kind == LD_INT3) return octets(m, in, begin, end, y, y_stride);
  const int step = together(m, in->tokens, begin, end);
  const int64_t whole = begin + (end - begin) / step * step, safe = safe_end(m, begin, whole, step);
  const Range most = zen4()                   ? pick<Load::kAhead>(m, in->tokens, step)
                     : sparse(m, begin, safe) ? pick<Load::kHalf>(m, in->tokens, step)
                                              : pick<Load::kWhole>(m, in->tokens, step);
  most(m, in, begin, safe, y, y_stride);
  pick<Load::kLast>(m, in->tokens, step)(m, in, safe, whole, y, y_stride);
  pick<Load::kLast>(m, in->tokens, 1)(m, in, whole, end, y, y_stride);
}

int supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vnni") &&
         __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma");
}

}  // namespace

extern "C" const ld_kernels ld_kernels_avx512 = {"avx512", supported, prepare, rows, unpack};
