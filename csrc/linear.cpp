// The entry points that take a matrix: checks, workspace, and the split of the work into passes and chunks of rows.

#include "records.h"

#include <cstdlib>

namespace {

constexpr int64_t kMostSize = int64_t{1} << 46;     // rows or columns; their products are checked for themselves
constexpr int64_t kMostPasses = 8;                  // of LD_MAX_TOKENS tokens, that share one trip through the weights
constexpr int64_t kSmallestChunk = 16, kLargestChunk = 64;  // rows; 16 floats of y fill a cache line
constexpr int64_t kChunksPerThread = 4;
constexpr int64_t kWorkPerThread = int64_t{1} << 17;  // weights times tokens, below which a second thread costs more than it brings

int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
bool codes(int32_t kind) { return kind == LD_INT8 || kind == LD_INT4 || kind == LD_INT3; }
bool tables(int32_t kind) { return kind == LD_INT4 || kind == LD_INT3; }
bool number(int32_t kind) { return kind == LD_FP32 || kind == LD_BF16; }
int64_t width(int32_t kind) { return kind == LD_FP32 ? 4 : kind == LD_BF16 ? 2 : 1; }
bool fits(int64_t a, int64_t b, int64_t bytes) {
  int64_t product;
  return !__builtin_mul_overflow(a, b, &product) && !__builtin_mul_overflow(product, bytes, &product);
}
bool aligned(const void *p, int64_t bytes) { return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(bytes) == 0; }
bool array(const void *p, int64_t length, int64_t bytes) { return length == 0 || (p && aligned(p, bytes)); }

bool sizes_allowed(int32_t kind, int64_t rows, int64_t cols, const uint64_t *mask, int64_t mask_words) {
  if (!number(kind) && !codes(kind)) return false;
  if (rows < 0 || cols < 0 || rows > kMostSize || cols > kMostSize || !fits(rows, cols, 4)) return false;
  if (mask && kind == LD_INT3) return false;
  return !mask || (aligned(mask, 8) && mask_words >= ceil_div(cols, 64) && fits(rows, mask_words, 8));
}

// All that can be told without reading an array.
bool allowed(const ld_matrix *m) {
  if (!m || !sizes_allowed(m->kind, m->rows, m->cols, m->mask, m->mask_words)) return false;
  if (m->value_bytes < 0 || !array(m->values, m->value_bytes, width(m->kind)) || !aligned(m->bias, 4)) return false;
  if (m->mask && !(m->row_ptr && aligned(m->row_ptr, 8))) return false;
  if (in_records(m) && (m->mask || ld_records_bytes(m->kind, m->layout, m->rows, m->cols) < 0)) return false;
  if (!codes(m->kind)) return m->group == 0;
  if (m->group != 64 && m->group != 128) return false;
  return array(m->scales, m->rows * ceil_div(m->cols, m->group), 2) && (!tables(m->kind) || m->table);
}

int64_t dense_bytes(const ld_matrix *m) {
  if (in_records(m)) return ld_records_bytes(m->kind, m->layout, m->rows, m->cols);
  if (m->kind == LD_INT3) return ceil_div(m->rows, 8) * ceil_div(m->cols, 64) * 192;
  return (m->kind == LD_INT4 ? ceil_div(m->rows, 2) : m->rows) * m->cols * width(m->kind);
}

int64_t kept(const uint64_t *mask, int64_t words) {
  int64_t count = 0;
  for (int64_t c = 0; c < words; ++c) count += __builtin_popcountll(mask[c]);
  return count;
}

// Bytes that the values of one row take, or of the pair of rows that `row` begins.
int64_t packed_bytes(int32_t kind, int64_t rows, int64_t cols, const uint64_t *mask, int64_t mask_words, int64_t row) {
  const int64_t words = ceil_div(cols, 64);
  const int64_t one = kept(mask + row * mask_words, words);
  if (kind != LD_INT4 || row + 1 == rows) return one * width(kind);
  const int64_t other = kept(mask + (row + 1) * mask_words, words);
  return one > other ? one : other;
}

bool ascending(const ld_matrix *m) {
  const int64_t step = record_bytes(m->kind), count = ceil_div(m->rows, 2) * records(m->layout, m->cols);
  const char *record = static_cast<const char *>(m->values);
  for (int64_t i = 0; i < count; ++i, record += step) {
    for (int64_t row = 0; row < 2; ++row) {
      uint8_t places[kRecordValues];
      places_of(m, record, row, places);
      for (int64_t at = 1; at < kRecordValues; ++at)
        if (at % m->layout && places[at] <= places[at - 1]) return false;
    }
  }
  return true;
}

void widen_rows(const uint16_t *x, int64_t x_stride, int64_t tokens, int64_t cols, float *out) {
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t c = 0; c < cols; ++c) {
      const uint32_t bits = static_cast<uint32_t>(x[t * x_stride + c]) << 16;
      __builtin_memcpy(out + t * cols + c, &bits, 4);
    }
}

