// The cache of keys and values as attention reads and writes it; the end of steps_body.h.

namespace {

// ---------------------------------------------------------------- cells

// What the rows of a cache consist of: at each place of a row lie kParts vectors, each of kLanes elements. Scales: none, one for each row,
// or LD_SCALES for each LD_SCALED elements, of which every LD_SCALES-th has the same.
enum class Scaled { kNot, kByRow, kInTurn };

constexpr int64_t kScaledUnits = LD_SCALED / 2;                                // of two elements
constexpr int64_t kAlike = kLanes < LD_SCALES ? int64_t{kLanes} : kScaledUnits;  // units that meet the same scales

// fp32 or bf16.
template <class Number>
struct NumberCells {
  typedef Number Unit;
  static constexpr int kParts = 1;
  static constexpr Scaled kScaled = Scaled::kNot;
  static LD_INLINE void get(const Unit *p, Floats, Floats *out) { out[0] = load(p); }
};
typedef NumberCells<float> Fp32Cells;
typedef NumberCells<uint16_t> Bf16Cells;

struct Int8Cells {
  typedef int8_t Unit;
  static constexpr int kParts = 1;
  static constexpr Scaled kScaled = Scaled::kByRow;
  static LD_INLINE void get(const Unit *p, Floats, Floats *out) { out[0] = codes(p); }
};

// Byte i of 16 holds element i of 32 in its low half and element i + 16 in its high half.
struct Int4Cells {
  typedef uint8_t Unit;
  static constexpr int kParts = 2;
  static constexpr Scaled kScaled = Scaled::kInTurn;
  static LD_INLINE void get(const Unit *p, Floats scale, Floats *out) {
    halves(p, out);
    out[0] *= scale;
    out[1] *= scale;
  }
};

// The element of a row that a part of what lies at `unit` begins with.
template <class Cells>
LD_INLINE int64_t element(int64_t unit, int part) {
  return Cells::kParts == 1 ? unit : unit / 16 * 32 + unit % 16 + 16 * part;
}

// The scales of the elements from that of `unit` on, as far as they are alike.
template <class Cells>
LD_INLINE Floats scale_of(const uint16_t *scales, int64_t unit) {
  if constexpr (Cells::kScaled == Scaled::kInTurn) return in_turn(scales + unit / kScaledUnits * LD_SCALES, unit % LD_SCALES);
  return Floats{};
}

// ---------------------------------------------------------------- rows

// H / sqrt(size) of Sylvester's H, which is its own inverse, on each `size` elements, a power of two.
void spread(float *x, int64_t n, int64_t size) {
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(size));
  for (int64_t from = 0; from < n; from += size)
    for (int64_t half = size / 2; half > 0; half /= 2)
      for (int64_t block = from; block < from + size; block += 2 * half)
        for (int64_t i = block; i < block + half; ++i) {
          const float a = x[i], b = x[i + half];
          x[i] = a + b;
          x[i + half] = a - b;
        }
  for (int64_t i = 0; i < n; ++i) x[i] *= scale;
}

// Codes in [-127, 127] by a scale that bf16 holds: rounding it never brings a code beyond.
uint16_t encode(const float *x, int64_t n, int8_t *out) {
  float amax;
  if (!magnitude(x, n, &amax)) amax = __builtin_nanf("");
  const uint16_t scale = amax < 1e-30f ? 0 : round_to_bf16(amax / 127.0f);
  const float inverse = amax >= 1e-30f ? 1.0f / widen(scale) : 0.0f;
  for (int64_t i = 0; i < n; ++i) out[i] = inverse == 0.0f ? int8_t{0} : static_cast<int8_t>(nearest(x[i] * inverse));
  return scale;
}

// A lane for each scale.
typedef float Turn __attribute__((vector_size(LD_SCALES * 4)));
typedef int32_t TurnInts __attribute__((vector_size(LD_SCALES * 4)));

// What the largest element may come to. Beyond -8 it is cut off, which brings the others nearer.
constexpr float kLevels[] = {-8.0f, -8.6f, -9.3f, -7.4f};

LD_INLINE void round_to_bf16(Turn &v) {
  const TurnInts bits = reinterpret_cast<TurnInts>(v);
  v = reinterpret_cast<Turn>((bits + 0x7FFF + (bits >> 16 & 1)) & ~0xFFFF);
}

