// What several instruction sets compile for themselves. All of it is local to the file that includes it: were a copy shared, the
// linker could keep the one with instructions that the processor lacks.
#ifndef LOWDIM_COMMON_H
#define LOWDIM_COMMON_H

#include "kernels.h"

#include <cstring>

namespace {

constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

inline float widen(uint16_t bf16) {
  const uint32_t bits = static_cast<uint32_t>(bf16) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline float widen(float value) { return value; }

inline uint16_t round_to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// The nearest integer, ties to even, of a value whose magnitude is far below 2^22.
inline int32_t nearest(float value) {
  const float shifted = value + 12582912.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, 4);
  return bits - 0x4B400000;
}

// The largest |x|; false where there is NaN or infinity.
inline bool magnitude(const float *x, int64_t count, float *amax) {
  uint32_t most = 0;  // bits of |x|, which order like the numbers, NaN above infinity
  for (int64_t c = 0; c < count; ++c) {
    uint32_t bits;
    std::memcpy(&bits, x + c, 4);
    bits &= 0x7FFFFFFF;
    most = bits > most ? bits : most;
  }
  std::memcpy(amax, &most, 4);
  return most < 0x7F800000;
}

// Returns the scale.
inline float quantise(const float *x, int64_t count, int8_t *q) {
  float amax;
  const bool finite = magnitude(x, count, &amax);
  if (!finite || amax < 1e-30f) {
    for (int64_t c = 0; c < count; ++c) q[c] = 0;
    return finite ? 0.0f : __builtin_nanf("");
  }
  const float inverse = 127.0f / amax;
  for (int64_t c = 0; c < count; ++c) q[c] = static_cast<int8_t>(nearest(x[c] * inverse));
  return amax / 127.0f;
}

// LD_INT3: bytes of a word of 64 columns of a block of eight rows, and of a whole block.
constexpr int64_t kOctetWord = 192;
inline int64_t octet_bytes(int64_t cols) { return (cols + 63) / 64 * kOctetWord; }

inline void prepare_rows(const float *x, int64_t x_stride, ld_input *in) {
  const size_t beyond = static_cast<size_t>(in->stride - in->cols);
  for (int32_t t = 0; t < in->tokens; ++t) {
    const float *const from = x + t * x_stride;
    const int64_t to = t * in->stride;
    if (in->kind == LD_FP32) {
      if (in->cols) std::memcpy(in->f32 + to, from, static_cast<size_t>(in->cols) * 4);
      std::memset(in->f32 + to + in->cols, 0, beyond * 4);
    } else if (in->kind == LD_BF16) {
      for (int64_t c = 0; c < in->cols; ++c) in->bf16[to + c] = round_to_bf16(from[c]);
      std::memset(in->bf16 + to + in->cols, 0, beyond * 2);
    } else {
      for (int64_t g = 0; g < in->groups; ++g) {
        const int64_t c = g * in->group;
        in->scale[t * in->groups + g] = quantise(from + c, least(in->group, in->cols - c), in->q + to + c);
      }
      std::memset(in->q + to + in->cols, 0, beyond);
    }
  }
}

// How a table shuffle moves the next values of a row to the columns that eight bits of its mask name: entry c holds how many bits
// are set below bit c, or kNowhere, which shuffles read as zero, where bit c is not set.
constexpr uint8_t kNowhere = 0x80;
struct Places {
  alignas(64) uint8_t bytes[256][8];
  alignas(64) uint8_t pairs[256][16];  // the same for values of two bytes
  constexpr Places() : bytes(), pairs() {
    for (int mask = 0; mask < 256; ++mask) {
      uint8_t next = 0;
      for (int c = 0; c < 8; ++c) {
        const bool kept = mask >> c & 1;
        bytes[mask][c] = kept ? next : kNowhere;
        pairs[mask][2 * c] = kept ? static_cast<uint8_t>(2 * next) : kNowhere;
        pairs[mask][2 * c + 1] = kept ? static_cast<uint8_t>(2 * next + 1) : kNowhere;
        next = static_cast<uint8_t>(next + kept);
      }
    }
  }
};

}  // namespace
#endif