// Grows as needed and stays with its thread.
struct Workspace {
  void *memory = nullptr;
  int64_t bytes = 0;
  char *get(int64_t wanted) {
    if (wanted > bytes) {
      std::free(memory);
      memory = nullptr;
      bytes = 0;
      if (posix_memalign(&memory, 64, static_cast<size_t>(wanted)) != 0) return nullptr;
      bytes = wanted;
    }
    return static_cast<char *>(memory);
  }
  ~Workspace() { std::free(memory); }
};
thread_local Workspace workspace;

// Up to kMostPasses * LD_MAX_TOKENS tokens of one product.
struct Block {
  const ld_kernels *kernels;
  const ld_matrix *m;
  ld_input inputs[kMostPasses];
  const float *x;
  int64_t x_stride;
  int32_t y_kind;
  char *y;
  int64_t y_stride;
  int64_t passes;
};

void prepare_passes(void *context, int64_t begin, int64_t end) {
  Block *const b = static_cast<Block *>(context);
  for (int64_t i = begin; i < end; ++i) b->kernels->prepare(b->x + i * LD_MAX_TOKENS * b->x_stride, b->x_stride, &b->inputs[i]);
}

void rows_to_bf16(const Block *b, const ld_input *in, int64_t begin, int64_t end, uint16_t *y) {
  float sums[LD_MAX_TOKENS * kLargestChunk];
  // The kernel counts rows of y from 0.
  float *const origin = reinterpret_cast<float *>(reinterpret_cast<uintptr_t>(sums) - static_cast<uintptr_t>(begin) * 4);
  b->kernels->rows(b->m, in, begin, end, origin, kLargestChunk);
  for (int64_t t = 0; t < in->tokens; ++t)
    for (int64_t r = begin; r < end; ++r) y[t * b->y_stride + r] = round_to_bf16(sums[t * kLargestChunk + r - begin]);
}

void multiply_rows(void *context, int64_t begin, int64_t end) {
  const Block *const b = static_cast<const Block *>(context);
  for (int64_t i = 0; i < b->passes; ++i) {
    char *const y = b->y + i * LD_MAX_TOKENS * b->y_stride * width(b->y_kind);
    if (b->y_kind == LD_FP32)
      b->kernels->rows(b->m, &b->inputs[i], begin, end, reinterpret_cast<float *>(y), b->y_stride);
    else
      rows_to_bf16(b, &b->inputs[i], begin, end, reinterpret_cast<uint16_t *>(y));
  }
}

int32_t worth(int32_t threads, int64_t rows, int64_t cols, int64_t tokens) {
  const int64_t most = 1 + rows * cols / kWorkPerThread * tokens;
  return most < threads ? static_cast<int32_t>(most) : threads;
}

