// NEON, on every 64-bit ARM processor. TBL with a table of 256 masks does what VPEXPAND does in AVX-512.

#include "stretches.h"

#include <arm_neon.h>

namespace {

constexpr Places kPlaces;

// As Places, for four values of four bytes.
struct Quads {
  alignas(64) uint8_t at[16][16];
  constexpr Quads() : at() {
    for (int mask = 0; mask < 16; ++mask) {
      int next = 0;
      for (int c = 0; c < 4; ++c) {
        const bool kept = mask >> c & 1;
        for (int b = 0; b < 4; ++b) at[mask][4 * c + b] = kept ? static_cast<uint8_t>(4 * next + b) : kNowhere;
        next += kept;
      }
    }
  }
};
constexpr Quads kQuads;

// Byte k: how many bits are set in the bytes 0 to k of the mask.
inline uint64_t counts_up_to(uint64_t bits) {
  const uint64_t each = vget_lane_u64(vreinterpret_u64_u8(vcnt_u8(vcreate_u8(bits))), 0);
  return each * 0x0101010101010101ULL;
}

// Eight columns, or four of fp32, from p on; 16 bytes are read there, or 8 for codes.
inline void spread_eight(uint32_t bits, const uint16_t *p, uint16_t *out) {
  const uint8x16_t v = vqtbl1q_u8(vreinterpretq_u8_u16(vld1q_u16(p)), vld1q_u8(kPlaces.pairs[bits]));
  vst1q_u16(out, vreinterpretq_u16_u8(v));
}
inline void spread_eight(uint32_t bits, const int8_t *p, int8_t *out) {
  vst1_s8(out, vreinterpret_s8_u8(vtbl1_u8(vreinterpret_u8_s8(vld1_s8(p)), vld1_u8(kPlaces.bytes[bits]))));
}
inline void spread_four(uint32_t bits, const float *p, float *out) {
  const uint8x16_t v = vqtbl1q_u8(vreinterpretq_u8_f32(vld1q_f32(p)), vld1q_u8(kQuads.at[bits]));
  vst1q_f32(out, vreinterpretq_f32_u8(v));
}
inline void spread_eight(uint32_t bits, const float *p, float *out) {
  spread_four(bits & 15, p, out);
  spread_four(bits >> 4, p + __builtin_popcount(bits & 15), out + 4);
}

inline float32x4_t widen_low(uint16x8_t bf16) { return vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(bf16), 16)); }
inline float32x4_t widen_high(uint16x8_t bf16) { return vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(bf16), 16)); }

inline void add_sixteen(float32x4_t *sums, const float *w, const float *x) {
  for (int i = 0; i < 4; ++i) sums[i] = vfmaq_f32(sums[i], vld1q_f32(w + 4 * i), vld1q_f32(x + 4 * i));
}
inline void add_sixteen(float32x4_t *sums, const uint16_t *w, const uint16_t *x) {
  for (int i = 0; i < 2; ++i) {
    const uint16x8_t a = vld1q_u16(w + 8 * i), b = vld1q_u16(x + 8 * i);
    sums[2 * i] = vfmaq_f32(sums[2 * i], widen_low(a), widen_low(b));
    sums[2 * i + 1] = vfmaq_f32(sums[2 * i + 1], widen_high(a), widen_high(b));
  }
}

inline int32x4_t add_sixteen(int32x4_t sum, const int8_t *w, const int8_t *x) {
  const int8x16_t a = vld1q_s8(w), b = vld1q_s8(x);
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(sum, a, b);
#else
  // Two products of at most 128 * 127 fit into 16 bits.
  const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
  return vpadalq_s16(sum, vmlal_s8(low, vget_high_s8(a), vget_high_s8(b)));
#endif
}

struct Neon {
  template <class T>
  static const T *spread(uint64_t bits, const T *values, const T *end, T *out) {
    if (end - values < 64 + kSpare) return spread_bits(bits, values, out);
    const uint64_t counts = counts_up_to(bits);
    for (int k = 0; k < 8; ++k) spread_eight(bits >> (8 * k) & 255, values + (counts << 8 >> (8 * k) & 255), out + 8 * k);
    return values + (counts >> 56);
  }

  static void look_up(const int8_t *table, int half, const uint8_t *bytes, const uint8_t *end, int64_t count, int8_t *out) {
    const int8x16_t numbers = vld1q_s8(table);
    int64_t i = 0;
    for (; i < count && end - bytes >= i + 16; i += 16) {
      const uint8x16_t v = vld1q_u8(bytes + i);
      vst1q_s8(out + i, vqtbl1q_s8(numbers, half ? vshrq_n_u8(v, 4) : vandq_u8(v, vdupq_n_u8(15))));
    }
    for (; i < count; ++i) out[i] = table[bytes[i] >> (4 * half) & 15];
  }

  template <class Number>
  static float dot(const Number *w, const Number *x, int64_t count) {
    float32x4_t sums[4] = {};
    int64_t c = 0;
    for (; c + 16 <= count; c += 16) add_sixteen(sums, w + c, x + c);
    float sum = vaddvq_f32(vaddq_f32(vaddq_f32(sums[0], sums[1]), vaddq_f32(sums[2], sums[3])));
    for (; c < count; ++c) sum += widen(w[c]) * widen(x[c]);
    return sum;
  }

  static int32_t dot(const int8_t *w, const int8_t *x, int64_t count) {
    int32x4_t sums = vdupq_n_s32(0);
    int64_t c = 0;
    for (; c + 16 <= count; c += 16) sums = add_sixteen(sums, w + c, x + c);
    int32_t sum = vaddvq_s32(sums);
    for (; c < count; ++c) sum += w[c] * x[c];
    return sum;
  }
};

int supported() { return 1; }

}  // namespace

const ld_kernels ld_kernels_neon = {"neon", supported, prepare_rows, stretched_rows<Neon>, stretched_unpack<Neon>};
