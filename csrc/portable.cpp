// Plain C++ for any processor, in loops that compilers vectorise.

#include "stretches.h"

namespace {

constexpr int64_t kLanes = 16;

struct Portable {
  template <class T>
  static const T *spread(uint64_t bits, const T *values, const T *, T *out) {
    return spread_bits(bits, values, out);
  }

  static void look_up(const int8_t *table, int half, const uint8_t *bytes, const uint8_t *, int64_t count, int8_t *out) {
    for (int64_t i = 0; i < count; ++i) out[i] = table[bytes[i] >> (4 * half) & 15];
  }

  template <class Number>
  static float dot(const Number *w, const Number *x, int64_t count) {
    float lanes[kLanes] = {};
    int64_t c = 0;
    for (; c + kLanes <= count; c += kLanes)
      for (int64_t l = 0; l < kLanes; ++l) lanes[l] += widen(w[c + l]) * widen(x[c + l]);
    for (int64_t l = 0; c + l < count; ++l) lanes[l] += widen(w[c + l]) * widen(x[c + l]);
    for (int64_t half = kLanes / 2; half > 0; half /= 2)
      for (int64_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    return lanes[0];
  }

  static int32_t dot(const int8_t *w, const int8_t *x, int64_t count) {
    int32_t sum = 0;
    for (int64_t c = 0; c < count; ++c) sum += static_cast<int16_t>(w[c]) * static_cast<int16_t>(x[c]);
    return sum;
  }
};

int supported() { return 1; }

}  // namespace

const ld_kernels ld_kernels_portable = {"portable", supported, prepare_rows, stretched_rows<Portable>, stretched_unpack<Portable>};
