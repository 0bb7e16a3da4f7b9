// The index of a sparse weight: made from positions, cut into panels, and moved.

#include "train.h"

namespace {

bool sizes(int64_t rows, int64_t cols) {
  int64_t product;
  return rows >= 0 && cols >= 0 && cols <= INT32_MAX && !__builtin_mul_overflow(rows, cols, &product);
}

}  // namespace

int32_t ld_sparse_index(int64_t rows, int64_t cols, const int64_t *positions, int64_t count, int64_t *row_ptr, int32_t *col) {
  if (!sizes(rows, cols) || count < 0 || count > INT32_MAX || !row_ptr || (count && (!positions || !col))) return LD_BAD_ARGUMENT;
  int64_t k = 0, begin = 0;
  row_ptr[0] = 0;
  for (int64_t r = 0; r < rows; ++r, begin += cols) {
    for (; k < count && positions[k] < begin + cols; ++k) {
      if (positions[k] < begin || (k && positions[k] <= positions[k - 1])) return LD_BAD_OFFSETS;
      col[k] = static_cast<int32_t>(positions[k] - begin);
    }
    row_ptr[r + 1] = k;
  }
  return k == count ? LD_OK : LD_BAD_OFFSETS;
}

int32_t ld_sparse_cuts(int64_t rows, int64_t cols, const int64_t *row_ptr, const int32_t *col, int32_t panels, int32_t *cuts) {
  if (!sizes(rows, cols) || !row_ptr || panels < 1 || (panels > 1 && rows && !cuts)) return LD_BAD_ARGUMENT;
  for (int64_t r = 0; r < rows; ++r) {
    int64_t k = row_ptr[r];
    for (int32_t p = 1; p < panels; ++p) {
      const int64_t bound = cols * p / panels;
      while (k < row_ptr[r + 1] && col[k] < bound) ++k;
      cuts[(p - 1) * rows + r] = static_cast<int32_t>(k - row_ptr[r]);
    }
  }
  return LD_OK;
}

int32_t ld_sparse_move(int64_t rows, int64_t cols, const int64_t *row_ptr, const int32_t *col, const uint8_t *keep,
                       const int64_t *grown, int64_t count, int64_t *new_row_ptr, int32_t *new_col, int32_t *source,
                       int64_t capacity) {
  if (!sizes(rows, cols) || !row_ptr || count < 0 || capacity < 0 || capacity > INT32_MAX || !new_row_ptr || (count && !grown))
    return LD_BAD_ARGUMENT;
  if (row_ptr[rows] && (!col || !keep)) return LD_BAD_ARGUMENT;
  if (capacity && (!new_col || !source)) return LD_BAD_ARGUMENT;
  int64_t next = 0, to = 0, begin = 0;  // grown, new value, first position of the row
  new_row_ptr[0] = 0;
  for (int64_t r = 0; r < rows; ++r, begin += cols) {
    int64_t k = row_ptr[r];
    const int64_t end = row_ptr[r + 1];
    for (;;) {
      const bool growing = next < count && grown[next] < begin + cols;
      if (growing && (grown[next] < begin || (next && grown[next] <= grown[next - 1]))) return LD_BAD_OFFSETS;
      const int64_t wanted = growing ? grown[next] - begin : cols;
      for (; k < end && col[k] < wanted; ++k) {
        if (!keep[k]) continue;
        if (to == capacity) return LD_BAD_SIZE;
        new_col[to] = col[k];
        source[to++] = static_cast<int32_t>(k);
      }
      if (!growing) break;
      const bool was = k < end && col[k] == wanted;
      if (was && keep[k]) return LD_BAD_OFFSETS;
      if (to == capacity) return LD_BAD_SIZE;
      new_col[to] = static_cast<int32_t>(wanted);
      source[to++] = was ? static_cast<int32_t>(k) : -1;
      k += was;
      ++next;
    }
    new_row_ptr[r + 1] = to;
  }
  return next == count && to == capacity ? LD_OK : next == count ? LD_BAD_SIZE : LD_BAD_OFFSETS;
}
