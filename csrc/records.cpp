// From a mask to the layouts LD_EIGHTS and LD_FOURS.

#include "records.h"

namespace {

struct Filling {
  const ld_matrix *m;
  int32_t layout;
  char *out;
  int fits;
};

// The places of 16 columns' values: those that the mask keeps and, up to `most`, some that it does not.
bool choose(uint32_t kept, int most, bool exact, uint8_t *places, uint32_t *stored) {
  const int count = __builtin_popcount(kept);
  if (count > most || (exact && count < most)) return false;
  uint32_t chosen = kept;
  for (uint32_t left = ~kept, missing = static_cast<uint32_t>(most - count); missing; --missing, left &= left - 1)
    chosen |= left & -left;
  *stored = 0;
  for (int i = 0; i < most; ++i, chosen &= chosen - 1) {
    places[i] = static_cast<uint8_t>(__builtin_ctz(chosen));
    *stored |= (kept >> places[i] & 1) << i;
  }
  return true;
}

// One row's part of a record. `p`: its next values, moved on; `half` of INT4's bytes.
bool fill(const ld_matrix *m, int32_t layout, int64_t row, int64_t column, const char **p, char *record) {
  const int64_t half = row % 2, width = m->kind == LD_BF16 ? 2 : 1;
  const uint64_t *const mask = row < m->rows ? m->mask + row * m->mask_words : nullptr;
  uint8_t *const places = reinterpret_cast<uint8_t *>(record) + half * kRecordPlaces;
  char *const values = record + 2 * kRecordPlaces;
  for (int64_t g = 0; g < kRecordValues / layout; ++g, column += 16) {
    const bool there = mask && column < m->cols;
    const uint32_t kept = there ? static_cast<uint32_t>(mask[column / 64] >> column % 64 & 0xFFFF) : 0;
    uint8_t some[8];
    uint32_t stored;
    if (!choose(kept, layout, there && m->kind == LD_INT4, some, &stored)) return false;
    for (int64_t i = 0; i < layout; ++i) {
      const int64_t at = position(m->kind, layout, g, i);
      places[at % 32] = static_cast<uint8_t>(places[at % 32] | some[i] << (at < 32 ? 0 : 4));
      if (!(stored >> i & 1)) continue;
      if (m->kind == LD_INT4)
        values[at] = static_cast<char>(values[at] | (**p >> (4 * half) & 15) << (4 * half));
      else
        std::memcpy(values + (64 * half + at) * width, *p, static_cast<size_t>(width));
      *p += width;
    }
  }
  return true;
}

void fill_pairs(void *context, int64_t begin, int64_t end) {
  Filling *const f = static_cast<Filling *>(context);
  const ld_matrix *const m = f->m;
  const int64_t step = record_bytes(m->kind), count = records(f->layout, m->cols), columns = record_columns(f->layout);
  for (int64_t pair = begin; pair < end && __atomic_load_n(&f->fits, __ATOMIC_RELAXED); ++pair) {
    char *record = f->out + pair * count * step;
    std::memset(record, 0, static_cast<size_t>(count * step));
    const char *const values = static_cast<const char *>(m->values);
    const char *p[2];
    for (int64_t half = 0; half < 2; ++half) p[half] = values + m->row_ptr[m->kind == LD_INT4 ? pair : least(2 * pair + half, m->rows)];
    for (int64_t c = 0; c < count; ++c, record += step)
      for (int64_t half = 0; half < 2; ++half)
        if (!fill(m, f->layout, 2 * pair + half, c * columns, &p[half], record)) return __atomic_store_n(&f->fits, 0, __ATOMIC_RELAXED);
  }
}

}  // namespace

int64_t ld_records_bytes(int32_t kind, int32_t layout, int64_t rows, int64_t cols) {
  if (layout != LD_EIGHTS && layout != LD_FOURS) return -1;
  if ((kind != LD_BF16 && kind != LD_INT8 && kind != LD_INT4) || rows < 0 || cols < 0 || cols % 16) return -1;
  int64_t bytes;
  const bool beyond = cols > INT64_MAX - kMostColumns || __builtin_mul_overflow(rows / 2 + rows % 2, records(layout, cols), &bytes) ||
                      __builtin_mul_overflow(bytes, record_bytes(kind), &bytes);
  return beyond ? -1 : bytes;
}

int32_t ld_records(const ld_matrix *m, int32_t layout, void *out, int64_t bytes, int32_t threads) {
  if (!m || m->layout != LD_ROWS || !m->mask || threads < 1) return LD_BAD_ARGUMENT;
  const int64_t wanted = ld_records_bytes(m->kind, layout, m->rows, m->cols);
  if (wanted < 0 || bytes != wanted || (bytes && !out)) return LD_BAD_ARGUMENT;
  Filling f = {m, layout, static_cast<char *>(out), 1};
  ld_parallel(threads, (m->rows + 1) / 2, 64, fill_pairs, &f);
  return f.fits ? LD_OK : LD_NO_FIT;
}
