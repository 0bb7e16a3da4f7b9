// Products with a weight of which only the kept values exist: checks, tiles of the batch, and the split of the work.

#include "train_kernels.h"

#include "kernels.h"

#include <cstdlib>
#include <cstring>

namespace {

constexpr int64_t kCache = int64_t{512} << 10;  // bytes of activations that should stay near a core
constexpr int64_t kMostPanels = 16, kLeastColumns = 32;
constexpr int64_t kShortRun = 8, kShortRunOfFew = 16;  // values of a row per run of columns, below which runs cost more than they save
constexpr int64_t kWorkPerThread = int64_t{1} << 15;   // kept values times samples, below which a second thread costs more than it brings

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

int64_t width_of(int64_t batch) {
  for (int64_t width = 1; width <= 8; width *= 2)
    if (batch <= width) return width;
  return ceil_div(batch, 16) * 16;
}

bool sound(const ld_sparse *w) {
  return w && w->rows >= 0 && w->cols >= 0 && w->cols <= INT32_MAX && w->row_ptr && w->panels >= 1 && w->panels <= kMostPanels &&
         (w->panels == 1 || w->cuts) && w->row_ptr[w->rows] >= 0 && w->row_ptr[w->rows] <= INT32_MAX &&
         (w->row_ptr[w->rows] == 0 || (w->col && w->values));
}

// Into how many runs of columns to cut the work: as many as keep `bytes` per column in the cache, unless rows are too empty for it,
// and at least `wanted`.
int32_t runs(const ld_sparse *w, int64_t width, int64_t bytes, int64_t wanted) {
  const int64_t per_row = w->rows ? w->row_ptr[w->rows] / w->rows : 0;
  const int64_t fit = ceil_div(w->cols * bytes, kCache);
  const int64_t worth = most(1, per_row / (width < 16 ? kShortRunOfFew : kShortRun));
  return static_cast<int32_t>(most(1, least(w->panels, most(wanted, least(fit, worth)))));
}

int32_t panel(const ld_sparse *w, int64_t run, int64_t runs) { return static_cast<int32_t>(w->panels * run / runs); }
int64_t column(const ld_sparse *w, int32_t panel) { return w->cols * panel / w->panels; }

int32_t useful_threads(const ld_sparse *w, int64_t batch, int32_t threads) {
  return static_cast<int32_t>(least(threads, 1 + w->row_ptr[w->rows] * batch / kWorkPerThread));
}

struct Packing {
  const ld_train *kernels;
  const float *from;
  int64_t stride, batch, width;
  float *to, *sums;
};

void pack_some(void *context, int64_t begin, int64_t end) {
  const Packing *const p = static_cast<const Packing *>(context);
  p->kernels->pack(p->from, p->stride, p->batch, p->width, begin, end, p->to);
  if (p->sums) p->kernels->sum(p->to, p->width, begin, end, p->sums);
}

constexpr int64_t kPackedTogether = 256;

struct Forward {
  const ld_train *kernels;
  const ld_sparse *w;
  int64_t batch, width, stride;
  int32_t runs;
  const float *x, *bias;
  float *sums, *y;
};

void forward_some(void *context, int64_t begin, int64_t end) {
  const Forward *const f = static_cast<const Forward *>(context);
  float *const sums = f->sums + begin * f->width;
  for (int32_t i = 0; i < f->runs; ++i)
    f->kernels->forward(f->w, panel(f->w, i, f->runs), panel(f->w, i + 1, f->runs), begin, end, f->x, f->width, i > 0, sums);
  f->kernels->unpack(sums, f->batch, f->width, begin, end, f->bias, f->y, f->stride);
}

struct Backward {
  const ld_train *kernels;
  const ld_sparse *w;
  int64_t batch, width, stride;
  int32_t runs;
  int add;
  const float *x, *g;
  float *d_values, *sums, *d_x;
};

void multiply_some(void *context, int64_t begin, int64_t end) {
  const Backward *const b = static_cast<const Backward *>(context);
  for (int64_t i = begin; i < end; ++i)
    b->kernels->products(b->w, panel(b->w, i, b->runs), panel(b->w, i + 1, b->runs), b->x, b->g, b->width, b->add, b->d_values);
}

void spread_some(void *context, int64_t begin, int64_t end) {
  const Backward *const b = static_cast<const Backward *>(context);
  for (int64_t i = begin; i < end; ++i) {
    const int32_t first = panel(b->w, i, b->runs), last = panel(b->w, i + 1, b->runs);
    const int64_t from = column(b->w, first), to = column(b->w, last);
    float *const sums = b->sums + from * b->width;
    std::memset(sums, 0, static_cast<size_t>((to - from) * b->width) * 4);
    b->kernels->spread(b->w, first, last, b->g, b->width, b->sums);
    b->kernels->unpack(sums, b->batch, b->width, from, to, nullptr, b->d_x, b->stride);
  }
}

struct Memory {
  void *at = nullptr;
  int64_t bytes = 0;
  ~Memory() { std::free(at); }
};
thread_local Memory memory[4];

}  // namespace

void *ld_train_memory(int32_t which, int64_t bytes) {
  Memory &m = memory[which];
  if (bytes <= 0) bytes = 1;
  if (m.bytes >= bytes) return m.at;
  std::free(m.at);
  m.bytes = 0;
  m.at = nullptr;
  const int64_t rounded = ceil_div(bytes, 4096) * 4096;
  if (posix_memalign(&m.at, 64, static_cast<size_t>(rounded))) return m.at = nullptr;
  m.bytes = rounded;
  return m.at;
}

