// AVX-512 with VBMI2, VNNI and BF16: Ice Lake's successors from Sapphire Rapids on, Zen 4 and later.
//
// Two facts about VPEXPAND on Zen 5 shape this file. Its memory form is two to three times slower than its register form where the
// mask is partial or the address unaligned. Its zeroing form waits for the old value of its destination, which chains one
// expansion to the next at six cycles each; the merging form into a fresh copy of a constant does not.

#include "kernels.h"

#include <immintrin.h>

namespace {

constexpr int64_t kRegister = 64;  // bytes that an unmasked load reads

inline __m512i pinned(__m512i v) {
  asm("" : "+v"(v));
  return v;
}

inline __m512i zero() { return pinned(_mm512_setzero_si512()); }

// In a general register: gcc would shift masks in mask registers and move them back to count them.
inline uint64_t pinned(uint64_t v) {
  asm("" : "+r"(v));
  return v;
}

// How packed codes are read: whole registers; halves, which is worth a branch where few words of 64 columns have more than 32 codes;
// or, in the last rows, no more than is there.
enum class Load { kWhole, kHalf, kLast };

inline __m512i load_half(const char *p) {
  __m512i v;
  asm("vmovdqu64 %1, %t0" : "=v"(v) : "m"(*reinterpret_cast<const char(*)[32]>(p)));
  return v;
}

// 64 bytes from any address. A load that crosses a cache line costs far more than its two halves, one of which does not cross; the
// first is written out, because the compiler would make one load of the two, or fold it into VPEXPAND.
inline __m512i load(const char *p) {
  return _mm512_inserti64x4(load_half(p), _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p + 32)), 1);
}

// The same where values end at `end`.
inline __m512i load_last(const char *p, const char *end) {
  const int64_t left = end - p;
  return pinned(_mm512_maskz_loadu_epi8(left >= kRegister ? ~0ULL : (1ULL << left) - 1, p));
}

inline __mmask64 first(int64_t count) { return count >= 64 ? ~0ULL : count <= 0 ? 0 : (1ULL << count) - 1; }

inline __m512 widen(__m256i bf16) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16)); }

inline float widen(uint16_t bf16) {
  union {
    uint32_t bits;
    float value;
  } u = {static_cast<uint32_t>(bf16) << 16};
  return u.value;
}

inline __m512bh as_bf16(__m512i v) { return reinterpret_cast<__m512bh>(v); }

// Sums beside each other for each token, so that latency is hidden where tokens are few.
template <int Tokens>
constexpr int lanes() {
  return Tokens == 1 ? 4 : Tokens <= 3 ? 2 : 1;
}

template <int Tokens>
struct Sums {
  static constexpr int kLanes = lanes<Tokens>();
  __m512 at[Tokens][kLanes];

  inline void clear() {
    for (int t = 0; t < Tokens; ++t)
      for (int l = 0; l < kLanes; ++l) at[t][l] = _mm512_setzero_ps();
  }

  inline void store(const ld_matrix *m, int64_t row, float *y, int64_t y_stride) const {
    const float bias = m->bias ? m->bias[row] : 0.0f;
    for (int t = 0; t < Tokens; ++t) {
      __m512 sum = at[t][0];
      for (int l = 1; l < kLanes; ++l) sum = _mm512_add_ps(sum, at[t][l]);
      y[t * y_stride + row] = _mm512_reduce_add_ps(sum) + bias;
    }
  }
};

// ---------------------------------------------------------------- fp32 and bf16

struct Fp32 {
  static constexpr int kColumns = 16, kBytes = 4;
  using Input = float;
  using Mask = __mmask16;
  static const Input *input(const ld_input *in) { return in->f32; }
  static __m512i expand(Mask mask, __m512i v) { return _mm512_mask_expand_epi32(zero(), mask, v); }
  static __m512 add(__m512 sum, __m512i w, const Input *x) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(w), _mm512_load_ps(x), sum);
  }
};

