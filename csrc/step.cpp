// One pass of all layers over up to kCapacity tokens, run by all threads of a team at once. Between phases they wait for each other;
// within one, whoever is free helps the others. What a phase reads is prepared by every thread for itself where tokens are few:
// that costs less than another wait.

#include "engine.h"

#include <cstring>

#if defined(__unix__) || defined(__APPLE__)
#include <sched.h>
#endif

namespace {

constexpr int kSpins = 4000;                 // before a waiting thread lets others run
constexpr int64_t kChunkWeights = 32 << 10;  // that make a chunk worth fetching
constexpr int64_t kRowUnit = 16;             // rows; their results fill cache lines of their own
constexpr int64_t kChunksPerThread = 16;
constexpr int64_t kLargestChunk = 512;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

inline void give_way() {
#if defined(__unix__) || defined(__APPLE__)
  sched_yield();
#endif
}

int64_t chunk_rows(const ld_matrix &m, int32_t members) {
  const int64_t worth = ceil_div(kChunkWeights, (m.cols ? m.cols : 1) * kRowUnit);
  const int64_t even = m.rows / (members * kChunksPerThread * kRowUnit);
  const int64_t units = even > worth ? even : worth;
  return (units * kRowUnit < kLargestChunk ? units * kRowUnit : kLargestChunk);
}

View view_of(const ld_layer &layer, int64_t position) {
  const int64_t end = position + 1, begin = layer.window && end > layer.window ? end - layer.window : 0;
  const int64_t size = LD_STRETCH * ceil_div(end - begin, LD_STRETCH * kParts);
  return {begin, end, size, ceil_div(end - begin, size)};
}

class Walker {
 public:
  Walker(const Step *step, int32_t member, int32_t members)
      : s_(*step), e_(*step->engine), m_(step->engine->m), own_(step->engine->threads[member]), member_(member), members_(members) {}

  void run() {
    for (int32_t l = 0; l < m_.layers; ++l) {
      project(l);
      if (s_.repeats) store_all(l);
      attend(l);
      mix(l);
    }
    finish();
  }

 private:
  // ---------------------------------------------------------------- phases

  void project(int32_t l) {
    const ld_layer &layer = m_.layer[l];
    const ld_matrix *const all[3] = {&layer.q, &layer.k, &layer.v};
    float *const out[3] = {e_.q, e_.k, e_.v};
    prepare(e_.x, m_.hidden, layer.attention_norm, 0, all, 3);
    int64_t chunk[3], from[4] = {0, 0, 0, 0};
    for (int i = 0; i < 3; ++i) {
      chunk[i] = chunk_rows(*all[i], members_);
      from[i + 1] = from[i] + ceil_div(all[i]->rows, chunk[i]);
    }
    share(from[3], [&](int64_t c) {
      const int i = c >= from[2] ? 2 : c >= from[1] ? 1 : 0;
      multiply(*all[i], (c - from[i]) * chunk[i], chunk[i], out[i], all[i]->rows);
    });
  }

  void store_all(int32_t l) {
    share(s_.n * m_.kv_heads, [&](int64_t unit) { store(l, unit / m_.kv_heads, unit % m_.kv_heads); });
  }

  void attend(int32_t l) {
    int64_t units = 0;
    for (int64_t t = 0; t < s_.n; ++t) units += view_of(m_.layer[l], s_.positions[t]).parts * m_.kv_heads;
    share(units, [&](int64_t unit) {
      int64_t t = 0;
      View view = view_of(m_.layer[l], s_.positions[0]);
      for (; unit >= view.parts * m_.kv_heads; view = view_of(m_.layer[l], s_.positions[t])) {
        unit -= view.parts * m_.kv_heads;
        ++t;
      }
      attend_part(l, t, unit / view.parts, unit % view.parts, view);
    });
  }

  void mix(int32_t l) {
    const ld_layer &layer = m_.layer[l];
    const ld_matrix *o = &layer.o, *down = &layer.down;
    prepare(e_.attended, e_.q_width, nullptr, 0, &o, 1);
    add_product(*o);

    const ld_matrix *const both[2] = {&layer.gate, &layer.up};
    prepare(e_.x, m_.hidden, layer.mlp_norm, 0, both, 2);
    const int64_t chunk = chunk_rows(layer.gate, members_);
    share(ceil_div(m_.intermediate, chunk), [&](int64_t c) {
      const int64_t begin = c * chunk, count = multiply(layer.gate, begin, chunk, e_.gate, m_.intermediate);
      multiply(layer.up, begin, chunk, e_.up, m_.intermediate);
      for (int64_t t = 0; t < s_.n; ++t) {
        const int64_t at = t * m_.intermediate + begin;
        s_.steps->activate(e_.gate + at, e_.up + at, count, m_.activation);
      }
    });

    prepare(e_.gate, m_.intermediate, nullptr, 0, &down, 1);
    add_product(*down);
  }

