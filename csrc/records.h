// The layouts LD_EIGHTS and LD_FOURS as every level sees them: where a record lies, and what it holds. Like all of common.h local to
// its file. `layout` is how many values 16 columns have.
#ifndef LOWDIM_RECORDS_H
#define LOWDIM_RECORDS_H

#include "common.h"

namespace {

constexpr int64_t kRecordValues = 64, kRecordPlaces = 32;  // values and bytes of places of a row
constexpr int64_t kMostColumns = 256;                       // of a record

inline bool in_records(const ld_matrix *m) { return m->layout != LD_ROWS; }

inline int64_t record_columns(int32_t layout) { return kRecordValues * 16 / layout; }

inline int64_t record_bytes(int32_t kind) { return 2 * kRecordPlaces + (kind == LD_INT4 ? 64 : kind == LD_INT8 ? 128 : 256); }

inline int64_t records(int32_t layout, int64_t cols) { return (cols + record_columns(layout) - 1) / record_columns(layout); }

// The records of a row's pair.
inline const char *records_of(const ld_matrix *m, int64_t row) {
  return static_cast<const char *>(m->values) + row / 2 * records(m->layout, m->cols) * record_bytes(m->kind);
}

// Where value i of group g of 16 columns stands among the 64. Codes stand so that four of them, a dword, are of one group, and that the
// groups of 16 bytes of values are those of the same 16 bytes of the registers that the columns fill; numbers stand in order.
inline int64_t position(int32_t kind, int32_t layout, int64_t g, int64_t i) {
  if (kind == LD_BF16) return g * layout + i;
  const int64_t registers = 16 / layout;
  return 16 * (g % 4) + 4 * (i / 4 * registers + g / 4) + i % 4;
}

// The places, below 16, of the values of a row, group by group: of row 0, or 1 for the second of the pair.
inline void places_of(const ld_matrix *m, const char *record, int64_t row, uint8_t *places) {
  const uint8_t *const bytes = reinterpret_cast<const uint8_t *>(record) + row * kRecordPlaces;
  for (int64_t at = 0; at < kRecordValues; ++at) {
    const int64_t from = position(m->kind, m->layout, at / m->layout, at % m->layout);
    places[at] = static_cast<uint8_t>(bytes[from % kRecordPlaces] >> (from < kRecordPlaces ? 0 : 4) & 15);
  }
}

// The values of a row, group by group, as they are stored; INT4 through the table.
inline void values_of(const ld_matrix *, const char *record, int64_t row, uint16_t *out) {
  std::memcpy(out, record + 2 * kRecordPlaces + row * 128, 128);
}
inline void values_of(const ld_matrix *m, const char *record, int64_t row, int8_t *out) {
  const char *const values = record + 2 * kRecordPlaces;
  for (int64_t at = 0; at < kRecordValues; ++at) {
    const int64_t from = position(m->kind, m->layout, at / m->layout, at % m->layout);
    out[at] = m->kind == LD_INT8 ? static_cast<int8_t>(values[row * 64 + from])
                                 : m->table[static_cast<uint8_t>(values[from]) >> (4 * row) & 15];
  }
}

// The columns of a record, zeros where nothing is stored.
template <class T>
inline void spread_record(const ld_matrix *m, const char *record, int64_t row, T *out) {
  uint8_t places[kRecordValues];
  T values[kRecordValues];
  places_of(m, record, row, places);
  values_of(m, record, row, values);
  std::memset(out, 0, static_cast<size_t>(record_columns(m->layout)) * sizeof(T));
  for (int64_t at = 0; at < kRecordValues; ++at) out[at / m->layout * 16 + places[at]] = values[at];
}

template <class Number>
inline void write_number(float *out, Number value) {
  *out = widen(value);
}
inline void write_number(uint16_t *out, float value) { *out = round_to_bf16(value); }
inline void write_number(uint16_t *out, uint16_t bf16) { *out = bf16; }

template <class Out>
void unpack_record_row(const ld_matrix *m, int64_t row, Out *out) {
  const char *record = records_of(m, row);
  const uint16_t *const scales = m->kind == LD_BF16 ? nullptr : m->scales + row * ((m->cols + m->group - 1) / m->group);
  const int64_t columns = record_columns(m->layout);
  for (int64_t c = 0; c < m->cols; c += columns, record += record_bytes(m->kind)) {
    const int64_t count = least(columns, m->cols - c);
    if (m->kind == LD_BF16) {
      uint16_t numbers[kMostColumns];
      spread_record(m, record, row % 2, numbers);
      for (int64_t i = 0; i < count; ++i) write_number(out + c + i, numbers[i]);
    } else {
      int8_t codes[kMostColumns];
      spread_record(m, record, row % 2, codes);
      for (int64_t at = 0; at < count; at += 64) {
        const float scale = widen(scales[(c + at) / m->group]);
        for (int64_t i = at; i < least(at + 64, count); ++i) write_number(out + c + i, static_cast<float>(codes[i]) * scale);
      }
    }
  }
}

inline void unpack_from_records(const ld_matrix *m, int64_t begin, int64_t end, int32_t out_kind, void *out, int64_t stride) {
  for (int64_t row = begin; row < end; ++row) {
    if (out_kind == LD_FP32)
      unpack_record_row(m, row, static_cast<float *>(out) + (row - begin) * stride);
    else
      unpack_record_row(m, row, static_cast<uint16_t *>(out) + (row - begin) * stride);
  }
}

}  // namespace
#endif