// To the nearest integer in [-8, 7].
LD_INLINE void round_to_code(Turn &v) {
  v = v > -9.0f ? v : Turn{} - 9.0f;
  v = v < 9.0f ? v : Turn{} + 9.0f;
  v = (v + 12582912.0f) - 12582912.0f;
  v = v > -8.0f ? v : Turn{} - 8.0f;
  v = v < 7.0f ? v : Turn{} + 7.0f;
}

// LD_SCALED elements by the ones of a few scales that bring them nearest.
void encode_in_turn(const float *x, uint8_t *out, uint16_t *scales) {
  constexpr int kEach = LD_SCALED / LD_SCALES;
  Turn v[kEach], most = {};
  for (int i = 0; i < kEach; ++i) {
    std::memcpy(&v[i], x + i * LD_SCALES, sizeof v[i]);
    most = (v[i] < 0.0f ? -v[i] : v[i]) > (most < 0.0f ? -most : most) ? v[i] : most;
  }
  const TurnInts some = (most < 0.0f ? -most : most) >= 1e-30f;
  Turn best = {}, least_loss = Turn{} + __builtin_inff();
  for (const float level : kLevels) {
    Turn scale = most / level, loss = {};
    round_to_bf16(scale);
    const Turn inverse = some ? 1.0f / scale : Turn{};
    for (int i = 0; i < kEach; ++i) {
      const Turn exact = v[i] * inverse;
      Turn code = exact;
      round_to_code(code);
      loss += (code - exact) * (code - exact);
    }
    loss *= scale / most * (scale / most);
    best = loss < least_loss ? scale : best;
    least_loss = loss < least_loss ? loss : least_loss;
  }
  const Turn inverse = some ? 1.0f / best : Turn{};
  int8_t found[LD_SCALED];
  for (int i = 0; i < kEach; ++i) {
    Turn code = v[i] * inverse;
    round_to_code(code);
    for (int j = 0; j < LD_SCALES; ++j) found[i * LD_SCALES + j] = static_cast<int8_t>(code[j]);
  }
  for (int j = 0; j < LD_SCALES; ++j) scales[j] = some[j] ? round_to_bf16(best[j]) : uint16_t{0};
  for (int i = 0; i < kScaledUnits; ++i) {
    const int low = i / 16 * 32 + i % 16;
    out[i] = static_cast<uint8_t>((found[low] & 15) | static_cast<uint8_t>(found[low + 16]) << 4);
  }
}

void store_in_turn(const float *x, int64_t n, uint8_t *out, uint16_t *scales) {
  float amax;
  const bool finite = magnitude(x, n, &amax);
  for (int64_t from = 0; from < n; from += LD_SCALED, out += kScaledUnits, scales += LD_SCALES) {
    const int64_t count = least(LD_SCALED, n - from), units = (count + 31) / 32 * 16;
    float part[LD_SCALED] = {};
    uint8_t codes_of_part[kScaledUnits];
    if (finite) std::memcpy(part, x + from, static_cast<size_t>(count) * 4);
    encode_in_turn(part, codes_of_part, scales);
    std::memcpy(out, codes_of_part, static_cast<size_t>(units));
    for (int j = 0; j < LD_SCALES && !finite; ++j) scales[j] = 0x7FC0;
  }
}

void store_row(const float *x, int64_t n, int32_t kind, void *out, uint16_t *scales) {
  if (kind == LD_FP32) {
    std::memcpy(out, x, static_cast<size_t>(n) * 4);
  } else if (kind == LD_BF16) {
    for (int64_t i = 0; i < n; ++i) static_cast<uint16_t *>(out)[i] = round_to_bf16(x[i]);
  } else if (kind == LD_INT8) {
    *scales = encode(x, n, static_cast<int8_t *>(out));
  } else {
    store_in_turn(x, n, static_cast<uint8_t *>(out), scales);
  }
}

template <class Cells>
void read_as(const void *row, const uint16_t *scales, int64_t stride, float *out) {
  const typename Cells::Unit *const from = static_cast<const typename Cells::Unit *>(row);
  const float scale = Cells::kScaled == Scaled::kByRow ? widen(*scales) : 1.0f;
  for (int64_t u = 0; u < stride / Cells::kParts; u += kLanes) {
    Floats value[Cells::kParts];
    Cells::get(from + u, scale_of<Cells>(scales, u), value);
    for (int p = 0; p < Cells::kParts; ++p) store(out + element<Cells>(u, p), value[p] * scale);
  }
}