struct Bf16 {
  static constexpr int kColumns = 32, kBytes = 2;
  using Input = uint16_t;
  using Mask = __mmask32;
  static const Input *input(const ld_input *in) { return in->bf16; }
  static __m512i expand(Mask mask, __m512i v) { return _mm512_mask_expand_epi16(zero(), mask, v); }
  static __m512 add(__m512 sum, __m512i w, const Input *x) {
    return _mm512_dpbf16_ps(sum, as_bf16(w), as_bf16(_mm512_load_si512(x)));
  }
};

// Four parts at a time, one sum each where tokens are few: VDPBF16PS takes six cycles, VFMADD four.
template <class Kind, int Tokens, bool Last>
inline void packed_row(const ld_matrix *m, const ld_input *in, int64_t row, float *y, int64_t y_stride) {
  constexpr int kParts = 4, kColumns = kParts * Kind::kColumns;
  constexpr uint64_t kPart = ~0ULL >> (64 - Kind::kColumns);
  const char *p = static_cast<const char *>(m->values) + m->row_ptr[row];
  const char *const end = static_cast<const char *>(m->values) + m->value_bytes;
  const uint64_t *mask = m->mask + row * m->mask_words;
  const typename Kind::Input *x = Kind::input(in);
  Sums<Tokens> sums;
  sums.clear();

  const auto parts = [&](uint64_t first_word, uint64_t second_word) __attribute__((always_inline)) {
    __m512i w[kParts];
    typename Kind::Mask mask_of[kParts];
    uint64_t count[kParts];
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) {
      const int column = i * Kind::kColumns;
      const uint64_t bits = pinned((column < 64 ? first_word : second_word) >> (column % 64) & kPart);
      mask_of[i] = static_cast<typename Kind::Mask>(bits);
      asm("" : "+k"(mask_of[i]));
      count[i] = __builtin_popcountll(bits);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) {
      w[i] = Last ? load_last(p, end) : load(p);
      p += Kind::kBytes * count[i];
    }
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) {
      w[i] = Kind::expand(mask_of[i], w[i]);
#pragma GCC unroll 8
      for (int t = 0; t < Tokens; ++t) {
        __m512 &sum = sums.at[t][i % Sums<Tokens>::kLanes];
        sum = Kind::add(sum, w[i], x + t * in->stride + i * Kind::kColumns);
      }
    }
    x += kColumns;
  };

  const uint64_t *const stop = mask + (m->cols + 63) / 64;
  for (; mask + kColumns / 64 <= stop; mask += kColumns / 64) parts(mask[0], mask[kColumns / 64 - 1]);
  if (mask < stop) parts(mask[0], 0);
  sums.store(m, row, y, y_stride);
}

template <class Kind, int Tokens>
inline void dense_row(const ld_matrix *m, const ld_input *in, int64_t row, float *y, int64_t y_stride) {
  constexpr int kParts = 4;
  const int64_t width = m->cols * Kind::kBytes;
  const char *p = static_cast<const char *>(m->values) + row * width;
  const typename Kind::Input *x = Kind::input(in);
  Sums<Tokens> sums;
  sums.clear();
  int64_t c = 0;
  for (; c + kParts * Kind::kColumns <= m->cols; c += kParts * Kind::kColumns) {
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
      const __m512i w = _mm512_loadu_si512(p + (c + part * Kind::kColumns) * Kind::kBytes);
#pragma GCC unroll 8
      for (int t = 0; t < Tokens; ++t) {
        __m512 &sum = sums.at[t][part % Sums<Tokens>::kLanes];
        sum = Kind::add(sum, w, x + t * in->stride + c + part * Kind::kColumns);
      }
    }
  }
  for (; c < m->cols; c += Kind::kColumns) {
    const __m512i w = _mm512_maskz_loadu_epi8(first((m->cols - c) * Kind::kBytes), p + c * Kind::kBytes);
    for (int t = 0; t < Tokens; ++t) sums.at[t][0] = Kind::add(sums.at[t][0], w, x + t * in->stride + c);
  }
  sums.store(m, row, y, y_stride);
}

// ---------------------------------------------------------------- int8 and int4

// Codes plus 128 as unsigned bytes, what VPDPBUSD wants; a pruned weight is 128. The input's `offset` takes the 128s off again.
struct Int8 {
  static constexpr int kRows = 1;  // that share bytes
  explicit Int8(const ld_matrix *) {}
  __m512i codes(__m512i v, bool) const { return _mm512_xor_si512(v, _mm512_set1_epi8(-128)); }
};

