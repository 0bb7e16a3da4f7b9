// The kernels of sparse training, written once on vectors. Each instruction set includes this file into a file of its own, which says how
// long they are (LD_VECTOR) and what takes an instruction of its own: fused(a, b, c) = a * b + c; low(a, b) and high(a, b), the
// first and the second half of a0 b0 a1 b1 ...; reaching(v, least), bit i set where |v[i]| >= least or v[i] is NaN; and kTopVectors,
// vectors of a tile of the dense gradient that fit into registers for LD_TOP_ROWS rows at once.

#include <cstring>

#include "steps_vector.h"
#include "train_kernels.h"

namespace {

constexpr int kMostVectors = 8;  // of a row that are held in registers

LD_INLINE Floats load(const float *p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
LD_INLINE void store(float *p, Floats v) { std::memcpy(p, &v, sizeof v); }
LD_INLINE Floats all(float value) { return Floats{} + value; }

// Lane i: the sum of v[i]'s lanes. Overwrites v.
LD_INLINE Floats fold(Floats *v) {
#pragma GCC unroll 4
  for (int half = static_cast<int>(kLanes) / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) v[i] = low(v[i], v[i + half]) + high(v[i], v[i + half]);
  return v[0];
}

// Rows become columns.
LD_INLINE void transpose(Floats *v) {
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
    Floats u[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      u[2 * i] = low(v[i], v[i + kLanes / 2]);
      u[2 * i + 1] = high(v[i], v[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) v[i] = u[i];
  }
}

struct Run {
  int64_t begin, end;
};

// The values of a row whose columns lie in panels [first, last).
LD_INLINE Run run_of(const ld_sparse *w, int32_t first, int32_t last, int64_t row) {
  const int64_t begin = w->row_ptr[row];
  return {first > 0 ? begin + w->cuts[(first - 1) * w->rows + row] : begin,
          last < w->panels ? begin + w->cuts[(last - 1) * w->rows + row] : w->row_ptr[row + 1]};
}

// ---------------------------------------------------------------- layout

void pack(const float *x, int64_t x_stride, int64_t batch, int64_t width, int64_t begin, int64_t end, float *out) {
  const int64_t whole = width % kLanes ? begin : end - (end - begin) % kLanes;
  for (int64_t b = 0; whole > begin && b < width; b += kLanes)
    for (int64_t f = begin; f < whole; f += kLanes) {
      Floats v[kLanes];
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) v[i] = b + i < batch ? load(x + (b + i) * x_stride + f) : Floats{};
      transpose(v);
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) store(out + (f + i) * width + b, v[i]);
    }
  for (int64_t f = whole; f < end; ++f)
    for (int64_t b = 0; b < width; ++b) out[f * width + b] = b < batch ? x[b * x_stride + f] : 0.0f;
}

void unpack(const float *in, int64_t batch, int64_t width, int64_t begin, int64_t end, const float *bias, float *y,
            int64_t y_stride) {
  const int64_t whole = width % kLanes ? begin : end - (end - begin) % kLanes;
  for (int64_t b = 0; whole > begin && b < batch; b += kLanes)
    for (int64_t f = begin; f < whole; f += kLanes) {
      const Floats add = bias ? load(bias + f) : Floats{};
      Floats v[kLanes];
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) v[i] = load(in + (f - begin + i) * width + b);
      transpose(v);
      for (int64_t i = 0; i < kLanes && b + i < batch; ++i) store(y + (b + i) * y_stride + f, v[i] + add);
    }
  for (int64_t f = whole; f < end; ++f)
    for (int64_t b = 0; b < batch; ++b) y[b * y_stride + f] = in[(f - begin) * width + b] + (bias ? bias[f] : 0.0f);
}

void sum(const float *in, int64_t width, int64_t begin, int64_t end, float *sums) {
  for (int64_t f = begin; f < end; ++f) {
    float total = 0.0f;
    const float *const row = in + f * width;
    int64_t b = 0;
    if (width >= kLanes) {
      Floats lanes = {};
      for (; b < width; b += kLanes) lanes += load(row + b);
      for (int64_t l = 0; l < kLanes; ++l) total += lanes[l];
    }
    for (; b < width; ++b) total += row[b];
    sums[f] += total;
  }
}

// ---------------------------------------------------------------- a few samples: a row of activations is one short vector

template <int W>
struct Short {
  typedef float Vector __attribute__((vector_size(W * 4)));
  Vector v;
  explicit LD_INLINE Short(const float *p) { std::memcpy(&v, p, sizeof v); }
  LD_INLINE void store(float *p) const { std::memcpy(p, &v, sizeof v); }
};

