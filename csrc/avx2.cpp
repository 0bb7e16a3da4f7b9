// AVX2 with FMA and BMI2: x86 processors since 2013 (Haswell, Zen). A table shuffle does what VPEXPAND does in AVX-512.

#include "avx2_records.h"
#include "avx2_unpack.h"

namespace {

// Four sums for each token, which hide latency where tokens are few. Their number does not depend on that of the tokens, so that no
// token's result depends on the others.
template <class Kind, int Tokens>
struct Sums {
  static constexpr int kLanes = 4;
  __m256 at[Tokens][kLanes];

  LD_INLINE void clear() {
    for (int t = 0; t < Tokens; ++t)
      for (int l = 0; l < kLanes; ++l) at[t][l] = _mm256_setzero_ps();
  }
  LD_INLINE void add(Numbers w, const typename Kind::Input *x, int64_t stride, int part) {
    const int even = 2 * part % kLanes;
#pragma GCC unroll 4
    for (int t = 0; t < Tokens; ++t) at[t][even] = _mm256_fmadd_ps(w.a, Kind::read_a(x + t * stride), at[t][even]);
#pragma GCC unroll 4
    for (int t = 0; t < Tokens; ++t) at[t][even + 1] = _mm256_fmadd_ps(w.b, Kind::read_b(x + t * stride), at[t][even + 1]);
  }
  LD_INLINE void finish(const ld_matrix *m, int64_t row, float *y, int64_t y_stride) const {
    for (int t = 0; t < Tokens; ++t) {
      __m256 sum = at[t][0];
      for (int l = 1; l < kLanes; ++l) sum = _mm256_add_ps(sum, at[t][l]);
      store(m, row, sum, y + t * y_stride + row);
    }
  }
};

template <class Kind, int Tokens, bool Last>
void packed_row(const ld_matrix *m, const typename Kind::Input *x, int64_t x_stride, int64_t row, float *y, int64_t y_stride) {
  const char *p = static_cast<const char *>(m->values) + m->row_ptr[row];
  const char *const end = static_cast<const char *>(m->values) + m->value_bytes;
  const uint8_t *mask = mask_bytes(m, row);
  Sums<Kind, Tokens> sums;
  sums.clear();
  for (int64_t c = 0; c < m->cols; c += 64, x += 64, mask += 8) {
#pragma GCC unroll 4
    for (int part = 0; part < 4; ++part) {
      const Numbers w = Kind::read(Kind::template take<Last>(p, end, mask + 2 * part));
      sums.add(w, x + 16 * part, x_stride, part);
    }
  }
  sums.finish(m, row, y, y_stride);
}

template <class Kind, int Tokens>
void dense_row(const ld_matrix *m, const typename Kind::Input *x, int64_t x_stride, int64_t row, float *y, int64_t y_stride) {
  using Number = typename Kind::Input;
  const Number *const w = static_cast<const Number *>(m->values) + row * m->cols;
  Sums<Kind, Tokens> sums;
  sums.clear();
  int64_t c = 0;
  for (; c + 32 <= m->cols; c += 32) {
    sums.add(Kind::read(w + c), x + c, x_stride, 0);
    sums.add(Kind::read(w + c + 16), x + c + 16, x_stride, 1);
  }
  if (c < m->cols) {
    Number rest[32] = {};
    std::memcpy(rest, w + c, static_cast<size_t>(m->cols - c) * sizeof(Number));
    sums.add(Kind::read(rest), x + c, x_stride, 0);
    sums.add(Kind::read(rest + 16), x + c + 16, x_stride, 1);
  }
  sums.finish(m, row, y, y_stride);
}

// Tokens [Begin, Begin + Tokens) of a row, as many at once as registers hold the sums of, the row being near by for the others.
template <class Kind, int Begin, int Tokens>
LD_INLINE void number_row(const ld_matrix *m, const ld_input *in, int64_t row, float *y, int64_t y_stride) {
  constexpr int kMost = 3, kTimes = (Tokens + kMost - 1) / kMost, kSome = (Tokens + kTimes - 1) / kTimes;
  const typename Kind::Input *const x = Kind::input(in) + Begin * in->stride;
  float *const to = y + Begin * y_stride;
  if (!m->mask)
    dense_row<Kind, kSome>(m, x, in->stride, row, to, y_stride);
  else if (inside(m, row))
    packed_row<Kind, kSome, false>(m, x, in->stride, row, to, y_stride);
  else
    packed_row<Kind, kSome, true>(m, x, in->stride, row, to, y_stride);
  if constexpr (kSome < Tokens) number_row<Kind, Begin + kSome, Tokens - kSome>(m, in, row, y, y_stride);
}

template <class Kind, int Tokens>
void number_rows(const ld_matrix *m, const ld_input *in, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  for (int64_t r = begin; r < end; ++r) number_row<Kind, 0, Tokens>(m, in, r, y, y_stride);
}

// ---------------------------------------------------------------- int8 and int4

// Columns [begin, finish) of a row; `begin` is a multiple of kStretch.
template <int Tokens, bool Last>
LD_INLINE void add_packed(const ld_matrix *m, const ld_input *in, int64_t row, int64_t begin, int64_t finish, const char *p,
                          const char *end, CodeSums<Tokens> &sums) {
  const int shift = m->group == 64 ? 6 : 7;
  const uint8_t *mask = mask_bytes(m, row) + begin / 8;
  Scales<Tokens> scales;
  for (int64_t c = begin; c < finish; c += 64, mask += 8) {
    const int64_t group = c >> shift;
    if ((c & ((512 << (shift - 6)) - 1)) == 0) scales.fill(m, in, row, group);
    const __m256i first = take_codes<Last>(p, end, mask);
    sums.add(first, take_codes<Last>(p, end, mask + 4), in, c, scales, group & 7);
  }
}

template <int Tokens, bool Last>
void packed_int8_row(const ld_matrix *m, const ld_input *in, int64_t row, float *y, int64_t y_stride) {
  const char *const values = static_cast<const char *>(m->values);
  CodeSums<Tokens> sums;
  sums.clear();
  add_packed<Tokens, Last>(m, in, row, 0, m->cols, values + m->row_ptr[row], values + m->value_bytes, sums);
  sums.finish(m, row, y, y_stride);
}

template <int Tokens, bool Last>
void packed_int4_row(const ld_matrix *m, const ld_input *in, int64_t row, float *y, int64_t y_stride) {
  const char *p = static_cast<const char *>(m->values) + m->row_ptr[row / 2];
  const char *const end = static_cast<const char *>(m->values) + m->value_bytes;
  alignas(32) char codes[kStretch + kMargin];
  CodeSums<Tokens> sums;
  sums.clear();
  for (int64_t c = 0; c < m->cols; c += kStretch) {
    const int64_t finish = least(c + kStretch, m->cols);
    look_up<Last>(m, row, c, finish, p, end, codes);
    add_packed<Tokens, false>(m, in, row, c, finish, codes, nullptr, sums);
  }
  sums.finish(m, row, y, y_stride);
}

// `Rows` rows that share their bytes. What is read beyond the last column meets inputs that are zero.
template <class Kind, int Tokens, int Rows, bool Last>
void dense_codes(const ld_matrix *m, const ld_input *in, int64_t row, float *y, int64_t y_stride) {
  const Kind kind(m);
  const int shift = m->group == 64 ? 6 : 7;
  const char *const p = static_cast<const char *>(m->values) + row / Kind::kRows * m->cols;
  const char *const end = static_cast<const char *>(m->values) + m->value_bytes;
  Scales<Tokens> scales[Rows];
  CodeSums<Tokens> sums[Rows];
  for (int r = 0; r < Rows; ++r) sums[r].clear();
  for (int64_t c = 0; c < m->cols; c += 64) {
    const int64_t group = c >> shift;
    const __m256i first = load<__m256i, Last>(p + c, end), second = load<__m256i, Last>(p + c + 32, end);
#pragma GCC unroll 2
    for (int r = 0; r < Rows; ++r) {
      if ((c & ((512 << (shift - 6)) - 1)) == 0) scales[r].fill(m, in, row + r, group);
      sums[r].add(kind.codes(first, r), kind.codes(second, r), in, c, scales[r], group & 7);
    }
  }
  for (int r = 0; r < Rows; ++r) sums[r].finish(m, row + r, y, y_stride);
}

template <int Tokens, bool Last>
void int8_row(const ld_matrix *m, const ld_input *in, int64_t row, float *y, int64_t y_stride) {
  if (m->mask)
    packed_int8_row<Tokens, Last>(m, in, row, y, y_stride);
  else
    dense_codes<Int8, Tokens, 1, Last>(m, in, row, y, y_stride);
}

template <int Tokens, bool Last>
void int4_pair(const ld_matrix *m, const ld_input *in, int64_t row, int64_t rows, float *y, int64_t y_stride) {
  if (m->mask) {
    for (int64_t r = row; r < row + rows; ++r) packed_int4_row<Tokens, Last>(m, in, r, y, y_stride);
  } else if (rows == 2) {
    dense_codes<Int4, Tokens, 2, Last>(m, in, row, y, y_stride);
  } else {
    dense_codes<Int4, Tokens, 1, Last>(m, in, row, y, y_stride);
  }
}

template <int Tokens>
void int8_rows(const ld_matrix *m, const ld_input *in, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  for (int64_t r = begin; r < end; ++r)
    if (inside(m, r))
      int8_row<Tokens, false>(m, in, r, y, y_stride);
    else
      int8_row<Tokens, true>(m, in, r, y, y_stride);
}

template <int Tokens>
void int4_rows(const ld_matrix *m, const ld_input *in, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  for (int64_t r = begin; r < end; r += 2)
    if (inside(m, r))
      int4_pair<Tokens, false>(m, in, r, least(2, end - r), y, y_stride);
    else
      int4_pair<Tokens, true>(m, in, r, least(2, end - r), y, y_stride);
}

// The `rows` first rows of a block.
template <int Tokens>
void int3_block(const ld_matrix *m, const ld_input *in, int64_t row, int64_t rows, float *y, int64_t y_stride) {
  const Int3 kind(m);
  const int shift = m->group == 64 ? 6 : 7;
  const char *p = static_cast<const char *>(m->values) + row / 8 * octet_bytes(m->cols);
  Scales<Tokens> scales[8];
  CodeSums<Tokens> sums[8];
  for (int r = 0; r < 8; ++r) sums[r].clear();
  for (int64_t c = 0; c < m->cols; c += 64, p += kOctetWord) {
    const int64_t group = c >> shift;
    if ((c & ((512 << (shift - 6)) - 1)) == 0)
      for (int64_t r = 0; r < rows; ++r) scales[r].fill(m, in, row + r, group);
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r)
      if (r < rows) sums[r].add(kind.codes(p, r), kind.codes(p + 32, r), in, c, scales[r], group & 7);
  }
  for (int64_t r = 0; r < rows; ++r) sums[r].finish(m, row + r, y, y_stride);
}

