// The search for the best of 90 masks, compiled once for each level with its own Floats; see tiles.h.

#include "tiles_kernels.h"

#include <cmath>
#include <cstring>

namespace {

constexpr int kPairs = 6, kHalves = kPairs * kPairs, kTiles = 90;
constexpr int kFirst[kPairs] = {0, 0, 0, 1, 1, 2}, kSecond[kPairs] = {1, 2, 3, 2, 3, 3};

struct Tile {
  int top, bottom;    // pairs of the first two rows, 6 p + q, and of the last two
  uint8_t ones[4][4];
};

struct Tiles {
  Tile every[kTiles];
  Tiles() {
    int found = 0;
    for (int code = 0; code < kHalves * kHalves; ++code) {
      const int pairs[4] = {code / 216, code / 36 % 6, code / 6 % 6, code % 6};
      Tile tile = {code / kHalves, code % kHalves, {}};
      int columns[4] = {};
      for (int r = 0; r < 4; ++r) {
        tile.ones[r][kFirst[pairs[r]]] = tile.ones[r][kSecond[pairs[r]]] = 1;
        ++columns[kFirst[pairs[r]]], ++columns[kSecond[pairs[r]]];
      }
      bool fits = true;
      for (const int count : columns) fits = fits && count == 2;
      if (fits) every[found++] = tile;
    }
  }
};

// The sums under all choices of pairs in two rows, of magnitudes [2, 4] of some tiles.
LD_INLINE void halves(const Floats (*sizes)[4], Floats *sums) {
  Floats pairs[2][kPairs];
  for (int r = 0; r < 2; ++r)
    for (int p = 0; p < kPairs; ++p) pairs[r][p] = sizes[r][kFirst[p]] + sizes[r][kSecond[p]];
  for (int p = 0; p < kHalves; ++p) sums[p] = pairs[0][p / kPairs] + pairs[1][p % kPairs];
}

// The best masks of some tiles, of magnitudes [4, 4].
LD_INLINE Ints choose(const Floats (*sizes)[4], const Tiles &tiles) {
  Floats top[kHalves], bottom[kHalves];
  halves(sizes, top);
  halves(sizes + 2, bottom);
  Floats best = top[tiles.every[0].top] + bottom[tiles.every[0].bottom];
  Ints which = {};
  for (int32_t k = 1; k < kTiles; ++k) {
    const Floats sum = top[tiles.every[k].top] + bottom[tiles.every[k].bottom];
    const Ints more = sum > best;
    which = more ? which * 0 + k : which;
    best = more ? sum : best;
  }
  return which;
}

void fours(const ld_tiling *work, int64_t begin, int64_t end) {
  static const Tiles tiles;
  const int64_t cols = work->cols;
  Floats sizes[4][4] = {};
  bool odd = false;
  for (int64_t four = begin; four < end; ++four)
    for (int64_t at = 0; at < cols; at += 4 * kLanes) {
      const int64_t count = cols - at < 4 * kLanes ? (cols - at) / 4 : kLanes;
      for (int r = 0; r < 4; ++r) {
        const float *const row = work->weight + (4 * four + r) * cols + at;
        for (int64_t t = 0; t < count; ++t)
          for (int c = 0; c < 4; ++c) {
            const float size = std::fabs(row[4 * t + c]);
            odd |= size != size;
            sizes[r][c][t] = size;
          }
      }
      const Ints which = choose(sizes, tiles);
      for (int r = 0; r < 4; ++r) {
        uint8_t *const row = work->mask + (4 * four + r) * cols + at;
        for (int64_t t = 0; t < count; ++t) std::memcpy(row + 4 * t, tiles.every[which[t]].ones[r], 4);
      }
    }
  if (odd) __atomic_store_n(work->status, LD_NOT_A_NUMBER, __ATOMIC_RELAXED);
}

}  // namespace
