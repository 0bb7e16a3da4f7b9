// The engine: checks, memory, and the split of a step into passes.

#include "engine.h"

#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

namespace {

constexpr int64_t kMostSize = int64_t{1} << 31;
constexpr int32_t kMostThreads = 1024;
constexpr int64_t kWorkPerThread = int64_t{1} << 16;  // weights of a phase, below which another thread costs more than it brings
constexpr int64_t kPhases = 10;                       // of a layer, at most

bool number(int32_t kind) { return kind == LD_FP32 || kind == LD_BF16; }
bool cached(int32_t kind) { return kind >= LD_FP32 && kind <= LD_INT4; }
bool sized(int64_t value) { return value > 0 && value <= kMostSize; }

bool shaped(const ld_matrix &m, int64_t rows, int64_t cols) {
  return m.rows == rows && m.cols == cols && (m.values || rows * cols == 0 || m.value_bytes == 0);
}

bool allowed(const ld_layer &l, const ld_model &m) {
  const int64_t q = int64_t{m.heads} * m.head_dim, kv = int64_t{m.kv_heads} * m.head_dim;
  return shaped(l.q, q, m.hidden) && shaped(l.k, kv, m.hidden) && shaped(l.v, kv, m.hidden) && shaped(l.o, m.hidden, q) &&
         shaped(l.gate, m.intermediate, m.hidden) && shaped(l.up, m.intermediate, m.hidden) &&
         shaped(l.down, m.hidden, m.intermediate) && l.attention_norm && l.mlp_norm && l.window >= 0;
}

bool allowed(const ld_model *m) {
  if (!m || m->layers < 1 || m->heads < 1 || m->kv_heads < 1 || m->heads % m->kv_heads || m->head_dim < 1) return false;
  if (!sized(m->hidden) || !sized(m->intermediate) || !sized(m->vocab) || !sized(m->slots) || !sized(m->positions)) return false;
  if (!sized(int64_t{m->heads} * m->head_dim) || m->rotary_dim < 0 || m->rotary_dim % 2 || m->rotary_dim > m->head_dim) return false;
  if (!number(m->embedding_kind) || !cached(m->cache_kind) || m->activation < LD_SILU || m->activation > LD_GELU) return false;
  if (!m->embedding || !m->final_norm || !m->layer || m->head.cols != m->hidden || m->head.rows < 1) return false;
  if (m->rotary_dim && !(m->cos && m->sin)) return false;
  for (int32_t l = 0; l < m->layers; ++l)
    if (!allowed(m->layer[l], *m)) return false;
  return true;
}

int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

int64_t most_input_bytes(const ld_model &m) {
  int64_t most = 0;
  const auto look = [&](const ld_matrix &w) {
    const int64_t bytes = ld_input_bytes(w.kind, w.group, LD_MAX_TOKENS, w.cols);
    most = bytes > most ? bytes : most;
  };
  for (int32_t i = 0; i < m.layers; ++i) {
    const ld_layer &l = m.layer[i];
    const ld_matrix *const all[] = {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down};
    for (const ld_matrix *w : all) look(*w);
  }
  look(m.head);
  return round_up(most, kLine);
}

// A piece of memory laid out field by field; the first time through, without memory, it only counts.
class Layout {
 public:
  explicit Layout(void *memory) : at_(static_cast<char *>(memory)) {}
  template <class T>
  void take(T **field, int64_t count) {
    if (at_) *field = reinterpret_cast<T *>(at_ + bytes_);
    bytes_ += round_up(count * static_cast<int64_t>(sizeof(T)), kLine);
  }
  int64_t bytes() const { return bytes_; }