template <int Tokens>
void int3_rows(const ld_matrix *m, const ld_input *in, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  for (int64_t r = begin; r < end; r += 8) int3_block<Tokens>(m, in, r, least(8, end - r), y, y_stride);
}

using Rows = void (*)(const ld_matrix *, const ld_input *, int64_t, int64_t, float *, int64_t);

template <int Tokens>
constexpr Rows kRows[] = {number_rows<Fp32, Tokens>, number_rows<Bf16, Tokens>, int8_rows<Tokens>,      int4_rows<Tokens>,
                          int3_rows<Tokens>,         record_rows<2, Tokens>,    record_rows<4, Tokens>};

constexpr const Rows *kByTokens[LD_MAX_TOKENS] = {kRows<1>, kRows<2>, kRows<3>, kRows<4>, kRows<5>, kRows<6>, kRows<7>, kRows<8>};

void rows(const ld_matrix *m, const ld_input *in, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  const int form = m->layout == LD_ROWS ? m->kind : m->layout == LD_EIGHTS ? LD_INT3 + 1 : LD_INT3 + 2;
  kByTokens[in->tokens - 1][form](m, in, begin, end, y, y_stride);
}

int supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
         __builtin_cpu_supports("popcnt");
}

}  // namespace

const ld_kernels ld_kernels_avx2 = {"avx2", supported, prepare_rows, rows, unpack};