struct Int4 {
  static constexpr int kRows = 2;
  __m512i table;
  explicit Int4(const ld_matrix *m)
      : table(_mm512_xor_si512(
            _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i *>(m->table))),
            _mm512_set1_epi8(-128))) {}
  // VPERMB looks at six bits of each index; the table repeats, so that the upper two do not matter.
  __m512i codes(__m512i v, bool high) const {
    return _mm512_permutexvar_epi8(high ? _mm512_srli_epi16(v, 4) : v, table);
  }
};

// Scales of up to 16 groups of one row, times those of the input.
template <int Tokens>
struct Scales {
  alignas(64) float at[Tokens][16];
  inline void fill(const uint16_t *row, const float *input, int64_t groups, __mmask16 some) {
    const __m512 w = widen(_mm256_maskz_loadu_epi16(some, row));
    for (int t = 0; t < Tokens; ++t)
      _mm512_store_ps(at[t], _mm512_mul_ps(w, _mm512_maskz_loadu_ps(some, input + t * groups)));
  }
};

// Two rows that share bytes are read together, one memory stream, while registers suffice. (Two rows of int8 would be two streams,
// for which the processor fetches ahead less well: three times slower from memory.)
constexpr int kPairTokens = 4;

// One row of codes, or two that share bytes, read forward 64 columns at a time.
template <class Kind, int Rows, bool Packed, Load How>
struct Reader {
  const Kind kind;
  const char *p[Rows];
  const char *const end;
  const uint64_t *mask;
  const int64_t mask_words, cols;
  const bool odd;

  Reader(const ld_matrix *m, const Kind &k, int64_t row)
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
  }

  // The next word's codes; dense: `left` columns are left.
  inline void next(int64_t left, __m512i *codes) {
    if (!Packed) {  // columns beyond the last meet inputs of zero
      for (int r = 0; r < Rows; ++r) {
        const __m512i v = left >= 64 ? _mm512_loadu_si512(p[r]) : _mm512_maskz_loadu_epi8(first(left), p[r]);
        p[r] += 64;
        codes[r] = kind.codes(v, r || odd);
      }
      return;
    }
    __mmask64 mask_of[Rows];
    uint64_t count[Rows], any = 0;
#pragma GCC unroll 2
    for (int r = 0; r < Rows; ++r) {
      const uint64_t bits = pinned(mask[r * mask_words]);
      mask_of[r] = bits;
      asm("" : "+k"(mask_of[r]));
      count[r] = __builtin_popcountll(bits);
      any |= count[r];
    }
    ++mask;
    const bool half = How == Load::kHalf && __builtin_expect(any < 32, 1);
#pragma GCC unroll 2
    for (int r = 0; r < Rows; ++r) {
      const __m512i v = How == Load::kLast ? load_last(p[r], end) : half ? load_half(p[r]) : load(p[r]);
      codes[r] = _mm512_mask_expand_epi8(_mm512_set1_epi8(-128), mask_of[r], pinned(kind.codes(v, r || odd)));
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

  const auto group = [&](int i, int lane, int words) __attribute__((always_inline)) {
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
#pragma GCC unroll 2
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
      for (int t = 0; t < Tokens; ++t)
        sums[r].at[t][lane] =
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r][t]), _mm512_set1_ps(scales[r].at[t][i]), sums[r].at[t][lane]);
    }
  };

  constexpr int kOther = lanes<Tokens>() > 1 && Rows == 1 ? 1 : 0;  // lane of every second group
  const int64_t full = m->cols > 64 * (Words - 1) ? (m->cols - 64 * (Words - 1) + 64 * Words - 1) / (64 * Words) : 0;
  int64_t g = 0;
  for (; g + 16 <= full; g += 16) {
    for (int r = 0; r < Rows; ++r) scales[r].fill(m->scales + (row + r) * in->groups + g, in->scale + g, in->groups, 0xFFFF);
    for (int i = 0; i < 16; i += 2) {
      group(i, 0, Words);
      group(i + 1, kOther, Words);
    }
  }
  if (g < in->groups) {
    const __mmask16 some = static_cast<__mmask16>(first(in->groups - g));
    for (int r = 0; r < Rows; ++r) scales[r].fill(m->scales + (row + r) * in->groups + g, in->scale + g, in->groups, some);
    int i = 0;
    for (; g + i < full; ++i) group(i, 0, Words);
    if (g + i < in->groups) group(i, 0, 1);
  }
  for (int r = 0; r < Rows; ++r) sums[r].store(m, row + r, y, y_stride);
}

