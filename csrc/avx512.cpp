// AVX-512 with VBMI2, VNNI and BF16: Ice Lake's successors from Sapphire Rapids on, Zen 4 and later.

#include "avx512_codes.h"
#include "avx512_records.h"
#include "avx512_octets.h"
#include "avx512_unpack.h"

namespace {

// ---------------------------------------------------------------- fp32 and bf16

// Part i of a row goes into lane i % kLanes, which hides latency where tokens are few: VDPBF16PS takes six cycles, VFMADD four.
constexpr int kLanes = 4;

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

// ---------------------------------------------------------------- rows

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

template <class Kind, int Tokens, Load How>
Range floats_of(bool packed) {
  constexpr Load kPacked = How == Load::kHalf ? Load::kWhole : How;
  return packed ? floats<Kind, Tokens, kPacked, true> : floats<Kind, Tokens, Load::kWhole, false>;
}

template <class Kind, Load How>
Range floats_of(const ld_matrix *m, int tokens) {
  const bool packed = m->mask != nullptr;
  switch (tokens) {
    case 1: return floats_of<Kind, 1, How>(packed);
    case 2: return floats_of<Kind, 2, How>(packed);
    case 3: return floats_of<Kind, 3, How>(packed);
    case 4: return floats_of<Kind, 4, How>(packed);
    case 5: return floats_of<Kind, 5, How>(packed);
    case 6: return floats_of<Kind, 6, How>(packed);
    case 7: return floats_of<Kind, 7, How>(packed);
    default: return floats_of<Kind, 8, How>(packed);
  }
}

template <Load How>
Range pick(const ld_matrix *m, int tokens, int step) {
  switch (m->kind) {
    case LD_FP32: return floats_of<Fp32, How>(m, tokens);
    case LD_BF16: return floats_of<Bf16, How>(m, tokens);
    case LD_INT8: return ld_avx512_int8(m, How, tokens, step);
    default: return ld_avx512_int4(m, How, tokens, step);
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