const ld_train *ld_train_current(void) {
  const char *const name = ld_current()->name;
#if defined(LD_HAVE_AVX512)
  if (std::strcmp(name, ld_train_avx512.name) == 0) return &ld_train_avx512;
#endif
#if defined(LD_HAVE_AVX2)
  if (std::strcmp(name, ld_train_avx2.name) == 0) return &ld_train_avx2;
#endif
  (void)name;
  return &ld_train_portable;
}

int32_t ld_sparse_forward(const ld_sparse *w, const float *x, int64_t x_stride, int64_t batch, const float *bias, float *y,
                          int64_t y_stride, int32_t threads) {
  if (!sound(w) || batch < 0 || threads < 1 || x_stride < w->cols || y_stride < w->rows) return LD_BAD_ARGUMENT;
  if (batch == 0 || w->rows == 0) return LD_OK;
  if ((w->cols && !x) || !y) return LD_BAD_ARGUMENT;
  const int64_t widest = width_of(least(batch, LD_MOST_WIDTH));
  float *const packed = static_cast<float *>(ld_train_memory(0, w->cols * widest * 4));
  float *const sums = static_cast<float *>(ld_train_memory(1, w->rows * widest * 4));
  if (!packed || !sums) return LD_NO_MEMORY;
  const ld_train *const kernels = ld_train_current();
  for (int64_t at = 0; at < batch; at += LD_MOST_WIDTH) {
    const int64_t count = least(batch - at, LD_MOST_WIDTH), width = width_of(count);
    const int32_t used = useful_threads(w, count, threads);
    Packing p = {kernels, x + at * x_stride, x_stride, count, width, packed, nullptr};
    ld_parallel(used, w->cols, kPackedTogether, pack_some, &p);
    const int32_t cut = runs(w, width, width * 4, 1);
    Forward f = {kernels, w, count, width, y_stride, cut, packed, bias, sums, y + at * y_stride};
    const int64_t chunk = cut > 1 ? most(256, ceil_div(w->rows, 4 * used)) : 64;
    ld_parallel(used, w->rows, ceil_div(chunk, 16) * 16, forward_some, &f);
  }
  return LD_OK;
}

int32_t ld_sparse_backward(const ld_sparse *w, const float *x, int64_t x_stride, const float *g, int64_t g_stride, int64_t batch,
                           float *d_values, float *d_x, int64_t d_x_stride, float *d_bias, int32_t threads) {
  if (!sound(w) || batch < 0 || threads < 1 || (d_values && x_stride < w->cols) || g_stride < w->rows || (d_x && d_x_stride < w->cols))
    return LD_BAD_ARGUMENT;
  const int64_t kept = w->row_ptr[w->rows];
  if (batch && ((w->rows && !g) || (d_values && kept && !x))) return LD_BAD_ARGUMENT;
  if (d_bias) std::memset(d_bias, 0, static_cast<size_t>(w->rows) * 4);
  if (d_values && batch == 0) std::memset(d_values, 0, static_cast<size_t>(kept) * 4);
  if (kept == 0) d_values = nullptr;
  const int64_t widest = width_of(least(batch, LD_MOST_WIDTH));
  float *const packed_x = static_cast<float *>(ld_train_memory(0, d_values ? w->cols * widest * 4 : 0));
  float *const packed_g = static_cast<float *>(ld_train_memory(1, w->rows * widest * 4));
  float *const sums = static_cast<float *>(ld_train_memory(2, d_x ? w->cols * widest * 4 : 0));
  if (!packed_x || !packed_g || !sums) return LD_NO_MEMORY;
  const ld_train *const kernels = ld_train_current();
  for (int64_t at = 0; at < batch; at += LD_MOST_WIDTH) {
    const int64_t count = least(batch - at, LD_MOST_WIDTH), width = width_of(count);
    const int32_t used = useful_threads(w, count, threads);
    if (d_values) {
      Packing p = {kernels, x + at * x_stride, x_stride, count, width, packed_x, nullptr};
      ld_parallel(used, w->cols, kPackedTogether, pack_some, &p);
    }
    Packing p = {kernels, g + at * g_stride, g_stride, count, width, packed_g, d_bias};
    ld_parallel(used, w->rows, kPackedTogether, pack_some, &p);
    const int64_t wanted = width < 16 || used == 1 ? used : 2 * used;
    Backward b = {kernels, w, count, width, d_x_stride, runs(w, width, width * 4, wanted), at > 0, packed_x, packed_g,
                  d_values, sums, d_x ? d_x + at * d_x_stride : nullptr};
    if (d_values) ld_parallel(used, b.runs, 1, multiply_some, &b);
    b.runs = runs(w, width, 2 * width * 4, wanted);  // what is read is written too
    if (d_x) ld_parallel(used, b.runs, 1, spread_some, &b);
  }
  return LD_OK;
}

int32_t ld_sparse_panels(int64_t rows, int64_t cols, int64_t kept) {
  // 4 bytes per row and cut, to be small beside the 8 bytes of a kept value and its column
  const int64_t afford = rows ? 1 + kept / (4 * rows) : 1;
  return static_cast<int32_t>(most(1, least(kMostPanels, least(afford, cols / kLeastColumns))));
}
