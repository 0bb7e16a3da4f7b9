// The cache of keys and values, and steps over it, for a build with AddressSanitizer and UndefinedBehaviorSanitizer: random small models,
// rows of numbers and of any bits at all, in every kind of cache. Every array has exactly the size that decode.h states.
//
//   fuzz_cache LEVEL [ROUNDS [SEED]]      returns 77 where this processor or this build lacks the level

#include "decode.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

namespace {

std::mt19937_64 random_bits;

int64_t below(int64_t limit) { return static_cast<int64_t>(random_bits() % static_cast<uint64_t>(limit)); }
bool once_in(int64_t times) { return below(times) == 0; }

// Exactly as many as asked for.
struct Floats {
  std::unique_ptr<float[]> at;
  int64_t size;
  explicit Floats(int64_t count, bool sound = true) : at(new float[static_cast<size_t>(count)]), size(count) {
    const float scale = std::pow(10.0f, static_cast<float>(below(11) - 5));
    for (int64_t i = 0; i < count; ++i) at[i] = sound ? scale * std::normal_distribution<float>()(random_bits) : any();
  }
  static float any() {
    const uint32_t bits = static_cast<uint32_t>(random_bits());
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }
};

struct Model {
  ld_model m = {};
  ld_layer layer = {};
  std::vector<Floats> held;

  const float *floats(int64_t count) {
    held.emplace_back(count);
    return held.back().at.get();
  }
  ld_matrix matrix(int64_t rows, int64_t cols) {
    ld_matrix w = {};
    w.kind = LD_FP32;
    w.rows = rows;
    w.cols = cols;
    w.mask_words = (cols + 63) / 64;
    w.values = floats(rows * cols);
    w.value_bytes = 4 * rows * cols;
    return w;
  }

  Model() {
    held.reserve(32);
    const int32_t sizes[] = {1, 2, 7, 16, 20, 32, 64, 80, 96, 128};
    m.layers = 1;
    m.kv_heads = static_cast<int32_t>(1 + below(2));
    m.heads = m.kv_heads * static_cast<int32_t>(1 + below(5));
    m.head_dim = sizes[below(10)];
    m.rotary_dim = once_in(2) ? 0 : m.head_dim / 2 * 2;
    m.cache_kind = static_cast<int32_t>(below(4));
    m.hidden = 1 + below(20);
    m.intermediate = 1 + below(20);
    m.vocab = 5;
    m.slots = 1 + below(3);
    m.positions = 1 + below(300);
    m.norm_eps = 1e-5f;
    m.embedding_scale = m.attention_scale = m.residual_scale = 1.0f;
    m.embedding = floats(m.vocab * m.hidden);
    m.cos = floats(m.positions * (m.rotary_dim / 2));
    m.sin = floats(m.positions * (m.rotary_dim / 2));
    m.final_norm = floats(m.hidden);
    const int64_t q = int64_t{m.heads} * m.head_dim, kv = int64_t{m.kv_heads} * m.head_dim;
    layer.q = matrix(q, m.hidden);
    layer.k = matrix(kv, m.hidden);
    layer.v = matrix(kv, m.hidden);
    layer.o = matrix(m.hidden, q);
    layer.gate = matrix(m.intermediate, m.hidden);
    layer.up = matrix(m.intermediate, m.hidden);
    layer.down = matrix(m.hidden, m.intermediate);
    layer.attention_norm = layer.mlp_norm = floats(m.hidden);
    layer.rotary = 1;
    layer.window = static_cast<int32_t>(once_in(2) ? 0 : 1 + below(200));
    m.layer = &layer;
    m.head = matrix(1 + below(9), m.hidden);
  }
};

// The farthest that a row may come back from where it was, of its largest magnitude.
float allowed(int32_t kind) { return kind == LD_FP32 ? 0.0f : kind == LD_BF16 ? 0.004f : kind == LD_INT8 ? 0.0041f : 0.6f; }

bool near(const ld_model &m, const Floats &x, const Floats &y) {
  for (int64_t row = 0; row < x.size; row += m.head_dim) {
    float most = 0.0f, off = 0.0f;
    for (int64_t i = row; i < row + m.head_dim; ++i) {
      most = std::fmax(most, std::fabs(x.at[i]));
      off = std::fmax(off, std::fabs(x.at[i] - y.at[i]));
    }
    if (!(off <= allowed(m.cache_kind) * most)) return false;
  }
  return true;
}

bool use(const Model &model) {
  const ld_model &m = model.m;
  ld_engine *engine = nullptr;
  if (ld_engine_new(&m, &engine) != LD_OK) return false;
  const std::unique_ptr<ld_engine, void (*)(ld_engine *)> owner(engine, ld_engine_free);
  const int64_t slot = below(m.slots), at = below(m.positions), n = below(m.positions - at + 1);
  const int32_t threads = static_cast<int32_t>(1 + below(3));
  const int64_t size = m.kv_heads * n * m.head_dim;
  const bool sound = !once_in(3);
  const Floats k(size, sound), v(size, sound);
  Floats k_back(size), v_back(size);
  if (ld_engine_write(engine, slot, 0, at, n, k.at.get(), v.at.get(), threads) != LD_OK) return false;
  if (ld_engine_read(engine, slot, 0, at, n, k_back.at.get(), v_back.at.get(), threads) != LD_OK) return false;
  if (sound && !(near(m, k, k_back) && near(m, v, v_back))) return false;
  for (const int64_t beyond : {m.positions - at + 1, int64_t{-1}, INT64_MAX})
    if (ld_engine_write(engine, slot, 0, at, beyond, k.at.get(), v.at.get(), 1) == LD_OK) return false;
  const int64_t tokens = 1 + below(m.positions < 20 ? m.positions : 20), begin = below(m.positions - tokens + 1);
  std::vector<int32_t> slots(static_cast<size_t>(tokens), static_cast<int32_t>(slot)), ids, positions;
  for (int64_t i = 0; i < tokens; ++i) {
    ids.push_back(static_cast<int32_t>(below(m.vocab)));
    positions.push_back(static_cast<int32_t>(begin + i));
  }
  Floats logits(tokens * m.head.rows);
  if (ld_engine_step(engine, tokens, slots.data(), ids.data(), positions.data(), 0, logits.at.get(), m.head.rows, threads) != LD_OK) return false;
  ld_engine_forget(engine, slot);
  return ld_engine_read(engine, slot, 0, at, n, k_back.at.get(), v_back.at.get(), threads) == LD_OK;
}

}  // namespace

int main(int count, char **arguments) {
  if (count < 2 || !ld_level(arguments[1])) return 77;
  const int64_t rounds = count > 2 ? std::atoll(arguments[2]) : 3000;
  random_bits.seed(count > 3 ? static_cast<uint64_t>(std::atoll(arguments[3])) : 1);
  for (int64_t i = 0; i < rounds; ++i) {
    const Model model;
    if (!use(model)) {
      std::fprintf(stderr, "round %lld: head_dim %d, %lld positions, cache of kind %d fails\n", static_cast<long long>(i), model.m.head_dim,
                   static_cast<long long>(model.m.positions), model.m.cache_kind);
      return 1;
    }
  }
  std::printf("%s: %lld models\n", arguments[1], static_cast<long long>(rounds));
  return 0;
}