int64_t chunk_rows(int64_t rows, int32_t threads) {
  const int64_t even = round_up(rows / (threads * kChunksPerThread) + 1, kSmallestChunk);
  return even > kLargestChunk ? kLargestChunk : even;
}

// `memory`: the inputs of all passes.
void run_block(Block *b, int64_t tokens, int64_t pass_bytes, char *memory, int32_t threads) {
  b->passes = ceil_div(tokens, LD_MAX_TOKENS);
  for (int64_t i = 0; i < b->passes; ++i) {
    const int64_t left = tokens - i * LD_MAX_TOKENS;
    const int32_t some = static_cast<int32_t>(left < LD_MAX_TOKENS ? left : LD_MAX_TOKENS);
    ld_input_place(&b->inputs[i], b->m->kind, b->m->group, some, b->m->cols, memory + i * pass_bytes);
  }
  ld_parallel(threads, b->passes, 1, prepare_passes, b);
  ld_parallel(threads, b->m->rows, chunk_rows(b->m->rows, threads), multiply_rows, b);
}

struct Unpacking {
  const ld_kernels *kernels;
  const ld_matrix *m;
  int64_t begin;
  int32_t out_kind;
  char *out;
  int64_t stride;
};

void unpack_rows(void *context, int64_t begin, int64_t end) {
  const Unpacking *const u = static_cast<const Unpacking *>(context);
  u->kernels->unpack(u->m, u->begin + begin, u->begin + end, u->out_kind, u->out + begin * u->stride * width(u->out_kind), u->stride);
}

}  // namespace

int64_t ld_row_ptr(int32_t kind, int64_t rows, int64_t cols, const uint64_t *mask, int64_t mask_words, int64_t *row_ptr) {
  if (!sizes_allowed(kind, rows, cols, mask, mask_words) || !row_ptr || kind == LD_INT3 || (!mask && rows > 0 && cols > 0)) return -1;
  const int64_t step = kind == LD_INT4 ? 2 : 1;
  int64_t bytes = 0;
  row_ptr[0] = 0;
  for (int64_t row = 0; row < rows; row += step) {
    if (mask) bytes += packed_bytes(kind, rows, cols, mask, mask_words, row);
    row_ptr[row / step + 1] = bytes;
  }
  return bytes;
}

int32_t ld_check(const ld_matrix *m) {
  if (!allowed(m)) return LD_BAD_ARGUMENT;
  if (!m->mask && dense_bytes(m) > m->value_bytes) return LD_BAD_SIZE;
  if (in_records(m)) return ascending(m) ? LD_OK : LD_BAD_PLACES;
  if (!m->mask) return LD_OK;
  if (m->row_ptr[0] != 0) return LD_BAD_OFFSETS;
  const int64_t words = ceil_div(m->cols, 64), step = m->kind == LD_INT4 ? 2 : 1;
  const uint64_t beyond = m->cols % 64 ? ~uint64_t{0} << m->cols % 64 : 0;
  int64_t bytes = 0;
  for (int64_t row = 0; row < m->rows; row += step) {
    for (int64_t r = row; r < row + step && r < m->rows; ++r)
      if (words && m->mask[r * m->mask_words + words - 1] & beyond) return LD_BAD_MASK;
    bytes += packed_bytes(m->kind, m->rows, m->cols, m->mask, m->mask_words, row);
    if (m->row_ptr[row / step + 1] != bytes) return LD_BAD_OFFSETS;
  }
  return bytes > m->value_bytes ? LD_BAD_SIZE : LD_OK;
}

