// The largest entries of a dense gradient that is never held: tiles of it are computed one after the other, and what reaches a
// threshold that only rises is remembered.

#include "train_kernels.h"

#include "kernels.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

namespace {

constexpr int64_t kSampled = 64;      // one tile in so many estimates the first threshold
constexpr int64_t kSparseBits = 512;   // positions for each one found, up to which a bit for every position beats sorting
constexpr uint32_t kInfinity = 0x7F800000;
constexpr int64_t kRowsTogether = 96;  // rows of a unit of work

struct Found {
  uint32_t size;  // bits of |gradient|, which order like the numbers
  int64_t at;
};

bool before(const Found &a, const Found &b) { return a.size != b.size ? a.size > b.size : a.at < b.at; }

uint32_t bits_of(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return bits & 0x7FFFFFFF;
}
float float_of(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}

struct Search {
  const ld_train *kernels;
  int64_t rows, cols, batch;
  const float *x;
  int64_t x_stride;
  const float *g;  // [ceil(rows / LD_TOP_ROWS), batch, LD_TOP_ROWS]
  const int64_t *excluded, *first;  // first [rows + 1]: where a row's excluded positions begin
  size_t count;
  uint32_t least;  // nothing below it is of interest
  int64_t column_blocks, row_blocks, step;  // of its row blocks and column blocks a search takes every step-th pair
  int64_t next;    // unit of work
  bool failed;
  std::vector<uint64_t> off;              // the excluded positions as bits, unless they are too few for it
  std::vector<std::vector<Found>> found;  // of each thread
};

// Keep the best `count`, and return what a newcomer must reach.
uint32_t shrink(std::vector<Found> *found, size_t count, uint32_t least) {
  if (found->size() <= count) return least;
  const auto last = found->begin() + static_cast<int64_t>(count) - 1;
  std::nth_element(found->begin(), last, found->end(), before);
  found->resize(count);
  return std::max(least, last->size);
}

bool excluded(const Search *s, int64_t row, int64_t at) {
  if (!s->off.empty()) return s->off[static_cast<size_t>(at / 64)] >> (at % 64) & 1;
  return std::binary_search(s->excluded + s->first[row], s->excluded + s->first[row + 1], at);
}

void look(const Search *s, const float *tile, int64_t row, int64_t col, uint32_t *least, std::vector<Found> *found) {
  const int64_t high = std::min<int64_t>(LD_TOP_ROWS, s->rows - row), wide = std::min<int64_t>(LD_TOP_COLS, s->cols - col);
  const uint64_t valid = wide == 64 ? ~uint64_t{0} : (uint64_t{1} << wide) - 1;
  for (int64_t r = 0; r < high; ++r) {
    const float *const v = tile + r * LD_TOP_COLS;
    for (uint64_t bits = s->kernels->reach(v, float_of(*least)) & valid; bits; bits &= bits - 1) {
      const int64_t c = __builtin_ctzll(bits), at = (row + r) * s->cols + col + c;
      if (!excluded(s, row + r, at)) found->push_back({bits_of(v[c]), at});
    }
  }
  // Each halving costs about as much as filling the other half did.
  if (s->count && found->size() >= 2 * s->count + 4096) *least = shrink(found, s->count, *least);
}

void search_some(Search *s, std::vector<Found> *found) {
  std::vector<float> x(static_cast<size_t>(s->batch * LD_TOP_COLS));
  alignas(64) float tile[LD_TOP_ROWS * LD_TOP_COLS];
  uint32_t least = s->least;
  const int64_t together = kRowsTogether / LD_TOP_ROWS * 8, row_units = (s->row_blocks + together - 1) / together;
  for (int64_t unit; (unit = __atomic_fetch_add(&s->next, 1, __ATOMIC_RELAXED)) < row_units * s->column_blocks;) {
    const int64_t block = unit / row_units, col = block * LD_TOP_COLS, wide = std::min<int64_t>(LD_TOP_COLS, s->cols - col);
    const int64_t from = unit % row_units * together, to = std::min(from + together, s->row_blocks);
    bool packed = false;
    for (int64_t i = from; i < to; ++i) {
      if ((i + block) % s->step) continue;
      for (int64_t b = 0; b < s->batch && !packed; ++b)
        std::memcpy(x.data() + b * LD_TOP_COLS, s->x + b * s->x_stride + col, static_cast<size_t>(wide) * 4);
      packed = true;
      s->kernels->outer(s->g + i * s->batch * LD_TOP_ROWS, x.data(), s->batch, tile);
      look(s, tile, i * LD_TOP_ROWS, col, &least, found);
    }
  }
}

void search_member(void *context, int32_t member, int32_t) {
  Search *const s = static_cast<Search *>(context);
  try {
    search_some(s, &s->found[static_cast<size_t>(member)]);
  } catch (const std::bad_alloc &) {
    __atomic_store_n(&s->failed, true, __ATOMIC_RELAXED);
  }
}

// The best `count` of the pairs of blocks that `step` leaves, at least `least`.
std::vector<Found> search(Search *s, size_t count, uint32_t least, int64_t step, int32_t threads) {
  s->count = count, s->least = least, s->step = step, s->next = 0, s->failed = false;
  s->found.assign(static_cast<size_t>(threads), {});
  ld_team(threads, search_member, s);
  if (s->failed) throw std::bad_alloc();
  std::vector<Found> all;
  for (std::vector<Found> &found : s->found) {
    all.insert(all.end(), found.begin(), found.end());
    std::vector<Found>().swap(found);
  }
  shrink(&all, count, least);
  return all;
}

struct Regroup {
  int64_t rows, batch, stride;
  const float *from;
  float *to;
};

void regroup_some(void *context, int64_t begin, int64_t end) {
  const Regroup *const p = static_cast<const Regroup *>(context);
  for (int64_t i = begin; i < end; ++i)
    for (int64_t b = 0; b < p->batch; ++b)
      for (int64_t r = 0; r < LD_TOP_ROWS; ++r) {
        const int64_t row = i * LD_TOP_ROWS + r;
        p->to[(i * p->batch + b) * LD_TOP_ROWS + r] = row < p->rows ? p->from[b * p->stride + row] : 0.0f;
      }
}

void ascending(const std::vector<Found> &found, int64_t size, int64_t *out) {
  const int64_t count = static_cast<int64_t>(found.size());
  if (size / kSparseBits > count) {
    for (int64_t i = 0; i < count; ++i) out[i] = found[static_cast<size_t>(i)].at;
    std::sort(out, out + count);
    return;
  }
  std::vector<uint64_t> marked(static_cast<size_t>(size / 64 + 1));
  for (const Found &f : found) marked[static_cast<size_t>(f.at / 64)] |= uint64_t{1} << (f.at % 64);
  for (int64_t word = 0; word <= size / 64; ++word)
    for (uint64_t bits = marked[static_cast<size_t>(word)]; bits; bits &= bits - 1) *out++ = word * 64 + __builtin_ctzll(bits);
}

int32_t find_top(Search *s, int64_t count, int64_t *top, int32_t threads) {
  const int64_t free = s->rows * s->cols - s->first[s->rows];
  uint32_t least = 0;
  const int64_t sampled = free / kSampled, share = count / kSampled;
  if (share >= 64 && count < free / 2) {  // aim at a fifth more than is wanted
    const std::vector<Found> some = search(s, static_cast<size_t>(std::min(share + share / 5, sampled)), 0, kSampled, threads);
    if (!some.empty()) least = std::max_element(some.begin(), some.end(), before)->size;
  }
  std::vector<Found> found = search(s, static_cast<size_t>(count), least, 1, threads);
  if (found.size() < static_cast<size_t>(count) && least) found = search(s, static_cast<size_t>(count), 0, 1, threads);
  if (found.size() != static_cast<size_t>(count)) return LD_BAD_ARGUMENT;
  for (const Found &f : found)
    if (f.size > kInfinity) return LD_NOT_A_NUMBER;  // NaN is larger than any number, so that it is among the largest
  ascending(found, s->rows * s->cols, top);
  return LD_OK;
}

}  // namespace

