// Distillation, written once on vectors. Each instruction set includes this file into a file of its own, which says how long they are
// (LD_VECTOR), and what takes an instruction of its own: fused(a, b, c) = a * b + c, and narrow(v), v rounded to bf16, where
// LD_HAVE_NARROW is defined.
//
// A row is read three times, from memory once: its largest logits, its sums, its gradient.

#include <cmath>
#include <cstring>

#include "distill_kernels.h"
#include "steps_vector.h"

namespace {

constexpr int64_t kTogether = 64;  // vectors whose sums are fp32; longer ones are fp64
constexpr float kInfinite = __builtin_inff();
constexpr float kNothing = -87.0f;  // e to this and less is taken for 0, beside the largest, which is 1

LD_INLINE Floats all(float value) { return Floats{} + value; }

LD_INLINE Floats widened(Halves v) { return reinterpret_cast<Floats>(__builtin_convertvector(v, Words) << 16); }

#if !defined(LD_HAVE_NARROW)
LD_INLINE Halves narrow(Floats v) {
  const Words bits = reinterpret_cast<Words>(v), even = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
  return __builtin_convertvector(v == v ? even : Words{} + 0x7FC0, Halves);
}
#endif

// `count` elements at p, and -infinity beyond
LD_INLINE Floats get(const float *p, int64_t count) {
  Floats v;
  if (count < kLanes) v = all(-kInfinite);
  std::memcpy(&v, p, static_cast<size_t>(count) * sizeof *p);
  return v;
}
LD_INLINE Floats get(const uint16_t *p, int64_t count) {
  Halves v;
  if (count < kLanes) v = Halves{} + uint16_t{0xFF80};
  std::memcpy(&v, p, static_cast<size_t>(count) * sizeof *p);
  return widened(v);
}

LD_INLINE void put(float *p, Floats v, int64_t count) { std::memcpy(p, &v, static_cast<size_t>(count) * sizeof *p); }
LD_INLINE void put(uint16_t *p, Floats v, int64_t count) {
  const Halves narrowed = narrow(v);
  std::memcpy(p, &narrowed, static_cast<size_t>(count) * sizeof *p);
}

LD_INLINE double total(Floats v) {
  double sum = 0.0;
  for (int64_t i = 0; i < kLanes; ++i) sum += static_cast<double>(v[i]);
  return sum;
}

// e^x to 2e-7 for x in (kNothing, 0]; 0 below, NaN for NaN.
LD_INLINE Floats power(Floats x) {
  const Floats magic = all(12582912.0f);
  const Floats shifted = fused(x, all(1.44269504088896341f), magic);
  const Floats n = shifted - magic;
  const Floats r = fused(n, all(2.12194440e-4f), fused(n, all(-0.693359375f), x));
  Floats p = fused(r, all(1.9875691500e-4f), all(1.3981999507e-3f));
  p = fused(p, r, all(8.3334519073e-3f));
  p = fused(p, r, all(4.1665795894e-2f));
  p = fused(p, r, all(1.6666665459e-1f));
  p = fused(p, r, all(0.5f));
  p = fused(p, r * r, r + 1.0f);
  const Words scale = (reinterpret_cast<Words>(shifted) - (0x4B400000u - 127u)) << 23;
  return x < kNothing ? Floats{} : p * reinterpret_cast<Floats>(scale);
}

template <typename T>
LD_INLINE float largest(const T *p, int64_t n) {
  Floats most[4] = {all(-kInfinite), all(-kInfinite), all(-kInfinite), all(-kInfinite)};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const Floats v = get(p + i + k * kLanes, kLanes);
      most[k] = v > most[k] ? v : most[k];
    }
  for (; i < n; i += kLanes) {
    const Floats v = get(p + i, n - i < kLanes ? n - i : kLanes);
    most[0] = v > most[0] ? v : most[0];
  }
  float found = -kInfinite;
  for (const Floats &each : most)
    for (int64_t l = 0; l < kLanes; ++l) found = each[l] > found ? each[l] : found;
  return found;
}

struct Sums {
  double s = 0.0, q = 0.0, apart = 0.0, once = 0.0;  // of e_s, of e_q, of e_q (log e_q - log e_s), of e_s at temperature 1
};

// What a row's gradient is made of: s e_s - q e_q + once e_s^T, each e from the largest logit on.
struct Scales {
  float s, q, once;
};

// Teacher: there is one. Apart: the cross entropy has exponentials of its own, since the temperature is not 1.
template <typename S, typename Q, bool Teacher, bool Apart>
struct Row {
  const float most_s, most_q, cooled;  // cooled: 1 / temperature

  struct Terms {
    Floats s, q, apart, once;
  };