 private:
  char *at_;
  int64_t bytes_ = 0;
};

int64_t place(ld_engine *e, void *memory) {
  const ld_model &m = e->m;
  Layout layout(memory);
  const int64_t parts = kCapacity * m.heads * kParts;
  layout.take(&e->x, kCapacity * m.hidden);
  layout.take(&e->y, kCapacity * m.hidden);
  layout.take(&e->q, kCapacity * e->q_width);
  layout.take(&e->attended, kCapacity * e->q_width);
  layout.take(&e->k, kCapacity * e->kv_width);
  layout.take(&e->v, kCapacity * e->kv_width);
  layout.take(&e->gate, kCapacity * m.intermediate);
  layout.take(&e->up, kCapacity * m.intermediate);
  layout.take(&e->sums, parts * e->stride);
  layout.take(&e->most, parts);
  layout.take(&e->mass, parts);
  layout.take(&e->finished, kCapacity * m.kv_heads);
  layout.take(&e->inputs, kForms * kGroups * e->input_bytes);
  layout.take(&e->done, e->phases);
  return layout.bytes();
}

int64_t place(const ld_engine *e, Private *own, void *memory) {
  const int64_t heads = e->m.heads / e->m.kv_heads;
  Layout layout(memory);
  layout.take(&own->normed, LD_MAX_TOKENS * e->m.hidden);
  layout.take(&own->inputs, kForms * e->input_bytes);
  layout.take(&own->q, heads * e->stride);
  layout.take(&own->key, e->stride);
  layout.take(&own->scores, heads * LD_STRETCH);
  layout.take(&own->taken, e->phases);
  return layout.bytes();
}

void *zeros(int64_t bytes) {
  void *memory = nullptr;
  if (posix_memalign(&memory, kLine, static_cast<size_t>(bytes)) != 0) return nullptr;
  std::memset(memory, 0, static_cast<size_t>(bytes));
  return memory;
}

// Address space that becomes memory a page at a time, as it is written. Huge pages would take far more than is written.
void *reserve(int64_t bytes) {
#if defined(__unix__) || defined(__APPLE__)
  void *const memory = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
#if defined(MADV_NOHUGEPAGE)
  madvise(memory, static_cast<size_t>(bytes), MADV_NOHUGEPAGE);
#endif
  return memory;
#else
  return std::calloc(1, static_cast<size_t>(bytes));
#endif
}

void give_back(void *memory, int64_t bytes) {
  if (!memory) return;
#if defined(__unix__) || defined(__APPLE__)
  munmap(memory, static_cast<size_t>(bytes));
#else
  (void)bytes;
  std::free(memory);
#endif
}

// The cache: [2 (keys, values), layers, slots, kv_heads] stripes, of whole pages: rows of all positions, and on pages of their own
// the scales. What of a row lies beyond head_dim stays zero.
bool lay_out_cache(ld_engine *e) {
  const ld_model &m = e->m;
  const int64_t bits = m.cache_kind == LD_FP32 ? 32 : m.cache_kind == LD_BF16 ? 16 : m.cache_kind == LD_INT8 ? 8 : 4;
  e->stride = round_up(m.head_dim, m.cache_kind == LD_INT4 ? 32 : 16);
  e->spread = m.cache_kind == LD_INT4 ? m.head_dim & -m.head_dim : 1;
  e->row_bytes = e->stride * bits / 8;
  e->scales = m.cache_kind == LD_INT8 ? 1 : m.cache_kind == LD_INT4 ? LD_SCALES * ceil_div(e->stride, LD_SCALED) : 0;
  e->scales_at = round_up(m.positions * e->row_bytes, kPage);
  e->stripe_bytes = e->scales_at + round_up(m.positions * e->scales * 2, kPage);
  return !__builtin_mul_overflow(e->stripe_bytes, 2 * int64_t{m.layers} * m.kv_heads, &e->cache_bytes) &&
         !__builtin_mul_overflow(e->cache_bytes, m.slots, &e->cache_bytes);
}

bool set_up(ld_engine *e, const ld_model *model) {
  e->m = *model;
  ld_layer *const layers = static_cast<ld_layer *>(std::calloc(static_cast<size_t>(model->layers), sizeof(ld_layer)));
  if (!layers) return false;
  std::memcpy(layers, model->layer, static_cast<size_t>(model->layers) * sizeof(ld_layer));
  e->m.layer = layers;
  if (!lay_out_cache(e)) return false;
  e->q_width = int64_t{model->heads} * model->head_dim;
  e->kv_width = int64_t{model->kv_heads} * model->head_dim;
  e->input_bytes = most_input_bytes(e->m);
  e->phases = kPhases * (int64_t{model->layers} + 1);
  const int64_t work = (e->q_width + e->kv_width + 2 * model->intermediate) * model->hidden / 3 / kWorkPerThread;
  e->most_threads = static_cast<int32_t>(work < 1 ? 1 : work < kMostThreads ? work : kMostThreads);

  e->memory = zeros(place(e, nullptr));
  if (!e->memory) return false;
  place(e, e->memory);

  e->cache = static_cast<char *>(reserve(e->cache_bytes + kPage));  // scales beyond the last are read, and not used
  return e->cache != nullptr;
}

// Workspace for each of some threads, made when they are first wanted.
bool equip(ld_engine *e, int32_t threads) {
  if (threads <= e->thread_count) return true;
  Private *const grown = static_cast<Private *>(std::realloc(e->threads, static_cast<size_t>(threads) * sizeof(Private)));
  if (!grown) return false;
  e->threads = grown;
  for (; e->thread_count < threads; ++e->thread_count) {
    Private *const own = grown + e->thread_count;
    void *const memory = zeros(place(e, own, nullptr));
    if (!memory) return false;
    place(e, own, memory);
  }
  return true;
}

bool in_range(const ld_model &m, int64_t n, const int32_t *slots, const int32_t *tokens, const int32_t *positions) {
  for (int64_t i = 0; i < n; ++i) {
    if (slots[i] < 0 || slots[i] >= m.slots || tokens[i] < 0 || tokens[i] >= m.vocab) return false;
    if (positions[i] < 0 || positions[i] >= m.positions) return false;
  }
  return true;
}

bool any_repeats(const int32_t *slots, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < i; ++j)
      if (slots[i] == slots[j]) return true;
  return false;
}

