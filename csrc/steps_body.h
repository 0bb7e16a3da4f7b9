// The step kernels, written once on vectors. Each instruction set includes this file into a file of its own, which says how long they are
// (LD_VECTOR), what takes an instruction of its own, and what attention holds in registers: vectors of a row of values (kTile), positions
// that share a load of the queries (kTogether). Of its own are fused(a, b, c) = a * b + c, fold(v), whose lane i is the sum of v[i]'s
// lanes, codes(p), kLanes signed bytes, halves(p, out), the signed low and high halves of kLanes bytes, and in_turn(p, from), LD_SCALES
// of bf16 from one on, over and over.

#include "common.h"
#include "steps.h"
#include "steps_vector.h"

namespace {

LD_INLINE Floats all(float value) { return Floats{} + value; }

LD_INLINE Floats load(const float *p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
LD_INLINE Floats load(const uint16_t *p) {
  Halves v;
  std::memcpy(&v, p, sizeof v);
  const Words bits = __builtin_convertvector(v, Words) << 16;
  return reinterpret_cast<Floats>(bits);
}
LD_INLINE void store(float *p, Floats v) { std::memcpy(p, &v, sizeof v); }

// The last, partial vector of an array; zero beyond it.
LD_INLINE Floats load_some(const float *p, int64_t count) {
  Floats v = {};
  std::memcpy(&v, p, static_cast<size_t>(count) * 4);
  return v;
}
LD_INLINE void store_some(float *p, Floats v, int64_t count) { std::memcpy(p, &v, static_cast<size_t>(count) * 4); }

// body(index, vector at index, how many of its elements count)
#define LD_EACH(n, body)                                              \
  do {                                                                \
    int64_t at_ = 0;                                                  \
    for (; at_ + kLanes <= (n); at_ += kLanes) body(at_, kLanes);     \
    if (at_ < (n)) body(at_, (n) - at_);                              \
  } while (0)

LD_INLINE Floats get(const float *p, int64_t count) { return count == kLanes ? load(p) : load_some(p, count); }
LD_INLINE void put(float *p, Floats v, int64_t count) {
  if (count == kLanes)
    store(p, v);
  else
    store_some(p, v, count);
}

LD_INLINE float sum(Floats v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

LD_INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }
LD_INLINE float largest(Floats v) {
  float most = v[0];
  for (int64_t l = 1; l < kLanes; ++l) most = v[l] > most ? v[l] : most;
  return most;
}

// e^x to 1.2e-7, without fused operations, so that every level has the same bits; x is taken into [-87, 88].
LD_INLINE Floats exponential(Floats x) {
  const Floats magic = all(12582912.0f);
  x = x < -87.0f ? all(-87.0f) : x;
  x = x > 88.0f ? all(88.0f) : x;
  const Floats shifted = x * 1.44269504088896341f + magic;
  const Floats n = shifted - magic;
  const Floats r = x - n * 0.693359375f - n * -2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 0.5f;
  const Ints power = (reinterpret_cast<Ints>(shifted) - (0x4B400000 - 127)) << 23;
  return (p * (r * r) + r + 1.0f) * reinterpret_cast<Floats>(power);
}

// ---------------------------------------------------------------- between the products

void norm(const float *x, const float *weight, float eps, int64_t n, float *out) {
  Floats squares = {};
  const auto square = [&](int64_t at, int64_t count) LD_LAMBDA {
    const Floats v = get(x + at, count);
    squares = fused(v, v, squares);
  };
  LD_EACH(n, square);
  const float inverse = 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(n) + eps);
  const auto scale = [&](int64_t at, int64_t count) LD_LAMBDA {
    put(out + at, get(x + at, count) * inverse * get(weight + at, count), count);
  };
  LD_EACH(n, scale);
}

void rotate(float *x, const float *cos, const float *sin, int64_t half) {
  const auto turn = [&](int64_t at, int64_t count) LD_LAMBDA {
    const Floats a = get(x + at, count), b = get(x + half + at, count);
    const Floats c = get(cos + at, count), s = get(sin + at, count);
    put(x + at, a * c - b * s, count);
    put(x + half + at, b * c + a * s, count);
  };
  LD_EACH(half, turn);
}

LD_INLINE Floats tanh_of(Floats x) { return 1.0f - 2.0f / (exponential(x + x) + 1.0f); }

// Abramowitz and Stegun 7.1.26
LD_INLINE Floats erf_of(Floats x) {
  const Floats size = x < 0.0f ? -x : x;
  const Floats t = 1.0f / (1.0f + 0.3275911f * size);
  Floats p = 1.061405429f * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const Floats found = 1.0f - p * t * exponential(-size * size);
  return x < 0.0f ? -found : found;
}

template <int Activation>
LD_INLINE Floats activated(Floats x) {
  if (Activation == LD_SILU) return x / (1.0f + exponential(-x));
  if (Activation == LD_GELU) return 0.5f * x * (1.0f + erf_of(x * 0.70710678118654752f));
  return 0.5f * x * (1.0f + tanh_of(0.79788456080286536f * (x + 0.044715f * x * x * x)));
}

template <int Activation>
void activate_as(float *gate, const float *up, int64_t n) {
  const auto one = [&](int64_t at, int64_t count) LD_LAMBDA {
    put(gate + at, activated<Activation>(get(gate + at, count)) * get(up + at, count), count);
  };
  LD_EACH(n, one);
}

void activate(float *gate, const float *up, int64_t n, int32_t activation) {
  if (activation == LD_SILU) return activate_as<LD_SILU>(gate, up, n);
  if (activation == LD_GELU) return activate_as<LD_GELU>(gate, up, n);
  activate_as<LD_GELU_TANH>(gate, up, n);
}

void add(float *x, const float *y, float scale, int64_t n) {
  const auto one = [&](int64_t at, int64_t count) LD_LAMBDA {
    put(x + at, get(x + at, count) + get(y + at, count) * scale, count);
  };
  LD_EACH(n, one);
}

// ---------------------------------------------------------------- attention

void merge(const float *sums, const float *most, const float *mass, int64_t parts, int64_t apart, int64_t stride, int64_t n,
           float *out) {
  float high = most[0], total = 0.0f;
  for (int64_t i = 1; i < parts; ++i) high = most[i * apart] > high ? most[i * apart] : high;
  for (int64_t i = 0; i < parts; ++i) total += mass[i * apart] * exponential(all(most[i * apart] - high))[0];
  for (int64_t i = 0; i < parts; ++i) {
    const float share = exponential(all(most[i * apart] - high))[0] / total;
    const float *const from = sums + i * apart * stride;
    const auto one = [&](int64_t at, int64_t count) LD_LAMBDA {
      const Floats v = load(from + at) * share;  // may read on to `stride`
      put(out + at, i ? v + get(out + at, count) : v, count);
    };
    LD_EACH(n, one);
  }
}

// ---------------------------------------------------------------- sampling

float scaled(const float *scores, int64_t n, float temperature, float *out, float *highest) {
  float most = -__builtin_inff();
  Ints broken = {};
  for (int64_t block = 0; block < n; block += LD_BLOCK) {
    const int64_t count = least(LD_BLOCK, n - block);
    Floats high = all(-__builtin_inff());
    float *const to = out + block;
    const auto one = [&](int64_t at, int64_t some) LD_LAMBDA {
      const Floats v = get(scores + block + at, some) / temperature;
      put(to + at, v, some);
      broken |= v != v;
      if (some == kLanes) high = larger(v, high);
    };
    LD_EACH(count, one);
    float top = largest(high);
    for (int64_t i = count - count % kLanes; i < count; ++i) top = to[i] > top ? to[i] : top;
    highest[block / LD_BLOCK] = top;
    most = top > most ? top : most;
  }
  for (int64_t l = 0; l < kLanes; ++l)
    if (broken[l]) return __builtin_nanf("");
  return most;
}

LD_INLINE int64_t weight_of(float e) {
  const double shifted = static_cast<double>(e) * 0x1p40 + 0x1p52;  // whose low bits are the nearest integer
  int64_t bits;
  std::memcpy(&bits, &shifted, 8);
  return bits & 0xFFFFFFFFFFFFF;
}

// Of at most LD_BLOCK tokens; `out` may be NULL.
LD_INLINE int64_t block_weights(const float *x, int64_t n, float most, int64_t *out) {
  float e[LD_BLOCK];
  const auto one = [&](int64_t at, int64_t count) LD_LAMBDA { put(e + at, exponential(get(x + at, count) - most), count); };
  LD_EACH(n, one);
  int64_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += weight_of(e[i]);
  if (out)
    for (int64_t i = 0; i < n; ++i) out[i] = weight_of(e[i]);
  return sum;
}

int64_t weights(const float *x, int64_t n, float most, int64_t *out) { return block_weights(x, n, most, out); }

int64_t masses(const float *x, int64_t n, float most, int64_t *out) {
  int64_t total = 0;
  for (int64_t block = 0; block < n; block += LD_BLOCK)
    total += out[block / LD_BLOCK] = block_weights(x + block, least(LD_BLOCK, n - block), most, nullptr);
  return total;
}

}  // namespace

#include "attend_body.h"

#define LD_STEPS(level) {#level, norm, rotate, spread, store_row, read_row, attend, merge, activate, add, scaled, weights, masses}
