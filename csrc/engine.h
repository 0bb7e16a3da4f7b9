/* What decode.cpp sets up and step.cpp runs. Internal. */
#ifndef LOWDIM_ENGINE_H
#define LOWDIM_ENGINE_H

#include "kernels.h"
#include "steps.h"

constexpr int64_t kGroups = 8;                          // of LD_MAX_TOKENS tokens, that share one trip through the weights
constexpr int64_t kCapacity = kGroups * LD_MAX_TOKENS;  // tokens of one pass
constexpr int64_t kForms = 3;                           // in which q, k and v may want their input
constexpr int64_t kParts = 16;                          // stretches that the positions of a sequence are shared out in, at most
constexpr uint64_t kPasses = uint64_t{1} << 24;         // numbers that tell passes apart
constexpr int64_t kLine = 64;                           // bytes that a processor's core owns at a time
constexpr int64_t kPage = 4096;                         // bytes that the cache takes at a time

// A counter that has a cache line to itself.
struct Counter {
  alignas(kLine) uint64_t value;
};

// What one thread keeps to itself.
struct Private {
  float *normed;  // [LD_MAX_TOKENS, hidden]
  char *inputs;   // [kForms, input_bytes]
  float *q;       // [heads of a key-value head, stride]
  float *key;     // [stride]
  float *scores;  // [heads of a key-value head, LD_STRETCH]
  Counter *taken; // [phases]: chunks of this thread's part that are taken, see step.cpp
};

struct ld_engine {
  ld_model m;  // m.layer is a copy
  int64_t stride, q_width, kv_width;  // elements of a cache row; of all heads' queries, keys
  int64_t row_bytes, scales;           // of a row of the cache: its numbers, how many scales it has
  int64_t scales_at, stripe_bytes;     // of a head's rows, and with the scales behind them
  int64_t spread;       // elements of a row that are spread over each other, 1: none
  int64_t input_bytes;  // prepared input of any product, LD_MAX_TOKENS tokens
  int32_t most_threads; // for which there is work enough
  char *cache;
  int64_t cache_bytes;

  void *memory;  // that the arrays below lie in, all for kCapacity tokens
  float *x, *y;                  // [hidden]
  float *q, *attended;           // [q_width]
  float *k, *v;                  // [kv_width]
  float *gate, *up;              // [intermediate]
  float *sums, *most, *mass;     // [heads, kParts, stride], [heads, kParts], [heads, kParts]
  int32_t *finished;             // [kv_heads]: stretches of this layer that are done
  char *inputs;                  // [kForms, kGroups, input_bytes], without the token dimension
  int64_t *done;                 // [phases]: chunks that are done
  int64_t phases;                // that a pass has at most
  Counter phase;                 // that is under way
  uint64_t pass;                 // number of the pass

  Private *threads;
  int32_t thread_count;
};

// One pass.
struct Step {
  ld_engine *engine;
  const ld_kernels *kernels;
  const ld_steps *steps;
  int64_t n, first;  // tokens, and the first of those whose logits are wanted
  const int32_t *slots, *positions;
  float *logits;
  int64_t logits_stride;
  bool repeats;  // a sequence takes several tokens
};

// Positions [begin, end) that the token's query sees in a layer, in stretches of `size`.
struct View {
  int64_t begin, end, size, parts;
};

// Where a row of keys (which = 0) or values (1) lies in the cache; of its scales there are some where there are codes.
struct Place {
  char *row;
  uint16_t *scales;
};

inline Place place_of(const ld_engine &e, int32_t which, int64_t layer, int64_t slot, int64_t head, int64_t position) {
  const int64_t sequence = (which * e.m.layers + layer) * e.m.slots + slot;
  char *const stripe = e.cache + (sequence * e.m.kv_heads + head) * e.stripe_bytes;
  return {stripe + position * e.row_bytes, reinterpret_cast<uint16_t *>(stripe + e.scales_at) + position * e.scales};
}

inline int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// Of all threads; what they wait for each other at.
void ld_run_step(void *step, int32_t member, int32_t members);

#endif