int32_t ld_linear(const ld_matrix *m, int32_t x_kind, const void *x, int64_t x_stride, int64_t tokens, int32_t y_kind, void *y,
                  int64_t y_stride, int32_t threads) {
  if (!allowed(m) || !number(x_kind) || !number(y_kind) || threads < 1 || tokens < 0 || tokens > kMostSize) return LD_BAD_ARGUMENT;
  if (tokens > 1 && (x_stride < m->cols || y_stride < m->rows)) return LD_BAD_ARGUMENT;
  if (tokens == 0 || m->rows == 0) return LD_OK;
  if (!y || (m->cols > 0 && !x)) return LD_BAD_ARGUMENT;

  const int64_t most = tokens < kMostPasses * LD_MAX_TOKENS ? tokens : kMostPasses * LD_MAX_TOKENS;
  const int32_t per_pass = static_cast<int32_t>(most < LD_MAX_TOKENS ? most : LD_MAX_TOKENS);
  const int64_t pass_bytes = ld_input_bytes(m->kind, m->group, per_pass, m->cols);
  const int64_t inputs = ceil_div(most, LD_MAX_TOKENS) * pass_bytes;
  const int64_t wide = x_kind == LD_FP32 ? 0 : most * m->cols * 4;
  char *const memory = workspace.get(inputs + wide);
  if (!memory && inputs + wide > 0) return LD_NO_MEMORY;

  Block b = {ld_current(), m, {}, nullptr, x_stride, y_kind, nullptr, y_stride, 0};
  for (int64_t t = 0; t < tokens; t += most) {
    const int64_t some = tokens - t < most ? tokens - t : most;
    b.y = static_cast<char *>(y) + t * y_stride * width(y_kind);
    if (x_kind == LD_FP32) {
      b.x = static_cast<const float *>(x) + t * x_stride;
    } else {
      float *const rows = reinterpret_cast<float *>(memory + inputs);
      widen_rows(static_cast<const uint16_t *>(x) + t * x_stride, x_stride, some, m->cols, rows);
      b.x = rows;
      b.x_stride = m->cols;
    }
    run_block(&b, some, pass_bytes, memory, worth(threads, m->rows, m->cols, some));
  }
  return LD_OK;
}

int32_t ld_unpack(const ld_matrix *m, int64_t begin, int64_t end, int32_t out_kind, void *out, int64_t stride, int32_t threads) {
  if (!allowed(m) || !number(out_kind) || threads < 1 || begin < 0 || begin > end || end > m->rows) return LD_BAD_ARGUMENT;
  if (end - begin > 1 && stride < m->cols) return LD_BAD_ARGUMENT;
  if (begin == end || m->cols == 0) return LD_OK;
  if (!out) return LD_BAD_ARGUMENT;
  Unpacking u = {ld_current(), m, begin, out_kind, static_cast<char *>(out), stride};
  threads = worth(threads, end - begin, m->cols, 1);
  ld_parallel(threads, end - begin, chunk_rows(end - begin, threads), unpack_rows, &u);
  return LD_OK;
}

int64_t ld_input_bytes(int32_t kind, int32_t group, int32_t tokens, int64_t cols) {
  const int64_t elements = tokens * round_up(cols, kMostColumns);
  if (!codes(kind)) return round_up(elements * width(kind), 64);
  const int64_t groups = tokens * ceil_div(cols, group);
  return elements + round_up(groups * 4, 64) + groups * 64;
}

void ld_input_place(ld_input *in, int32_t kind, int32_t group, int32_t tokens, int64_t cols, void *memory) {
  *in = {kind, group, tokens, cols, round_up(cols, kMostColumns), codes(kind) ? ceil_div(cols, group) : 0, nullptr, nullptr, nullptr, nullptr, nullptr};
  if (kind == LD_FP32) in->f32 = static_cast<float *>(memory);
  if (kind == LD_BF16) in->bf16 = static_cast<uint16_t *>(memory);
  if (!codes(kind)) return;
  char *const scales = static_cast<char *>(memory) + tokens * in->stride;
  in->q = static_cast<int8_t *>(memory);
  in->scale = reinterpret_cast<float *>(scales);
  in->offset = reinterpret_cast<int32_t *>(scales + round_up(tokens * in->groups * 4, 64));
}
