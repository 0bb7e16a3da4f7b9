// One draw from a truncated softmax; infer/sampling.py is the same in numpy, to the bit: weights are whole multiples of 2^-40 of the best
// token's, so that their sums do not depend on the order in which they are made. Blocks of tokens of which none is good enough are
// passed over, and those are nearly all.

#include "steps.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace {

constexpr int64_t kBuckets = 1024, kBucketsPerUnit = 32;  // of the distance from the best score; a weight is 0 from 28.1 on
constexpr int64_t kManyCandidates = 1024;
constexpr float kDepth = 4, kDeepest = 30;  // below the best score: where top-p looks first, and where all weights are 0

struct Candidate {
  float score;
  int32_t token;
  int64_t weight;
};

bool better(const Candidate &a, const Candidate &b) { return a.score > b.score || (a.score == b.score && a.token < b.token); }

int64_t blocks_of(int64_t n) { return (n + LD_BLOCK - 1) / LD_BLOCK; }

// The scores and what is made of them; stays with its thread.
struct Draw {
  void *memory = nullptr;
  int64_t room = 0;
  float *scores = nullptr, *highest = nullptr, *spare = nullptr;  // highest: of each block
  int64_t *masses = nullptr;                                      // of each block
  Candidate *kept = nullptr, *sorted = nullptr;
  const ld_steps *steps = nullptr;
  int64_t n = 0, count = 0;  // tokens, and those kept
  float most = 0;

  bool fit(int64_t tokens) {
    n = tokens;
    if (tokens <= room) return true;
    std::free(memory);
    room = 0;
    const size_t wide = static_cast<size_t>(blocks_of(tokens) * LD_BLOCK), blocks = static_cast<size_t>(blocks_of(tokens));
    const size_t bytes = wide * (2 * sizeof(Candidate) + 2 * sizeof(float)) + blocks * (sizeof(int64_t) + sizeof(float));
    if (posix_memalign(&memory, 64, bytes)) {
      memory = nullptr;
      return false;
    }
    room = tokens;
    kept = static_cast<Candidate *>(memory);
    sorted = kept + wide;
    masses = reinterpret_cast<int64_t *>(sorted + wide);
    scores = reinterpret_cast<float *>(masses + blocks);
    spare = scores + wide;
    highest = spare + wide;
    return true;
  }

  int64_t width(int64_t block) const { return std::min<int64_t>(LD_BLOCK, n - block * LD_BLOCK); }

  // Keep tokens of at least this score that have any weight; returns what they weigh together.
  int64_t keep(float score) {
    int64_t total = 0, weights[LD_BLOCK];
    count = 0;
    for (int64_t b = 0; b < blocks_of(n); ++b) {
      if (highest[b] < score) continue;
      steps->weights(scores + b * LD_BLOCK, width(b), most, weights);
      for (int64_t i = 0; i < width(b); ++i) {
        const float at = scores[b * LD_BLOCK + i];
        const bool good = (at >= score) & (weights[i] > 0);  // no branch: in a flat distribution it would be a coin's
        kept[count] = {at, static_cast<int32_t>(b * LD_BLOCK + i), weights[i]};
        count += good;
        total += good ? weights[i] : 0;
      }
    }
    return total;
  }

  ~Draw() { std::free(memory); }
};
thread_local Draw draws;

bool above(float a, float b) { return a > b; }

// The k-th largest score, 0 < k < n. The k-th best block bounds it from below, where there are so many blocks.
float kth_largest(const Draw &d, int64_t k) {
  const int64_t blocks = blocks_of(d.n);
  float bound = -INFINITY;
  if (k <= blocks) {
    std::copy(d.highest, d.highest + blocks, d.spare);
    std::nth_element(d.spare, d.spare + k - 1, d.spare + blocks, above);
    bound = d.spare[k - 1];
  }
  int64_t count = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    if (d.highest[b] < bound) continue;
    for (int64_t i = b * LD_BLOCK; i < b * LD_BLOCK + d.width(b); ++i)
      if (d.scores[i] >= bound) d.spare[count++] = d.scores[i];
  }
  std::nth_element(d.spare, d.spare + k - 1, d.spare + count, above);
  return d.spare[k - 1];
}