template <int W>
void short_forward(const ld_sparse *w, int32_t first, int32_t last, int64_t begin, int64_t end, const float *x, int add, float *y) {
  const float zeros[W] = {};
  for (int64_t r = begin; r < end; ++r, y += W) {
    const Run run = run_of(w, first, last, r);
    Short<W> a(add ? y : zeros), b(zeros);
    int64_t k = run.begin;
    for (; k + 2 <= run.end; k += 2) {
      a.v += Short<W>(x + int64_t{w->col[k]} * W).v * w->values[k];
      b.v += Short<W>(x + int64_t{w->col[k + 1]} * W).v * w->values[k + 1];
    }
    if (k < run.end) a.v += Short<W>(x + int64_t{w->col[k]} * W).v * w->values[k];
    a.v += b.v;
    a.store(y);
  }
}

template <int W>
void short_products(const ld_sparse *w, int32_t first, int32_t last, const float *x, const float *g, int add, float *d_values) {
  for (int64_t r = 0; r < w->rows; ++r) {
    const Run run = run_of(w, first, last, r);
    const Short<W> v(g + r * W);
    for (int64_t k = run.begin; k < run.end; ++k) {
      Short<W> product(x + int64_t{w->col[k]} * W);
      product.v *= v.v;
      float total = product.v[0];
      for (int l = 1; l < W; ++l) total += product.v[l];
      d_values[k] = add ? d_values[k] + total : total;
    }
  }
}

template <int W>
void short_spread(const ld_sparse *w, int32_t first, int32_t last, const float *g, float *d_x) {
  for (int64_t r = 0; r < w->rows; ++r) {
    const Run run = run_of(w, first, last, r);
    const Short<W> v(g + r * W);
    for (int64_t k = run.begin; k < run.end; ++k) {
      float *const to = d_x + int64_t{w->col[k]} * W;
      Short<W> sums(to);
      sums.v += v.v * w->values[k];
      sums.store(to);
    }
  }
}

// ---------------------------------------------------------------- many samples: N vectors of a row at once

template <int N>
void long_forward(const ld_sparse *w, int32_t first, int32_t last, int64_t begin, int64_t end, const float *x, int64_t width, int add,
                  float *y) {
  for (int64_t r = begin; r < end; ++r, y += width) {
    const Run run = run_of(w, first, last, r);
    Floats sums[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) sums[i] = add ? load(y + i * kLanes) : Floats{};
    for (int64_t k = run.begin; k < run.end; ++k) {
      const float *const from = x + w->col[k] * width;
      const Floats value = all(w->values[k]);
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) sums[i] = fused(value, load(from + i * kLanes), sums[i]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) store(y + i * kLanes, sums[i]);
  }
}

template <int N>
void long_products(const ld_sparse *w, int32_t first, int32_t last, const float *x, const float *g, int64_t width, int add,
                   float *d_values) {
  Floats parts[kLanes] = {};
  for (int64_t r = 0; r < w->rows; ++r) {
    const Run run = run_of(w, first, last, r);
    Floats v[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) v[i] = load(g + r * width + i * kLanes);
    for (int64_t k = run.begin; k < run.end; k += kLanes) {
      const int64_t count = run.end - k < kLanes ? run.end - k : kLanes;
      for (int64_t j = 0; j < count; ++j) {
        const float *const from = x + w->col[k + j] * width;
        Floats a = v[0] * load(from), b = {};
#pragma GCC unroll 8
        for (int i = 1; i < N; i += 2) b = fused(v[i], load(from + i * kLanes), b);
#pragma GCC unroll 8
        for (int i = 2; i < N; i += 2) a = fused(v[i], load(from + i * kLanes), a);
        parts[j] = a + b;
      }
      Floats folded[kLanes];
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) folded[j] = parts[j];
      Floats sums = fold(folded);
      if (add) {
        Floats before = {};
        std::memcpy(&before, d_values + k, static_cast<size_t>(count) * 4);
        sums += before;
      }
      if (count == kLanes)
        store(d_values + k, sums);
      else
        std::memcpy(d_values + k, &sums, static_cast<size_t>(count) * 4);
    }
  }
}