  void finish() {
    const ld_matrix *const head = &m_.head;
    if (s_.first >= s_.n) return;
    prepare(e_.x, m_.hidden, m_.final_norm, s_.first, &head, 1);
    const int64_t chunk = chunk_rows(*head, members_);
    share(ceil_div(head->rows, chunk), [&](int64_t c) { multiply(*head, c * chunk, chunk, s_.logits, s_.logits_stride); });
  }

  // ---------------------------------------------------------------- attention

  void turn(const ld_layer &layer, int64_t t, const float *norm, float *head) const {
    if (norm) s_.steps->norm(head, norm, m_.norm_eps, m_.head_dim, head);
    const int64_t half = m_.rotary_dim / 2, at = s_.positions[t] * half;
    if (layer.rotary) s_.steps->rotate(head, m_.cos + at, m_.sin + at, half);
  }

  void store(int32_t l, int64_t t, int64_t head) const {
    const ld_layer &layer = m_.layer[l];
    const int64_t from = t * e_.kv_width + head * m_.head_dim, position = s_.positions[t];
    std::memcpy(own_.key, e_.k + from, static_cast<size_t>(m_.head_dim) * 4);
    turn(layer, t, layer.k_norm, own_.key);
    keep(place_of(e_, 0, l, s_.slots[t], head, position));
    std::memcpy(own_.key, e_.v + from, static_cast<size_t>(m_.head_dim) * 4);
    keep(place_of(e_, 1, l, s_.slots[t], head, position));
  }

  void keep(const Place &to) const {
    spread(own_.key);
    s_.steps->store(own_.key, m_.head_dim, m_.cache_kind, to.row, to.scales);
  }

  void spread(float *head) const {
    if (e_.spread > 1) s_.steps->spread(head, m_.head_dim, e_.spread);
  }

  void attend_part(int32_t l, int64_t t, int64_t head, int64_t part, const View &view) const {
    const int64_t heads = m_.heads / m_.kv_heads, unit = t * m_.kv_heads + head;
    if (part == view.parts - 1 && !s_.repeats) store(l, t, head);
    query(m_.layer[l], t, head * heads, heads);
    const int64_t begin = view.begin + part * view.size, end = begin + view.size;
    const int64_t at = (unit * kParts + part) * heads, origin = unit * kParts * heads;
    const Place k = place_of(e_, 0, l, s_.slots[t], head, 0), v = place_of(e_, 1, l, s_.slots[t], head, 0);
    const ld_attend work = {own_.q, heads, e_.stride, m_.cache_kind, k.row, v.row, k.scales, v.scales, e_.scales,
                            begin, end < view.end ? end : view.end, own_.scores, e_.sums + at * e_.stride, e_.most + at,
                            e_.mass + at};
    s_.steps->attend(&work);
    if (__atomic_add_fetch(e_.finished + unit, 1, __ATOMIC_ACQ_REL) < view.parts) return;
    __atomic_store_n(e_.finished + unit, 0, __ATOMIC_RELAXED);
    for (int64_t h = 0; h < heads; ++h) {
      float *const out = e_.attended + t * e_.q_width + (head * heads + h) * m_.head_dim;
      s_.steps->merge(e_.sums + (origin + h) * e_.stride, e_.most + origin + h, e_.mass + origin + h, view.parts, heads, e_.stride,
                      m_.head_dim, out);
      spread(out);
    }
  }

  // Queries [first, first + heads) of a token, rotated and scaled.
  void query(const ld_layer &layer, int64_t t, int64_t first, int64_t heads) const {
    for (int64_t h = 0; h < heads; ++h) {
      float *const q = own_.q + h * e_.stride;
      std::memcpy(q, e_.q + t * e_.q_width + (first + h) * m_.head_dim, static_cast<size_t>(m_.head_dim) * 4);
      turn(layer, t, layer.q_norm, q);
      spread(q);
      for (int64_t d = 0; d < m_.head_dim; ++d) q[d] *= m_.attention_scale;
    }
  }

  // ---------------------------------------------------------------- products

  // Inputs of `count` products from x [tokens from `first` on, width], normed if there is a weight for that.
  void prepare(const float *x, int64_t width, const float *norm, int64_t first, const ld_matrix *const *products, int count) {
    x += first * width;
    tokens_ = s_.n - first;
    forms_ = 0;
    for (int i = 0; i < count; ++i) {
      int f = 0;
      while (f < forms_ && (in_[f][0].kind != products[i]->kind || in_[f][0].group != products[i]->group)) ++f;
      if (f < forms_) continue;
      for (int64_t g = 0; g < groups(); ++g) {
        char *const at = groups() == 1 ? own_.inputs + f * e_.input_bytes : e_.inputs + (f * kGroups + g) * e_.input_bytes;
        ld_input_place(&in_[f][g], products[i]->kind, products[i]->group, group_tokens(g), width, at);
      }
      ++forms_;
    }
    if (groups() > 1)
      share(groups(), [&](int64_t g) { prepare_group(x, width, norm, g); });
    else if (!behind(phase_))
      prepare_group(x, width, norm, 0);
  }

