// Plain C++ for any processor, in loops that compilers vectorise.

#include "stretches.h"

namespace {

constexpr int64_t kLanes = 16;

// Where the next values of a row go, for eight bits of its mask: the columns of the set bits, then column 8, which is overwritten.
struct Columns {
  uint8_t at[256][8];
  uint8_t count[256];
  constexpr Columns() : at(), count() {
    for (int mask = 0; mask < 256; ++mask) {
      uint8_t next = 0;
      for (uint8_t c = 0; c < 8; ++c)
        if (mask >> c & 1) at[mask][next++] = c;
      count[mask] = next;
      while (next < 8) at[mask][next++] = 8;
    }
  }
};
constexpr Columns kColumns;

struct Portable {
  // By table, which does not depend on how well a processor predicts the next bit.
  template <class T>
  static const T *spread(uint64_t bits, const T *values, const T *end, T *out) {
    if (end - values < 64 + kSpare) return spread_bits(bits, values, out);
    for (int k = 0; k < 8; ++k, bits >>= 8, out += 8) {
      const uint8_t *const to = kColumns.at[bits & 255];
      std::memset(out, 0, 8 * sizeof(T));
      for (int i = 0; i < 8; ++i) out[to[i]] = values[i];
      values += kColumns.count[bits & 255];
    }
    return values;
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