void begin_pass(ld_engine *e) {
  std::memset(e->done, 0, static_cast<size_t>(e->phases) * sizeof(int64_t));
  e->phase.value = 0;
  e->pass = (e->pass + 1) % kPasses;
  if (e->pass == 0)  // numbers are about to be used again
    for (int32_t i = 0; i < e->thread_count; ++i)
      std::memset(static_cast<void *>(e->threads[i].taken), 0, static_cast<size_t>(e->phases) * sizeof(Counter));
}

void embed(const ld_engine *e, const int32_t *tokens, int64_t n) {
  const ld_model &m = e->m;
  for (int64_t t = 0; t < n; ++t) {
    const int64_t from = tokens[t] * m.hidden;
    float *const x = e->x + t * m.hidden;
    for (int64_t c = 0; c < m.hidden; ++c) {
      float value;
      if (m.embedding_kind == LD_FP32) {
        value = static_cast<const float *>(m.embedding)[from + c];
      } else {
        const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t *>(m.embedding)[from + c]) << 16;
        std::memcpy(&value, &bits, 4);
      }
      x[c] = value * m.embedding_scale;
    }
  }
}

// Rows that go into the cache or come from it, [kv_heads, n, head_dim] of keys and of values.
struct Transfer {
  ld_engine *engine;
  const ld_steps *steps;
  int64_t slot, layer, at, n;
  const float *from[2];
  float *to[2];
};

bool holds(const ld_engine *e, int64_t slot, int64_t layer, int64_t at, int64_t n) {
  return e && slot >= 0 && slot < e->m.slots && layer >= 0 && layer < e->m.layers && at >= 0 && n >= 0 && at <= e->m.positions &&
         n <= e->m.positions - at;
}

// A thread's share of all rows: move(the place of one, where it lies outside, room for a row).
template <class Move>
void each_row(const Transfer &t, int32_t member, int32_t members, Move move) {
  const ld_model &m = t.engine->m;
  const int64_t rows = 2 * m.kv_heads * t.n;
  for (int64_t i = rows * member / members; i < rows * (member + 1) / members; ++i) {
    const int64_t which = i / (m.kv_heads * t.n), row = i % (m.kv_heads * t.n);
    move(place_of(*t.engine, static_cast<int32_t>(which), t.layer, t.slot, row / t.n, t.at + row % t.n), which, row * m.head_dim,
         t.engine->threads[member].key);
  }
}

void write_part(void *context, int32_t member, int32_t members) {
  const Transfer &t = *static_cast<const Transfer *>(context);
  const ld_engine &e = *t.engine;
  each_row(t, member, members, [&](const Place &place, int64_t which, int64_t at, float *row) {
    std::memcpy(row, t.from[which] + at, static_cast<size_t>(e.m.head_dim) * 4);
    if (e.spread > 1) t.steps->spread(row, e.m.head_dim, e.spread);
    t.steps->store(row, e.m.head_dim, e.m.cache_kind, place.row, place.scales);
  });
}

void read_part(void *context, int32_t member, int32_t members) {
  const Transfer &t = *static_cast<const Transfer *>(context);
  const ld_engine &e = *t.engine;
  each_row(t, member, members, [&](const Place &place, int64_t which, int64_t at, float *row) {
    t.steps->read(place.row, place.scales, e.stride, e.m.cache_kind, row);
    if (e.spread > 1) t.steps->spread(row, e.m.head_dim, e.spread);
    std::memcpy(t.to[which] + at, row, static_cast<size_t>(e.m.head_dim) * 4);
  });
}