  void prepare_group(const float *x, int64_t width, const float *norm, int64_t g) {
    const float *from = x + g * LD_MAX_TOKENS * width;
    if (norm) {
      for (int32_t t = 0; t < group_tokens(g); ++t) s_.steps->norm(from + t * width, norm, m_.norm_eps, width, own_.normed + t * width);
      from = own_.normed;
    }
    for (int f = 0; f < forms_; ++f) s_.kernels->prepare(from, width, &in_[f][g]);
  }

  // Rows [begin, begin + count) of the product with what was prepared; returns how many there are.
  int64_t multiply(const ld_matrix &m, int64_t begin, int64_t count, float *y, int64_t y_stride) const {
    const int64_t end = begin + count < m.rows ? begin + count : m.rows;
    int f = 0;
    while (in_[f][0].kind != m.kind || in_[f][0].group != m.group) ++f;
    for (int64_t g = 0; g < groups(); ++g) s_.kernels->rows(&m, &in_[f][g], begin, end, y + g * LD_MAX_TOKENS * y_stride, y_stride);
    return end - begin;
  }

  void add_product(const ld_matrix &m) {
    const int64_t chunk = chunk_rows(m, members_);
    share(ceil_div(m.rows, chunk), [&](int64_t c) {
      const int64_t count = multiply(m, c * chunk, chunk, e_.y, m_.hidden);
      for (int64_t t = 0; t < s_.n; ++t) {
        const int64_t at = t * m_.hidden + c * chunk;
        s_.steps->add(e_.x + at, e_.y + at, m_.residual_scale, count);
      }
    });
  }

  int64_t groups() const { return ceil_div(tokens_, LD_MAX_TOKENS); }
  int32_t group_tokens(int64_t g) const {
    const int64_t left = tokens_ - g * LD_MAX_TOKENS;
    return static_cast<int32_t>(left < LD_MAX_TOKENS ? left : LD_MAX_TOKENS);
  }

  // ---------------------------------------------------------------- threads

  // Call work(i) for each i in [0, total); return when all have returned. Each thread takes a contiguous part, whose weights it reads
  // in one long stream, and then from the ends of the others' parts. What is waited for is the work, not the threads: one that the
  // system has taken off its processor holds the others up only where it has a chunk in its hands.
  template <class Work>
  void share(int64_t total, Work work) {
    const int64_t phase = phase_++;
    if (members_ == 1) {
      for (int64_t i = 0; i < total; ++i) work(i);
      return;
    }
    int64_t mine = 0;
    for (int32_t i = 0; i < members_ && !behind(phase); ++i) {
      const int32_t from = (member_ + i) % members_;
      const int64_t begin = total * from / members_, count = total * (from + 1) / members_ - begin;
      for (int64_t at; (at = take(&e_.threads[from].taken[phase], count, i == 0)) >= 0; ++mine) work(begin + at);
    }
    if (mine && __atomic_add_fetch(&e_.done[phase], mine, __ATOMIC_ACQ_REL) == total)
      __atomic_store_n(&e_.phase.value, static_cast<uint64_t>(phase + 1), __ATOMIC_RELEASE);
    else if (total)
      wait(phase);
  }

  // Whether the others have finished a phase: then what it reads may have changed, and nothing of it is left to do.
  bool behind(int64_t phase) const { return __atomic_load_n(&e_.phase.value, __ATOMIC_ACQUIRE) > static_cast<uint64_t>(phase); }

  // A counter holds the number of its pass, what others took from the end and what its thread took from the front.
  int64_t take(Counter *taken, int64_t count, bool own) const {
    constexpr int kBits = 20;
    constexpr uint64_t kMask = (uint64_t{1} << kBits) - 1;
    uint64_t seen = __atomic_load_n(&taken->value, __ATOMIC_RELAXED);
    for (;;) {
      const uint64_t now = seen >> 2 * kBits == e_.pass ? seen : e_.pass << 2 * kBits;
      const int64_t front = static_cast<int64_t>(now & kMask), end = static_cast<int64_t>(now >> kBits & kMask);
      if (front + end >= count) return -1;
      const uint64_t more = now + (own ? 1 : uint64_t{1} << kBits);
      if (__atomic_compare_exchange_n(&taken->value, &seen, more, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        return own ? front : count - 1 - end;
    }
  }

  void wait(int64_t phase) const {
    for (int spins = 0; !behind(phase); ++spins) {
      if (spins < kSpins)
        relax();
      else
        give_way();
    }
  }

  const Step &s_;
  ld_engine &e_;
  const ld_model &m_;
  const Private &own_;
  const int32_t member_, members_;
  int64_t phase_ = 0, tokens_ = 0;
  int forms_ = 0;
  ld_input in_[kForms][kGroups];
};

}  // namespace

void ld_run_step(void *step, int32_t member, int32_t members) { Walker(static_cast<const Step *>(step), member, members).run(); }
