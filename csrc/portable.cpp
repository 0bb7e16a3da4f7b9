// Plain C++ for any processor. Sparse rows are expanded a stretch of columns at a time, so that one dense product, which
// compilers vectorise, serves every kind of matrix.

#include "common.h"

namespace {

constexpr int64_t kStretch = 1024;  // columns expanded at a time: long enough for the stores to have retired when they are read
constexpr int64_t kLanes = 16;

template <class Number>
inline void put(float *out, Number value) {
  *out = widen(value);
}
inline void put(uint16_t *out, float value) { *out = round_to_bf16(value); }
inline void put(uint16_t *out, uint16_t bf16) { *out = bf16; }

// ---------------------------------------------------------------- where a row's values come from

template <class Number>
struct Values {
  using Element = Number;
  const Number *at;
  Values(const ld_matrix *m, int64_t row)
      : at(reinterpret_cast<const Number *>(static_cast<const char *>(m->values) +
                                            (m->mask ? m->row_ptr[row] : row * m->cols * static_cast<int64_t>(sizeof(Number))))) {}
  Number operator[](int64_t i) const { return at[i]; }
  // Columns [begin, begin + count) of a dense row.
  const Number *dense(int64_t begin, int64_t, Number *) const { return at + begin; }
};

struct Nibbles {
  using Element = int8_t;
  const uint8_t *at;
  const int8_t *table;
  int shift;
  Nibbles(const ld_matrix *m, int64_t row)
      : at(static_cast<const uint8_t *>(m->values) + (m->mask ? m->row_ptr[row / 2] : row / 2 * m->cols)),
        table(m->table),
        shift(row % 2 ? 4 : 0) {}
  int8_t operator[](int64_t i) const { return table[at[i] >> shift & 15]; }
  const int8_t *dense(int64_t begin, int64_t count, int8_t *buffer) const {
    for (int64_t c = 0; c < count; ++c) buffer[c] = (*this)[begin + c];
    return buffer;
  }
};

// One row, read from its first column to its last.
template <class Source>
class Row {
 public:
  using Element = typename Source::Element;
  Row(const ld_matrix *m, int64_t row)
      : source_(m, row), mask_(m->mask ? m->mask + row * m->mask_words : nullptr), taken_(0) {}

  // The next `count` columns from `begin` on, a multiple of 64. `buffer`: kStretch elements.
  const Element *next(int64_t begin, int64_t count, Element *buffer) {
    if (!mask_) return source_.dense(begin, count, buffer);
    std::memset(buffer, 0, static_cast<size_t>((count + 63) / 64 * 64) * sizeof(Element));
    for (int64_t c = 0; c < count; c += 64) {
      for (uint64_t bits = mask_[(begin + c) / 64]; bits; bits &= bits - 1)
        buffer[c + __builtin_ctzll(bits)] = source_[taken_++];
    }
    return buffer;
  }