// `given`: whether the arrays outside are there.
int32_t move_rows(Transfer t, bool given, int32_t threads, ld_member part) {
  ld_engine *const e = t.engine;
  if (!holds(e, t.slot, t.layer, t.at, t.n) || threads < 1 || (t.n && !given)) return LD_BAD_ARGUMENT;
  if (threads > e->most_threads) threads = e->most_threads;
  if (!equip(e, threads)) return LD_NO_MEMORY;
  ld_team(threads, part, &t);
  return LD_OK;
}

const ld_steps *const kSteps[] = {
#if defined(LD_HAVE_AVX512)
    &ld_steps_avx512,
#endif
#if defined(LD_HAVE_AVX2)
    &ld_steps_avx2,
#endif
#if defined(LD_HAVE_NEON)
    &ld_steps_neon,
#endif
};

}  // namespace

const ld_steps *ld_steps_current(void) {
  const char *const level = ld_current()->name;
  for (const ld_steps *steps : kSteps)
    if (std::strcmp(steps->name, level) == 0) return steps;
  return &ld_steps_portable;
}

int32_t ld_engine_new(const ld_model *model, ld_engine **engine) {
  if (!engine) return LD_BAD_ARGUMENT;
  *engine = nullptr;
  if (!allowed(model)) return LD_BAD_ARGUMENT;
  ld_engine *const e = new (std::nothrow) ld_engine();
  if (!e) return LD_NO_MEMORY;
  if (!set_up(e, model)) {
    ld_engine_free(e);
    return LD_NO_MEMORY;
  }
  *engine = e;
  return LD_OK;
}

void ld_engine_free(ld_engine *e) {
  if (!e) return;
  for (int32_t i = 0; i < e->thread_count; ++i) std::free(e->threads[i].normed);  // the first of its fields
  std::free(e->threads);
  std::free(e->memory);
  std::free(const_cast<ld_layer *>(e->m.layer));
  give_back(e->cache, e->cache_bytes + kPage);
  delete e;
}

int64_t ld_engine_bytes(const ld_engine *e, int64_t tokens) {
  const int64_t pages = round_up(tokens * e->row_bytes, kPage) + round_up(tokens * e->scales * 2, kPage);
  return 2 * int64_t{e->m.layers} * e->m.kv_heads * pages;
}

int32_t ld_engine_write(ld_engine *e, int64_t slot, int64_t layer, int64_t at, int64_t n, const float *k, const float *v, int32_t threads) {
  return move_rows({e, ld_steps_current(), slot, layer, at, n, {k, v}, {nullptr, nullptr}}, k && v, threads, write_part);
}

int32_t ld_engine_read(ld_engine *e, int64_t slot, int64_t layer, int64_t at, int64_t n, float *k, float *v, int32_t threads) {
  return move_rows({e, ld_steps_current(), slot, layer, at, n, {nullptr, nullptr}, {k, v}}, k && v, threads, read_part);
}

void ld_engine_forget(ld_engine *e, int64_t slot) {
#if defined(__linux__)
  if (slot < 0 || slot >= e->m.slots) return;
  const int64_t bytes = e->m.kv_heads * e->stripe_bytes;
  for (int64_t l = 0; l < 2 * int64_t{e->m.layers}; ++l)
    madvise(e->cache + (l * e->m.slots + slot) * bytes, static_cast<size_t>(bytes), MADV_DONTNEED);
#else
  (void)e;
  (void)slot;
#endif
}

int32_t ld_engine_step(ld_engine *e, int64_t n, const int32_t *slots, const int32_t *tokens, const int32_t *positions, int64_t first,
                       float *logits, int64_t stride, int32_t threads) {
  if (!e || n < 0 || first < 0 || threads < 1 || (n && !(slots && tokens && positions))) return LD_BAD_ARGUMENT;
  if (first < n && (!logits || (n - first > 1 && stride < e->m.head.rows))) return LD_BAD_ARGUMENT;
  if (!in_range(e->m, n, slots, tokens, positions)) return LD_BAD_ARGUMENT;
  if (threads > e->most_threads) threads = e->most_threads;
  if (!equip(e, threads)) return LD_NO_MEMORY;

  for (int64_t from = 0; from < n; from += kCapacity) {
    const int64_t some = n - from < kCapacity ? n - from : kCapacity, skip = first > from ? first - from : 0;
    Step step = {e, ld_current(), ld_steps_current(), some, skip < some ? skip : some, slots + from, positions + from,
                 logits, stride, any_repeats(slots + from, some)};
    if (logits && from > first) step.logits = logits + (from - first) * stride;
    embed(e, tokens + from, some);
    begin_pass(e);
    ld_team(threads, ld_run_step, &step);
  }
  return LD_OK;
}
