// The layout LD_EIGHTS as every level sees it: where a record lies, and what it holds. Like all of common.h local to its file.
#ifndef LOWDIM_EIGHTS_H
#define LOWDIM_EIGHTS_H

#include "common.h"

namespace {

constexpr int64_t kRecordColumns = 128, kRecordValues = 64, kRecordPlaces = 32;  // columns, values and bytes of places of a row

inline int64_t record_bytes(int32_t kind) { return 2 * kRecordPlaces + (kind == LD_INT4 ? 64 : kind == LD_INT8 ? 128 : 256); }

inline int64_t records(int64_t cols) { return (cols + kRecordColumns - 1) / kRecordColumns; }

// The records of a row's pair.
inline const char *records_of(const ld_matrix *m, int64_t row) {
  return static_cast<const char *>(m->values) + row / 2 * records(m->cols) * record_bytes(m->kind);
}

// The places, below 16, of the 64 values of a row: 0, or 1 for the second of the pair.
inline void places_of(const char *record, int64_t row, uint8_t *places) {
  const uint8_t *const bytes = reinterpret_cast<const uint8_t *>(record) + row * kRecordPlaces;
  for (int64_t i = 0; i < kRecordPlaces; ++i) {
    places[i] = bytes[i] & 15;
    places[i + kRecordPlaces] = bytes[i] >> 4;
  }
}

// The values of a row as they are stored, INT4 through the table.
inline void values_of(const ld_matrix *, const char *record, int64_t row, uint16_t *out) {
  std::memcpy(out, record + 2 * kRecordPlaces + row * 128, 128);
}
inline void values_of(const ld_matrix *m, const char *record, int64_t row, int8_t *out) {
  const char *const values = record + 2 * kRecordPlaces;
  if (m->kind == LD_INT8) {
    std::memcpy(out, values + row * 64, 64);
    return;
  }
  for (int64_t i = 0; i < kRecordValues; ++i) out[i] = m->table[static_cast<uint8_t>(values[i]) >> (4 * row) & 15];
}

// The 128 columns of a record, zeros where nothing is stored.
template <class T>
inline void spread_record(const ld_matrix *m, const char *record, int64_t row, T *out) {
  uint8_t places[kRecordValues];
  T values[kRecordValues];
  places_of(record, row, places);
  values_of(m, record, row, values);
  std::memset(out, 0, kRecordColumns * sizeof(T));
  for (int64_t i = 0; i < kRecordValues; ++i) out[i / 8 * 16 + places[i]] = values[i];
}

template <class Number>
inline void write_number(float *out, Number value) {
  *out = widen(value);
}
inline void write_number(uint16_t *out, float value) { *out = round_to_bf16(value); }
inline void write_number(uint16_t *out, uint16_t bf16) { *out = bf16; }

template <class Out>
void unpack_eights(const ld_matrix *m, int64_t row, Out *out) {
  const char *record = records_of(m, row);
  const uint16_t *const scales = m->kind == LD_BF16 ? nullptr : m->scales + row * ((m->cols + m->group - 1) / m->group);
  for (int64_t c = 0; c < m->cols; c += kRecordColumns, record += record_bytes(m->kind)) {
    const int64_t count = least(kRecordColumns, m->cols - c);
    if (m->kind == LD_BF16) {
      uint16_t numbers[kRecordColumns];
      spread_record(m, record, row % 2, numbers);
      for (int64_t i = 0; i < count; ++i) write_number(out + c + i, numbers[i]);
    } else {
      int8_t codes[kRecordColumns];
      spread_record(m, record, row % 2, codes);
      for (int64_t at = 0; at < count; at += 64) {
        const float scale = widen(scales[(c + at) / m->group]);
        for (int64_t i = at; i < least(at + 64, count); ++i) write_number(out + c + i, static_cast<float>(codes[i]) * scale);
      }
    }
  }
}

inline void unpack_eights(const ld_matrix *m, int64_t begin, int64_t end, int32_t out_kind, void *out, int64_t stride) {
  for (int64_t row = begin; row < end; ++row) {
    if (out_kind == LD_FP32)
      unpack_eights(m, row, static_cast<float *>(out) + (row - begin) * stride);
    else
      unpack_eights(m, row, static_cast<uint16_t *>(out) + (row - begin) * stride);
  }
}

}  // namespace
#endif