void read_row(const void *row, const uint16_t *scales, int64_t stride, int32_t kind, float *out) {
  if (kind == LD_FP32) return read_as<Fp32Cells>(row, scales, stride, out);
  if (kind == LD_BF16) return read_as<Bf16Cells>(row, scales, stride, out);
  if (kind == LD_INT8) return read_as<Int8Cells>(row, scales, stride, out);
  read_as<Int4Cells>(row, scales, stride, out);
}

// ---------------------------------------------------------------- attention

// Scores beyond `count`, up to a whole vector, are those of the last position, but for the scale of its row.
template <class Cells, int Heads>
void score(const ld_attend *a, const typename Cells::Unit *k, const uint16_t *scales, int64_t count, int64_t head) {
  const float *const q = a->q + head * a->stride;
  const int64_t units = a->stride / Cells::kParts;
  constexpr int64_t kRun = Cells::kScaled == Scaled::kInTurn ? kAlike : INT64_MAX / 2;
  for (int64_t position = 0; position < count; position += kLanes) {
    Floats sums[Heads][kLanes];
    for (int64_t l = 0; l < kLanes; l += kTogether) {
      const typename Cells::Unit *keys[kTogether];
      const uint16_t *own[kTogether];
      Floats dots[Heads][kTogether] = {};
#pragma GCC unroll 4
      for (int i = 0; i < kTogether; ++i) {
        const int64_t at = least(position + l + i, count - 1);
        keys[i] = k + at * units;
        own[i] = scales + at * a->scales;
      }
      for (int64_t run = 0; run < units; run += kRun) {
        Floats scale[kTogether];
#pragma GCC unroll 4
        for (int i = 0; i < kTogether; ++i) scale[i] = scale_of<Cells>(own[i], run);
        const int64_t stop = least(run + kRun, units);
        for (int64_t u = run; u < stop; u += kLanes) {
          Floats key[kTogether][Cells::kParts];
#pragma GCC unroll 4
          for (int i = 0; i < kTogether; ++i) Cells::get(keys[i] + u, scale[i], key[i]);
#pragma GCC unroll 2
          for (int p = 0; p < Cells::kParts; ++p)
#pragma GCC unroll 4
            for (int h = 0; h < Heads; ++h) {
              const Floats query = load(q + h * a->stride + element<Cells>(u, p));
#pragma GCC unroll 4
              for (int i = 0; i < kTogether; ++i) dots[h][i] = fused(key[i][p], query, dots[h][i]);
            }
        }
      }
#pragma GCC unroll 4
      for (int h = 0; h < Heads; ++h)
#pragma GCC unroll 4
        for (int i = 0; i < kTogether; ++i) sums[h][l + i] = dots[h][i];
    }
#pragma GCC unroll 4
    for (int h = 0; h < Heads; ++h) {
      const Floats found = fold(sums[h]);
      store(a->scores + (head + h) * LD_STRETCH + position, Cells::kScaled == Scaled::kByRow ? found * load(scales + position) : found);
    }
  }
}