  LD_INLINE Terms at(Floats of_s, Floats of_q) const {
    Terms t = {};
    const Floats away = of_s - most_s, x = away * cooled;
    t.s = power(x);
    if (Teacher) {
      const Floats y = (of_q - most_q) * cooled;
      t.q = power(y);
      t.apart = t.q == 0.0f ? Floats{} : t.q * (y - x);
    }
    if (Apart) t.once = power(away);
    return t;
  }

  LD_INLINE Terms at(const S *s, const Q *q, int64_t count) const {
    return at(get(s, count), Teacher ? get(q, count) : Floats{});
  }

  LD_INLINE void add(Sums *sums, const Terms &t) const {
    sums->s += total(t.s);
    if (Teacher) sums->q += total(t.q), sums->apart += total(t.apart);
    if (Apart) sums->once += total(t.once);
  }

  Sums sums(const S *s, const Q *q, int64_t n) const {
    Sums found;
    const int64_t whole = n - n % kLanes;
    for (int64_t begin = 0; begin < whole; begin += kTogether * kLanes) {
      const int64_t end = begin + kTogether * kLanes < whole ? begin + kTogether * kLanes : whole;
      Terms lanes = {};
      for (int64_t i = begin; i < end; i += kLanes) {
        const Terms t = at(s + i, q + i, kLanes);
        lanes.s += t.s;
        if (Teacher) lanes.q += t.q, lanes.apart += t.apart;
        if (Apart) lanes.once += t.once;
      }
      add(&found, lanes);
    }
    if (whole < n) add(&found, at(s + whole, q + whole, n - whole));
    return found;
  }

  LD_INLINE Floats gradient(const Terms &t, const Scales &by) const {
    Floats g = t.s * by.s;
    if (Teacher) g -= t.q * by.q;  // without a fused operation: 0 where student and teacher agree
    return Apart ? g + t.once * by.once : g;
  }

  void differentiate(S *s, const Q *q, int64_t n, const Scales &by) const {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) put(s + i, gradient(at(s + i, q + i, kLanes), by), kLanes);
    if (i < n) put(s + i, gradient(at(s + i, q + i, n - i), by), n - i);
  }
};

template <typename S, typename Q, bool Teacher, bool Apart>
void row_as(const ld_distilling *d, int64_t r, int64_t label) {
  S *const s = static_cast<S *>(d->student.values) + r * d->student.stride;
  const Q *const q = Teacher ? static_cast<const Q *>(d->teacher.values) + r * d->teacher.stride : reinterpret_cast<const Q *>(s);
  const bool told = label >= 0;
  const Row<S, Q, Teacher, Apart> row = {largest(s, d->words), Teacher ? largest(q, d->words) : 0.0f,
                                         Teacher ? 1.0f / d->temperature : 1.0f};
  const Sums sums = row.sums(s, q, d->words);
  const double once = Apart ? sums.once : sums.s, heated = static_cast<double>(d->kl_weight) * static_cast<double>(d->temperature);
  const double weight = told ? static_cast<double>(d->ce_weight) : 0.0;
  d->kl[r] = Teacher ? static_cast<float>(sums.apart / sums.q - std::log(sums.q) + std::log(sums.s)) : 0.0f;
  d->ce[r] = 0.0f;
  const Scales by = {static_cast<float>(((Teacher ? heated : 0.0) + (Apart ? 0.0 : weight)) / sums.s),
                     Teacher ? static_cast<float>(heated / sums.q) : 0.0f, static_cast<float>(weight / once)};
  Floats at_label = {};
  if (told) {
    const Floats v = get(s + label, 1);
    d->ce[r] = static_cast<float>(std::log(once) - (static_cast<double>(v[0]) - static_cast<double>(row.most_s)));
    at_label = row.gradient(row.at(v, Teacher ? get(q + label, 1) : Floats{}), by) - static_cast<float>(weight);
  }
  row.differentiate(s, q, d->words, by);
  if (told) put(s + label, at_label, 1);
}

template <typename S, typename Q>
void rows_of(const ld_distilling *d, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const int64_t label = d->labels ? d->labels[r] : LD_NO_LABEL;
    if (!d->teacher.values)
      row_as<S, Q, false, false>(d, r, label);
    else if (label >= 0 && d->temperature != 1.0f)
      row_as<S, Q, true, true>(d, r, label);
    else
      row_as<S, Q, true, false>(d, r, label);
  }
}

void rows(const ld_distilling *d, int64_t begin, int64_t end) {
  const bool s = d->student.kind == LD_BF16, q = d->teacher.kind == LD_BF16;
  if (s && q) return rows_of<uint16_t, uint16_t>(d, begin, end);
  if (s) return rows_of<uint16_t, float>(d, begin, end);
  if (q) return rows_of<float, uint16_t>(d, begin, end);
  rows_of<float, float>(d, begin, end);
}

}  // namespace

#define LD_DISTILL(level) {#level, rows}
