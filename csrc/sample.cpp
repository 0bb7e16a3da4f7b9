// One draw from a truncated softmax; infer/sampling.py is the same in numpy, to the bit: weights are whole multiples of 2^-40 of the best
// token's, so that their sums do not depend on the order in which they are made.

#include "steps.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace {

constexpr int64_t kBlock = 64;  // scores of which the best is looked at first

struct Candidate {
  float score;
  int32_t token;
  int64_t weight;
};

bool better(const Candidate &a, const Candidate &b) { return a.score > b.score || (a.score == b.score && a.token < b.token); }

struct Scratch {
  void *memory = nullptr;
  int64_t count = 0;
  float *scores = nullptr, *spare = nullptr;
  int64_t *weights = nullptr;
  Candidate *kept = nullptr, *sorted = nullptr;

  bool fit(int64_t wanted) {
    if (wanted <= count) return true;
    std::free(memory);
    count = 0;
    const int64_t room = wanted + 64;
    if (posix_memalign(&memory, 64, static_cast<size_t>(room) * (2 * sizeof(float) + sizeof(int64_t) + 2 * sizeof(Candidate)))) {
      memory = nullptr;
      return false;
    }
    count = wanted;
    kept = static_cast<Candidate *>(memory);
    sorted = kept + room;
    weights = reinterpret_cast<int64_t *>(sorted + room);
    scores = reinterpret_cast<float *>(weights + room);
    spare = scores + room;
    return true;
  }
  ~Scratch() { std::free(memory); }
};
thread_local Scratch scratch;

// The k-th largest of n scores, 0 < k < n.
float kth_largest(const float *scores, int64_t n, int64_t k, float *spare) {
  int64_t count = 0;
  if (k <= n / kBlock) {  // the k-th best block bounds it from below: few scores are above that
    const int64_t blocks = n / kBlock;
    for (int64_t b = 0; b < blocks; ++b) spare[b] = *std::max_element(scores + b * kBlock, scores + (b + 1) * kBlock);
    std::nth_element(spare, spare + k - 1, spare + blocks, [](float a, float b) { return a > b; });
    const float bound = spare[k - 1];
    for (int64_t i = 0; i < n; ++i) {
      spare[count] = scores[i];
      count += scores[i] >= bound;
    }
  } else {
    for (; count < n; ++count) spare[count] = scores[count];
  }
  std::nth_element(spare, spare + k - 1, spare + count, [](float a, float b) { return a > b; });
  return spare[k - 1];
}

// Of n candidates, the last that is kept: those better than it weigh less than `limit` together. Reorders them.
Candidate last_kept(Candidate *all, int64_t n, int64_t limit) {
  Candidate *begin = all, *end = all + n;
  while (end - begin > 1) {
    Candidate *const middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, better);
    int64_t mass = 0;
    for (const Candidate *c = begin; c < middle; ++c) mass += c->weight;
    if (mass >= limit) {
      end = middle;
    } else {
      limit -= mass;
      begin = middle;
    }
  }
  return *begin;
}

int64_t pick(const int64_t *weights, int64_t n, int64_t target) {
  int64_t sum = 0, last = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (!weights[i]) continue;
    last = i;
    if ((sum += weights[i]) > target) break;
  }
  return last;
}

int64_t place_of(double draw, int64_t total) {
  const int64_t place = static_cast<int64_t>(draw * static_cast<double>(total));
  return place < total ? place : total - 1;
}

// Tokens that together weigh no more than what top_p cuts off are gone whatever their order; the rest are few. (A little less than
// that, for the exponential may rise by an ulp where it should fall.)
int64_t pick_top_p(Scratch &s, int64_t n, int64_t total, double top_p, double draw) {
  const int64_t limit = static_cast<int64_t>(std::ceil(top_p * static_cast<double>(total)));
  const int64_t negligible = (total - limit) / n / 1000 * 999;
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i)
    if (s.weights[i] > negligible) s.kept[count++] = {s.scores[i], static_cast<int32_t>(i), s.weights[i]};
  std::copy(s.kept, s.kept + count, s.sorted);
  const Candidate last = last_kept(s.sorted, count, limit);
  int64_t mass = 0, sum = 0, token = last.token;
  for (int64_t i = 0; i < count; ++i) mass += better(last, s.kept[i]) ? 0 : s.kept[i].weight;
  const int64_t target = place_of(draw, mass);
  for (int64_t i = 0; i < count && sum <= target; ++i) {
    if (better(last, s.kept[i])) continue;
    sum += s.kept[i].weight;
    token = s.kept[i].token;
  }
  return token;
}

}  // namespace

int64_t ld_sample(const float *scores, int64_t count, float temperature, int64_t top_k, double top_p, double draw) {
  if (!scores || count < 1 || count > INT32_MAX || !(temperature > 0) || top_k < 0) return -2;
  if (!(top_p > 0 && top_p <= 1 && draw >= 0 && draw < 1)) return -2;
  Scratch &s = scratch;
  if (!s.fit(count)) return -3;
  const ld_steps *const steps = ld_steps_current();
  const float most = steps->scaled(scores, count, temperature, s.scores);
  if (!std::isfinite(most)) return -1;
  int64_t total = steps->weights(s.scores, count, most, s.weights);
  if (top_k > 0 && top_k < count) {
    const float bound = kth_largest(s.scores, count, top_k, s.spare);
    for (int64_t i = 0; i < count; ++i) {
      const bool gone = s.scores[i] < bound;
      total -= gone ? s.weights[i] : 0;
      s.weights[i] = gone ? 0 : s.weights[i];
    }
  }
  if (top_p < 1) return pick_top_p(s, count, total, top_p, draw);
  return pick(s.weights, count, place_of(draw, total));
}
