// Kernels that expand a stretch of columns of a row into a buffer, so that one dense product serves every kind of matrix and any
// number of tokens. For instruction sets where that is fast enough; what they do in their own way they give in a struct:
//
//   T *spread(bits, T *values, T *end, T *out)   the next values into the 64 columns that bits name, zeros elsewhere; returns where
//                                                the next ones lie; reads nothing from `end` on; may write one beyond the 64.
//                                                T: float, uint16_t, int8_t
//   look_up(table, half, bytes, end, count, out) the codes of one row of a pair; may write 15 beyond `count`
//   dot(T *w, T *x, count)                       float, or int32_t for int8_t
#ifndef LOWDIM_STRETCHES_H
#define LOWDIM_STRETCHES_H

#include "records.h"

namespace {

constexpr int64_t kStretch = 1024;  // columns: enough for the stores to have retired when they are read
constexpr int64_t kSpare = 16;

template <class Number>
inline void put(float *out, Number value) {
  *out = widen(value);
}
inline void put(uint16_t *out, float value) { *out = round_to_bf16(value); }
inline void put(uint16_t *out, uint16_t bf16) { *out = bf16; }

// ---------------------------------------------------------------- one row, from its first column to its last

template <class Way, class T>
class PlainRow {
 public:
  using Element = T;
  PlainRow(const ld_matrix *m, int64_t row) : mask_(m->mask ? m->mask + row * m->mask_words : nullptr) {
    const char *const values = static_cast<const char *>(m->values);
    at_ = reinterpret_cast<const T *>(values + (mask_ ? m->row_ptr[row] : row * m->cols * static_cast<int64_t>(sizeof(T))));
    end_ = reinterpret_cast<const T *>(values + m->value_bytes / static_cast<int64_t>(sizeof(T)) * static_cast<int64_t>(sizeof(T)));
  }
  // The next `count` columns from `begin` on, a multiple of 64. `buffer`: kStretch + kSpare elements.
  const T *next(int64_t begin, int64_t count, T *buffer) {
    if (!mask_) return at_ + begin;
    for (int64_t c = 0; c < count; c += 64) at_ = Way::spread(mask_[(begin + c) / 64], at_, end_, buffer + c);
    return buffer;
  }

 private:
  const uint64_t *mask_;
  const T *at_, *end_;
};

template <class Way>
class NibbleRow {
 public:
  using Element = int8_t;
  NibbleRow(const ld_matrix *m, int64_t row)
      : mask_(m->mask ? m->mask + row * m->mask_words : nullptr), table_(m->table), half_(static_cast<int>(row % 2)) {
    const uint8_t *const values = static_cast<const uint8_t *>(m->values);
    at_ = values + (mask_ ? m->row_ptr[row / 2] : row / 2 * m->cols);
    end_ = values + m->value_bytes;
  }
  const int8_t *next(int64_t begin, int64_t count, int8_t *buffer) {
    if (!mask_) {
      Way::look_up(table_, half_, at_ + begin, end_, count, buffer);
      return buffer;
    }
    int64_t kept = 0;
    for (int64_t c = 0; c < count; c += 64) kept += __builtin_popcountll(mask_[(begin + c) / 64]);
    int8_t codes[kStretch + kSpare];
    Way::look_up(table_, half_, at_, end_, kept, codes);
    at_ += kept;
    const int8_t *from = codes;
    for (int64_t c = 0; c < count; c += 64) from = Way::spread(mask_[(begin + c) / 64], from, codes + sizeof codes, buffer + c);
    return buffer;
  }

 private:
  const uint64_t *mask_;
  const int8_t *table_;
  int half_;
  const uint8_t *at_, *end_;
};

// The indices of row `row` of a block, for the 64 columns of a word.
inline void octet_indices(const uint8_t *word, int row, uint8_t *out) {
  const uint8_t *const run = word + (row < 6 ? row / 2 : row - 6) * 64, *const last = word + 128;
  if (row < 6)
    for (int c = 0; c < 64; ++c) out[c] = run[c] >> row % 2 * 3 & 7;
  else  // bit 6 or 7 of the last run becomes bit 2
    for (int c = 0; c < 64; ++c) out[c] = static_cast<uint8_t>(run[c] >> 6 | (last[c] >> (row - 2) & 4));
}

template <class Way>
class OctetRow {
 public:
  using Element = int8_t;
  OctetRow(const ld_matrix *m, int64_t row)
      : row_(static_cast<int>(row % 8)), block_(static_cast<const uint8_t *>(m->values) + row / 8 * octet_bytes(m->cols)) {
    std::memcpy(table_, m->table, 8);
  }
  const int8_t *next(int64_t begin, int64_t count, int8_t *buffer) {
    uint8_t indices[kStretch];
    for (int64_t c = 0; c < count; c += 64) octet_indices(block_ + (begin + c) / 64 * kOctetWord, row_, indices + c);
    Way::look_up(table_, 0, indices, indices + sizeof indices, count, buffer);
    return buffer;
  }

 private:
  int row_;
  const uint8_t *block_;
  int8_t table_[16] = {};
};

// Codes, or bf16.
template <class T>
class RecordRow {
 public:
  using Element = T;
  RecordRow(const ld_matrix *m, int64_t row) : m_(m), row_(row % 2), record_(records_of(m, row)) {}
  const T *next(int64_t, int64_t count, T *buffer) {
    for (int64_t c = 0; c < count; c += record_columns(m_->layout), record_ += record_bytes(m_->kind))
      spread_record(m_, record_, row_, buffer + c);
    return buffer;
  }