template <int N>
void long_spread(const ld_sparse *w, int32_t first, int32_t last, const float *g, int64_t width, float *d_x) {
  for (int64_t r = 0; r < w->rows; ++r) {
    const Run run = run_of(w, first, last, r);
    Floats v[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) v[i] = load(g + r * width + i * kLanes);
    for (int64_t k = run.begin; k < run.end; ++k) {
      float *const to = d_x + w->col[k] * width;
      const Floats value = all(w->values[k]);
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) store(to + i * kLanes, fused(value, v[i], load(to + i * kLanes)));
    }
  }
}

// ---------------------------------------------------------------- which of them

#define LD_SHORT(width, call) \
  switch (width) {            \
    case 1: call(1); break;   \
    case 2: call(2); break;   \
    case 4: call(4); break;   \
    default: call(8); break;  \
  }

#define LD_LONG(vectors, call) \
  switch (vectors) {           \
    case 1: call(1); break;    \
    case 2: call(2); break;    \
    case 3: call(3); break;    \
    case 4: call(4); break;    \
    case 5: call(5); break;    \
    case 6: call(6); break;    \
    case 7: call(7); break;    \
    default: call(8); break;   \
  }

LD_INLINE int vectors_at(int64_t width, int64_t b) {
  const int64_t left = (width - b) / kLanes;
  return static_cast<int>(left < kMostVectors ? left : kMostVectors);
}

void forward(const ld_sparse *w, int32_t first, int32_t last, int64_t begin, int64_t end, const float *x, int64_t width, int add,
             float *y) {
  if (width < 16) {
#define LD_CALL(n) short_forward<n>(w, first, last, begin, end, x, add, y)
    LD_SHORT(width, LD_CALL)
#undef LD_CALL
    return;
  }
  for (int64_t b = 0; b < width; b += kMostVectors * kLanes) {
#define LD_CALL(n) long_forward<n>(w, first, last, begin, end, x + b, width, add, y + b)
    LD_LONG(vectors_at(width, b), LD_CALL)
#undef LD_CALL
  }
}

void products(const ld_sparse *w, int32_t first, int32_t last, const float *x, const float *g, int64_t width, int add,
              float *d_values) {
  if (width < 16) {
#define LD_CALL(n) short_products<n>(w, first, last, x, g, add, d_values)
    LD_SHORT(width, LD_CALL)
#undef LD_CALL
    return;
  }
  for (int64_t b = 0; b < width; b += kMostVectors * kLanes) {
#define LD_CALL(n) long_products<n>(w, first, last, x + b, g + b, width, add || b > 0, d_values)
    LD_LONG(vectors_at(width, b), LD_CALL)
#undef LD_CALL
  }
}

void spread(const ld_sparse *w, int32_t first, int32_t last, const float *g, int64_t width, float *d_x) {
  if (width < 16) {
#define LD_CALL(n) short_spread<n>(w, first, last, g, d_x)
    LD_SHORT(width, LD_CALL)
#undef LD_CALL
    return;
  }
  for (int64_t b = 0; b < width; b += kMostVectors * kLanes) {
#define LD_CALL(n) long_spread<n>(w, first, last, g + b, width, d_x + b)
    LD_LONG(vectors_at(width, b), LD_CALL)
#undef LD_CALL
  }
}

// ---------------------------------------------------------------- the dense gradient, tile by tile

void outer(const float *g, const float *x, int64_t batch, float *out) {
  for (int64_t c = 0; c < LD_TOP_COLS; c += kTopVectors * kLanes) {
    Floats sums[LD_TOP_ROWS][kTopVectors] = {};
    for (int64_t b = 0; b < batch; ++b) {
      Floats v[kTopVectors];
#pragma GCC unroll 4
      for (int i = 0; i < kTopVectors; ++i) v[i] = load(x + b * LD_TOP_COLS + c + i * kLanes);
#pragma GCC unroll 6
      for (int r = 0; r < LD_TOP_ROWS; ++r) {
        const Floats value = all(g[b * LD_TOP_ROWS + r]);
#pragma GCC unroll 4
        for (int i = 0; i < kTopVectors; ++i) sums[r][i] = fused(value, v[i], sums[r][i]);
      }
    }
    for (int r = 0; r < LD_TOP_ROWS; ++r)
      for (int i = 0; i < kTopVectors; ++i) store(out + r * LD_TOP_COLS + c + i * kLanes, sums[r][i]);
  }
}

uint64_t reach(const float *v, float least) {
  uint64_t bits = 0;
  for (int64_t c = 0; c < LD_TOP_COLS; c += kLanes) bits |= static_cast<uint64_t>(reaching(load(v + c), least)) << c;
  return bits;
}

}  // namespace

#define LD_TRAIN(level) {#level, pack, unpack, sum, forward, products, spread, outer, reach}