 private:
  Source source_;
  const uint64_t *mask_;
  int64_t taken_;
};

// ---------------------------------------------------------------- products

template <class Number>
float dot(const Number *w, const Number *x, int64_t count) {
  float lanes[kLanes] = {};
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += widen(w[c + l]) * widen(x[c + l]);
  for (int64_t l = 0; c + l < count; ++l) lanes[l] += widen(w[c + l]) * widen(x[c + l]);
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

int32_t dot(const int8_t *w, const int8_t *x, int64_t count) {
  int32_t sum = 0;
  for (int64_t c = 0; c < count; ++c) sum += static_cast<int16_t>(w[c]) * static_cast<int16_t>(x[c]);
  return sum;
}

template <class Number>
void multiply(const ld_matrix *m, const ld_input *in, const Number *x, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  Number buffer[kStretch];
  for (int64_t r = begin; r < end; ++r) {
    Row<Values<Number>> row(m, r);
    float sums[LD_MAX_TOKENS] = {};
    for (int64_t c = 0; c < m->cols; c += kStretch) {
      const int64_t count = least(kStretch, m->cols - c);
      const Number *const w = row.next(c, count, buffer);
      for (int32_t t = 0; t < in->tokens; ++t) sums[t] += dot(w, x + t * in->stride + c, count);
    }
    for (int32_t t = 0; t < in->tokens; ++t) y[t * y_stride + r] = sums[t] + (m->bias ? m->bias[r] : 0.0f);
  }
}

template <class Source>
void multiply_codes(const ld_matrix *m, const ld_input *in, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  int8_t buffer[kStretch];
  for (int64_t r = begin; r < end; ++r) {
    Row<Source> row(m, r);
    const uint16_t *const scales = m->scales + r * in->groups;
    float sums[LD_MAX_TOKENS] = {};
    for (int64_t c = 0; c < m->cols; c += kStretch) {
      const int64_t stretch = least(kStretch, m->cols - c);
      const int8_t *const w = row.next(c, stretch, buffer);
      for (int64_t at = 0; at < stretch; at += in->group) {
        const int64_t group = (c + at) / in->group, count = least(in->group, stretch - at);
        for (int32_t t = 0; t < in->tokens; ++t) {
          const int32_t sum = dot(w + at, in->q + t * in->stride + c + at, count);
          sums[t] += static_cast<float>(sum) * (widen(scales[group]) * in->scale[t * in->groups + group]);
        }
      }
    }
    for (int32_t t = 0; t < in->tokens; ++t) y[t * y_stride + r] = sums[t] + (m->bias ? m->bias[r] : 0.0f);
  }
}

void rows(const ld_matrix *m, const ld_input *in, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  switch (m->kind) {
    case LD_FP32: return multiply(m, in, in->f32, begin, end, y, y_stride);
    case LD_BF16: return multiply(m, in, in->bf16, begin, end, y, y_stride);
    case LD_INT8: return multiply_codes<Values<int8_t>>(m, in, begin, end, y, y_stride);
    default: return multiply_codes<Nibbles>(m, in, begin, end, y, y_stride);
  }
}

// ---------------------------------------------------------------- back to a dense matrix

template <class Number, class Out>
void unpack_row(const ld_matrix *m, int64_t r, Out *out) {
  Number buffer[kStretch];
  Row<Values<Number>> row(m, r);
  for (int64_t c = 0; c < m->cols; c += kStretch) {
    const int64_t count = least(kStretch, m->cols - c);
    const Number *const w = row.next(c, count, buffer);
    for (int64_t i = 0; i < count; ++i) put(out + c + i, w[i]);
  }
}

template <class Source, class Out>
void unpack_codes(const ld_matrix *m, int64_t r, Out *out) {
  int8_t buffer[kStretch];
  Row<Source> row(m, r);
  const uint16_t *const scales = m->scales + r * ((m->cols + m->group - 1) / m->group);
  for (int64_t c = 0; c < m->cols; c += kStretch) {
    const int64_t count = least(kStretch, m->cols - c);
    const int8_t *const w = row.next(c, count, buffer);
    for (int64_t i = 0; i < count; ++i) put(out + c + i, static_cast<float>(w[i]) * widen(scales[(c + i) / m->group]));
  }
}

template <class Out>
void unpack_to(const ld_matrix *m, int64_t begin, int64_t end, Out *out, int64_t stride) {
  for (int64_t r = begin; r < end; ++r, out += stride) switch (m->kind) {
      case LD_FP32: unpack_row<float>(m, r, out); break;
      case LD_BF16: unpack_row<uint16_t>(m, r, out); break;
      case LD_INT8: unpack_codes<Values<int8_t>>(m, r, out); break;
      default: unpack_codes<Nibbles>(m, r, out);
    }
}

void unpack(const ld_matrix *m, int64_t begin, int64_t end, int32_t out_kind, void *out, int64_t stride) {
  if (out_kind == LD_FP32)
    unpack_to(m, begin, end, static_cast<float *>(out), stride);
  else
    unpack_to(m, begin, end, static_cast<uint16_t *>(out), stride);
}

int supported() { return 1; }

}  // namespace

const ld_kernels ld_kernels_portable = {"portable", supported, prepare_rows, rows, unpack};