 private:
  const ld_matrix *m_;
  int64_t row_;
  const char *record_;
};

// ---------------------------------------------------------------- products

template <class Way, class Source>
void multiply(const ld_matrix *m, const ld_input *in, const typename Source::Element *x, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  using Number = typename Source::Element;
  Number buffer[kStretch + kSpare];
  for (int64_t r = begin; r < end; ++r) {
    Source row(m, r);
    float sums[LD_MAX_TOKENS] = {};
    for (int64_t c = 0; c < m->cols; c += kStretch) {
      const int64_t count = least(kStretch, m->cols - c);
      const Number *const w = row.next(c, count, buffer);
      for (int32_t t = 0; t < in->tokens; ++t) sums[t] += Way::dot(w, x + t * in->stride + c, count);
    }
    for (int32_t t = 0; t < in->tokens; ++t) y[t * y_stride + r] = sums[t] + (m->bias ? m->bias[r] : 0.0f);
  }
}

template <class Way, class Source>
void multiply_codes(const ld_matrix *m, const ld_input *in, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  int8_t buffer[kStretch + kSpare];
  for (int64_t r = begin; r < end; ++r) {
    Source row(m, r);
    const uint16_t *const scales = m->scales + r * in->groups;
    float sums[LD_MAX_TOKENS] = {};
    for (int64_t c = 0; c < m->cols; c += kStretch) {
      const int64_t stretch = least(kStretch, m->cols - c);
      const int8_t *const w = row.next(c, stretch, buffer);
      for (int64_t at = 0; at < stretch; at += in->group) {
        const int64_t group = (c + at) / in->group, count = least(in->group, stretch - at);
        for (int32_t t = 0; t < in->tokens; ++t) {
          const int32_t sum = Way::dot(w + at, in->q + t * in->stride + c + at, count);
          sums[t] += static_cast<float>(sum) * (widen(scales[group]) * in->scale[t * in->groups + group]);
        }
      }
    }
    for (int32_t t = 0; t < in->tokens; ++t) y[t * y_stride + r] = sums[t] + (m->bias ? m->bias[r] : 0.0f);
  }
}

template <class Way>
void stretched_rows(const ld_matrix *m, const ld_input *in, int64_t begin, int64_t end, float *y, int64_t y_stride) {
  if (in_records(m))
    return m->kind == LD_BF16 ? multiply<Way, RecordRow<uint16_t>>(m, in, in->bf16, begin, end, y, y_stride)
                              : multiply_codes<Way, RecordRow<int8_t>>(m, in, begin, end, y, y_stride);
  switch (m->kind) {
    case LD_FP32: return multiply<Way, PlainRow<Way, float>>(m, in, in->f32, begin, end, y, y_stride);
    case LD_BF16: return multiply<Way, PlainRow<Way, uint16_t>>(m, in, in->bf16, begin, end, y, y_stride);
    case LD_INT8: return multiply_codes<Way, PlainRow<Way, int8_t>>(m, in, begin, end, y, y_stride);
    case LD_INT4: return multiply_codes<Way, NibbleRow<Way>>(m, in, begin, end, y, y_stride);
    default: return multiply_codes<Way, OctetRow<Way>>(m, in, begin, end, y, y_stride);
  }
}

// ---------------------------------------------------------------- back to a dense matrix

template <class Way, class Number, class Out>
void unpack_row(const ld_matrix *m, int64_t r, Out *out) {
  Number buffer[kStretch + kSpare];
  PlainRow<Way, Number> row(m, r);
  for (int64_t c = 0; c < m->cols; c += kStretch) {
    const int64_t count = least(kStretch, m->cols - c);
    const Number *const w = row.next(c, count, buffer);
    for (int64_t i = 0; i < count; ++i) put(out + c + i, w[i]);
  }
}

template <class Source, class Out>
void unpack_codes(const ld_matrix *m, int64_t r, Out *out) {
  int8_t buffer[kStretch + kSpare];
  Source row(m, r);
  const uint16_t *const scales = m->scales + r * ((m->cols + m->group - 1) / m->group);
  for (int64_t c = 0; c < m->cols; c += kStretch) {
    const int64_t count = least(kStretch, m->cols - c);
    const int8_t *const w = row.next(c, count, buffer);
    for (int64_t at = 0; at < count; at += m->group) {
      const float scale = widen(scales[(c + at) / m->group]);
      for (int64_t i = at; i < least(at + m->group, count); ++i) put(out + c + i, static_cast<float>(w[i]) * scale);
    }
  }
}

template <class Way, class Out>
void unpack_to(const ld_matrix *m, int64_t begin, int64_t end, Out *out, int64_t stride) {
  for (int64_t r = begin; r < end; ++r, out += stride) switch (m->kind) {
      case LD_FP32: unpack_row<Way, float>(m, r, out); break;
      case LD_BF16: unpack_row<Way, uint16_t>(m, r, out); break;
      case LD_INT8: unpack_codes<PlainRow<Way, int8_t>>(m, r, out); break;
      case LD_INT4: unpack_codes<NibbleRow<Way>>(m, r, out); break;
      default: unpack_codes<OctetRow<Way>>(m, r, out);
    }
}

template <class Way>
void stretched_unpack(const ld_matrix *m, int64_t begin, int64_t end, int32_t out_kind, void *out, int64_t stride) {
  if (in_records(m)) return unpack_from_records(m, begin, end, out_kind, out, stride);
  if (out_kind == LD_FP32)
    unpack_to<Way>(m, begin, end, static_cast<float *>(out), stride);
  else
    unpack_to<Way>(m, begin, end, static_cast<uint16_t *>(out), stride);
}

// The next values one by one.
template <class T>
const T *spread_bits(uint64_t bits, const T *values, T *out) {
  std::memset(out, 0, 64 * sizeof(T));
  for (; bits; bits &= bits - 1) out[__builtin_ctzll(bits)] = *values++;
  return values;
}

}  // namespace
#endif