// ---------------------------------------------------------------- rows

using Range = void (*)(const ld_matrix *, const ld_input *, int64_t, int64_t, float *, int64_t);

template <class Kind, int Tokens, Load How, bool Packed>
void floats(const ld_matrix *m, const ld_input *in, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  for (int64_t row = begin; row < end; ++row) {
    if (Packed)
      packed_row<Kind, Tokens, How == Load::kLast>(m, in, row, y, y_stride);
    else
      dense_row<Kind, Tokens>(m, in, row, y, y_stride);
  }
}

template <class Kind, int Tokens, Load How, int Rows, bool Packed, int Words>
void codes(const ld_matrix *m, const ld_input *in, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  const Kind kind(m);
  for (int64_t row = begin; row < end; row += Rows)
    code_rows<Kind, Tokens, Words, Rows, Packed, How>(m, in, kind, row, y, y_stride);
}

template <class Kind, int Tokens, Load How>
Range floats_of(bool packed) {
  return packed ? floats<Kind, Tokens, How, true> : floats<Kind, Tokens, How, false>;
}

template <class Kind, int Tokens, Load How, int Rows>
Range codes_of(bool packed, bool wide) {
  if (wide) return packed ? codes<Kind, Tokens, How, Rows, true, 2> : codes<Kind, Tokens, How, Rows, false, 2>;
  return packed ? codes<Kind, Tokens, How, Rows, true, 1> : codes<Kind, Tokens, How, Rows, false, 1>;
}

template <int Tokens, Load How>
Range pick(const ld_matrix *m, bool pair) {
  const bool packed = m->mask != nullptr, wide = m->group == 128;
  switch (m->kind) {
    case LD_FP32: return floats_of<Fp32, Tokens, How>(packed);
    case LD_BF16: return floats_of<Bf16, Tokens, How>(packed);
    case LD_INT8: return codes_of<Int8, Tokens, How, 1>(packed, wide);
    default:
      if (!pair || Tokens > kPairTokens) return codes_of<Int4, Tokens, How, 1>(packed, wide);
      return codes_of<Int4, Tokens, How, Tokens <= kPairTokens ? 2 : 1>(packed, wide);
  }
}

template <Load How>
Range pick(const ld_matrix *m, int tokens, bool pair) {
  switch (tokens) {
    case 1: return pick<1, How>(m, pair);
    case 2: return pick<2, How>(m, pair);
    case 3: return pick<3, How>(m, pair);
    case 4: return pick<4, How>(m, pair);
    case 5: return pick<5, How>(m, pair);
    case 6: return pick<6, How>(m, pair);
    case 7: return pick<7, How>(m, pair);
    default: return pick<8, How>(m, pair);
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

void rows(const ld_matrix *m, const ld_input *in, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  const bool pair = m->kind == LD_INT4 && in->tokens <= kPairTokens;
  const int64_t step = pair ? 2 : 1, whole = begin + (end - begin) / step * step;
  const int64_t safe = safe_end(m, begin, whole, step);
  const Range most = sparse(m, begin, safe) ? pick<Load::kHalf>(m, in->tokens, pair) : pick<Load::kWhole>(m, in->tokens, pair);
  most(m, in, begin, safe, y, y_stride);
  pick<Load::kLast>(m, in->tokens, pair)(m, in, safe, whole, y, y_stride);
  pick<Load::kLast>(m, in->tokens, false)(m, in, whole, end, y, y_stride);
}

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

int supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vnni") &&
         __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma");
}

}  // namespace

extern "C" const ld_kernels ld_kernels_avx512 = {"avx512", supported, prepare, rows, unpack};
