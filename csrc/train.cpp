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
  int64_t stride, features, batch, width;
  float *to, *sums;  // sums: of a feature over the batch, or NULL
};

constexpr int64_t kPackedTogether = 256;

int64_t pieces(const Packing *p) { return ceil_div(p->features, kPackedTogether); }

void pack_piece(const Packing *p, int64_t piece) {
  const int64_t begin = piece * kPackedTogether, end = least(begin + kPackedTogether, p->features);
  p->kernels->pack(p->from, p->stride, p->batch, p->width, begin, end, p->to);
  if (p->sums) p->kernels->sum(p->to, p->width, begin, end, p->sums);
}

void pack_some(void *context, int64_t begin, int64_t end) {
  const Packing *const p = static_cast<const Packing *>(context);
  for (int64_t i = begin; i < end; ++i) pack_piece(p, i);
}

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

// Two parts in one go, as threads wait for each other at the end of each go.
struct Backward {
  const ld_train *kernels;
  const ld_sparse *w;
  Packing x, g;
  int64_t pieces_of_x;
  int32_t products, spreads;  // runs of columns
  int add;
  float *d_values, *sums, *d_x;
  int64_t stride;
};

void pack_both(void *context, int64_t begin, int64_t end) {
  const Backward *const b = static_cast<const Backward *>(context);
  for (int64_t i = begin; i < end; ++i) {
    if (i < b->pieces_of_x)
      pack_piece(&b->x, i);
    else
      pack_piece(&b->g, i - b->pieces_of_x);
  }
}

void multiply(const Backward *b, int64_t run) {
  const int32_t first = panel(b->w, run, b->products), last = panel(b->w, run + 1, b->products);
  b->kernels->products(b->w, first, last, b->x.to, b->g.to, b->g.width, b->add, b->d_values);
}

void spread(const Backward *b, int64_t run) {
  const int32_t first = panel(b->w, run, b->spreads), last = panel(b->w, run + 1, b->spreads);
  const int64_t from = column(b->w, first), to = column(b->w, last), width = b->g.width;
  float *const sums = b->sums + from * width;
  std::memset(sums, 0, static_cast<size_t>((to - from) * width) * 4);
  b->kernels->spread(b->w, first, last, b->g.to, width, b->sums);
  b->kernels->unpack(sums, b->g.batch, width, from, to, nullptr, b->d_x, b->stride);
}

void backward_some(void *context, int64_t begin, int64_t end) {
  const Backward *const b = static_cast<const Backward *>(context);
  for (int64_t i = begin; i < end; ++i) {
    if (i < b->products)
      multiply(b, i);
    else
      spread(b, i - b->products);
  }
}

struct Memory {
  void *at = nullptr;
  int64_t bytes = 0;
  ~Memory() { std::free(at); }
};
thread_local Memory memory[3];

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
    Packing p = {kernels, x + at * x_stride, x_stride, w->cols, count, width, packed, nullptr};
    ld_parallel(used, pieces(&p), 1, pack_some, &p);
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
    const int64_t wanted = width < 16 || used == 1 ? used : 2 * used;
    Backward b = {kernels, w,
                  {kernels, d_values ? x + at * x_stride : nullptr, x_stride, w->cols, count, width, packed_x, nullptr},
                  {kernels, g + at * g_stride, g_stride, w->rows, count, width, packed_g, d_bias},
                  0, 0, 0, at > 0, d_values, sums, d_x ? d_x + at * d_x_stride : nullptr, d_x_stride};
    if (d_values) b.pieces_of_x = pieces(&b.x), b.products = runs(w, width, width * 4, wanted);
    if (d_x) b.spreads = runs(w, width, 2 * width * 4, wanted);  // what is read is written too
    ld_parallel(used, b.pieces_of_x + pieces(&b.g), 1, pack_both, &b);
    ld_parallel(used, b.products + b.spreads, 1, backward_some, &b);
  }
  return LD_OK;
}

int32_t ld_sparse_panels(int64_t rows, int64_t cols, int64_t kept) {
  // 4 bytes per row and cut, to be small beside the 8 bytes of a kept value and its column
  const int64_t afford = rows ? 1 + kept / (4 * rows) : 1;
  return static_cast<int32_t>(most(1, least(kMostPanels, least(afford, cols / kLeastColumns))));
}