template <class Cells, int Heads, int Units>
void gather(const ld_attend *a, const typename Cells::Unit *v, const uint16_t *scales, int64_t count, int64_t head, int64_t from) {
  static_assert(Cells::kScaled != Scaled::kInTurn || kAlike % (Units * kLanes) == 0, "the units of a tile meet the same scales");
  constexpr int kParts = Cells::kParts;
  Floats sums[Heads][Units][kParts];
  float *const out = a->sums + head * a->stride;
  const float *const share = a->scores + head * LD_STRETCH;
#pragma GCC unroll 4
  for (int h = 0; h < Heads; ++h)
#pragma GCC unroll 4
    for (int i = 0; i < Units; ++i)
#pragma GCC unroll 2
      for (int p = 0; p < kParts; ++p) sums[h][i][p] = load(out + h * a->stride + element<Cells>(from + i * kLanes, p));
  v += from;
  for (int64_t position = 0; position < count; ++position, v += a->stride / kParts, scales += a->scales) {
    Floats value[Units][kParts];
    const Floats scale = scale_of<Cells>(scales, from);
#pragma GCC unroll 4
    for (int i = 0; i < Units; ++i) Cells::get(v + i * kLanes, scale, value[i]);
#pragma GCC unroll 4
    for (int h = 0; h < Heads; ++h) {
      const Floats weight = all(share[h * LD_STRETCH + position]);
#pragma GCC unroll 4
      for (int i = 0; i < Units; ++i)
#pragma GCC unroll 2
        for (int p = 0; p < kParts; ++p) sums[h][i][p] = fused(weight, value[i][p], sums[h][i][p]);
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < Heads; ++h)
#pragma GCC unroll 4
    for (int i = 0; i < Units; ++i)
#pragma GCC unroll 2
      for (int p = 0; p < kParts; ++p) store(out + h * a->stride + element<Cells>(from + i * kLanes, p), sums[h][i][p]);
}

// Scores of `count` positions become weights, times the scales of the rows of values if there are any; what was summed before is brought to the
// new largest score.
LD_INLINE void weigh(const ld_attend *a, const uint16_t *scales, int64_t count, int64_t head, bool begun) {
  float *const scores = a->scores + head * LD_STRETCH;
  for (int64_t i = count; i % kLanes; ++i) scores[i] = -__builtin_inff();
  Floats high = load(scores);
  for (int64_t i = kLanes; i < count; i += kLanes) high = larger(load(scores + i), high);
  float most = largest(high);
  if (begun && !(most > a->most[head])) most = a->most[head];
  Floats mass = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    const Floats raw = load(scores + i);
    const Floats weight = raw == -__builtin_inff() ? Floats{} : exponential(raw - most);
    store(scores + i, scales ? weight * load(scales + i) : weight);
    mass += weight;
  }
  const float before = begun ? exponential(all(a->most[head] - most))[0] : 0.0f;
  a->mass[head] = (begun ? a->mass[head] * before : 0.0f) + sum(mass);
  a->most[head] = most;
  float *const sums = a->sums + head * a->stride;
  for (int64_t d = 0; d < a->stride; d += kLanes) store(sums + d, begun ? load(sums + d) * before : Floats{});
}

template <class Cells, int Heads>
void gather_all(const ld_attend *a, const typename Cells::Unit *v, const uint16_t *scales, int64_t count, int64_t head) {
  constexpr int kUnits = Cells::kScaled == Scaled::kInTurn ? static_cast<int>(least(kTile / Cells::kParts, kAlike / kLanes)) : kTile / Cells::kParts;
  const int64_t units = a->stride / Cells::kParts;
  int64_t u = 0;
  for (; u + kUnits * kLanes <= units; u += kUnits * kLanes) gather<Cells, Heads, kUnits>(a, v, scales, count, head, u);
  for (; u < units; u += kLanes) gather<Cells, Heads, 1>(a, v, scales, count, head, u);
}

template <class Cells>
void attend_as(const ld_attend *a) {
  typedef typename Cells::Unit Unit;
  const int64_t units = a->stride / Cells::kParts;
  for (int64_t begin = a->begin; begin < a->end; begin += LD_STRETCH) {
    const int64_t count = least(LD_STRETCH, a->end - begin);
    const Unit *const k = static_cast<const Unit *>(a->k) + begin * units;
    const Unit *const v = static_cast<const Unit *>(a->v) + begin * units;
    const uint16_t *const k_scales = a->k_scales + begin * a->scales, *const v_scales = a->v_scales + begin * a->scales;
    const uint16_t *const v_rows = Cells::kScaled == Scaled::kByRow ? v_scales : nullptr;
    for (int64_t h = 0; h < a->heads;) {
      const int64_t left = a->heads - h, some = least(left, 4);
      if (some == 4) score<Cells, 4>(a, k, k_scales, count, h);
      else if (some == 3) score<Cells, 3>(a, k, k_scales, count, h);
      else if (some == 2) score<Cells, 2>(a, k, k_scales, count, h);
      else score<Cells, 1>(a, k, k_scales, count, h);
      for (int64_t i = h; i < h + some; ++i) weigh(a, v_rows, count, i, begin > a->begin);
      if (some == 4) gather_all<Cells, 4>(a, v, v_scales, count, h);
      else if (some == 3) gather_all<Cells, 3>(a, v, v_scales, count, h);
      else if (some == 2) gather_all<Cells, 2>(a, v, v_scales, count, h);
      else gather_all<Cells, 1>(a, v, v_scales, count, h);
      h += some;
    }
  }
}

void attend(const ld_attend *a) {
  if (a->kind == LD_FP32) return attend_as<Fp32Cells>(a);
  if (a->kind == LD_BF16) return attend_as<Bf16Cells>(a);
  if (a->kind == LD_INT8) return attend_as<Int8Cells>(a);
  attend_as<Int4Cells>(a);
}

}  // namespace