// Of some candidates, the last of those that are kept: what is better than it weighs less than `limit`. Reorders them.
Candidate last_kept(Candidate *begin, Candidate *end, int64_t limit) {
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

// The same of all candidates, by way of the bucket of scores that it is in where they are many.
Candidate last_kept(const Draw &d, int64_t limit) {
  if (d.count < kManyCandidates) {
    std::copy(d.kept, d.kept + d.count, d.sorted);
    return last_kept(d.sorted, d.sorted + d.count, limit);
  }
  const auto bucket = [&](const Candidate &c) {
    return std::min<int64_t>(kBuckets - 1, static_cast<int64_t>((d.most - c.score) * static_cast<float>(kBucketsPerUnit)));
  };
  int64_t masses[kBuckets] = {};
  for (int64_t i = 0; i < d.count; ++i) masses[bucket(d.kept[i])] += d.kept[i].weight;
  int64_t found = 0, last = 0;
  for (int64_t b = 0; b < kBuckets; ++b)
    if (masses[b]) last = b;
  for (; found < last && masses[found] < limit; ++found) limit -= masses[found];
  int64_t count = 0;
  for (int64_t i = 0; i < d.count; ++i)
    if (bucket(d.kept[i]) == found) d.sorted[count++] = d.kept[i];
  return last_kept(d.sorted, d.sorted + count, limit);
}

int64_t place_of(double draw, int64_t total) {
  const int64_t place = static_cast<int64_t>(draw * static_cast<double>(total));
  return place < total ? place : total - 1;
}

// Keep the best of the candidates, until they have their share; returns what they weigh.
int64_t truncate(Draw &d, int64_t limit) {
  const Candidate last = last_kept(d, limit);
  int64_t mass = 0, count = 0;
  for (int64_t i = 0; i < d.count; ++i) {
    const Candidate c = d.kept[i];
    const bool good = (c.score > last.score) | ((c.score == last.score) & (c.token <= last.token));
    d.kept[count] = c;
    count += good;
    mass += good ? c.weight : 0;
  }
  d.count = count;
  return mass;
}

int64_t draw_kept(const Draw &d, int64_t place) {
  int64_t i = 0;
  while (place >= d.kept[i].weight) place -= d.kept[i++].weight;
  return d.kept[i].token;
}

int64_t draw_any(Draw &d, int64_t place) {
  int64_t block = 0, weights[LD_BLOCK];
  while (place >= d.masses[block]) place -= d.masses[block++];
  d.steps->weights(d.scores + block * LD_BLOCK, d.width(block), d.most, weights);
  int64_t i = 0;
  while (place >= weights[i]) place -= weights[i++];
  return block * LD_BLOCK + i;
}

int64_t share_of(double top_p, int64_t total) { return static_cast<int64_t>(std::ceil(top_p * static_cast<double>(total))); }

}  // namespace

int64_t ld_sample(const float *scores, int64_t count, float temperature, int64_t top_k, double top_p, double draw) {
  if (!scores || count < 1 || count > INT32_MAX || !(temperature > 0) || top_k < 0) return -2;
  if (!(top_p > 0 && top_p <= 1 && draw >= 0 && draw < 1)) return -2;
  Draw &d = draws;
  if (!d.fit(count)) return -3;
  d.steps = ld_steps_current();
  d.most = d.steps->scaled(scores, count, temperature, d.scores, d.highest);
  if (!std::isfinite(d.most)) return -1;

  int64_t total;
  if (top_k > 0 && top_k < count) {
    total = d.keep(kth_largest(d, top_k));
    if (top_p < 1) total = truncate(d, share_of(top_p, total));
    return draw_kept(d, place_of(draw, total));
  }
  total = d.steps->masses(d.scores, count, d.most, d.masses);
  if (top_p >= 1) return draw_any(d, place_of(draw, total));
  const int64_t limit = share_of(top_p, total);
  for (float depth = kDepth; d.keep(d.most - depth) < limit && depth < kDeepest;) depth += kDepth;
  return draw_kept(d, place_of(draw, truncate(d, limit)));
}