int32_t ld_sparse_top(int64_t rows, int64_t cols, const float *x, int64_t x_stride, const float *g, int64_t g_stride, int64_t batch,
                      const int64_t *excluded_positions, int64_t excluded_count, int64_t count, int64_t *top, int32_t threads) {
  int64_t size;
  if (rows < 0 || cols < 0 || batch < 0 || threads < 1 || excluded_count < 0 || count < 0 || __builtin_mul_overflow(rows, cols, &size))
    return LD_BAD_ARGUMENT;
  if ((excluded_count && !excluded_positions) || excluded_count > size || count > size - excluded_count) return LD_BAD_ARGUMENT;
  if (count == 0) return LD_OK;
  if (!top || (batch && (!x || !g || x_stride < cols || g_stride < rows))) return LD_BAD_ARGUMENT;
  try {
    std::vector<int64_t> first(static_cast<size_t>(rows) + 1);
    for (int64_t k = 0, r = 0; r <= rows; ++r) {
      for (; k < excluded_count && excluded_positions[k] < r * cols; ++k)
        if (excluded_positions[k] < 0 || (k && excluded_positions[k] <= excluded_positions[k - 1])) return LD_BAD_OFFSETS;
      first[static_cast<size_t>(r)] = k;
    }
    if (first[static_cast<size_t>(rows)] != excluded_count) return LD_BAD_OFFSETS;
    const int64_t row_blocks = (rows + LD_TOP_ROWS - 1) / LD_TOP_ROWS, column_blocks = (cols + LD_TOP_COLS - 1) / LD_TOP_COLS;
    std::vector<float> packed(static_cast<size_t>(row_blocks * batch * LD_TOP_ROWS));
    Regroup p = {rows, batch, g_stride, g, packed.data()};
    ld_parallel(threads, row_blocks, 8, regroup_some, &p);
    Search s = {ld_train_current(), rows, cols, batch, x, x_stride, packed.data(), excluded_positions, first.data(), 0, 0,
                column_blocks, row_blocks, 1, 0, false, {}, {}};
    if (size / kSparseBits <= excluded_count + count) {
      s.off.resize(static_cast<size_t>(size / 64 + 1));
      for (int64_t k = 0; k < excluded_count; ++k)
        s.off[static_cast<size_t>(excluded_positions[k] / 64)] |= uint64_t{1} << (excluded_positions[k] % 64);
    }
    return find_top(&s, count, top, threads);
  } catch (const std::bad_alloc &) {
    return LD_NO_MEMORY;
  }
}
