/* The C ABI of whole-step decoding: all layers of a Llama-like model for one token of each of some sequences, in one call.
 *
 *   x = embedding[token] * embedding_scale
 *   each layer:  h = norm(x);  q, k, v = W h;  norm and rotate q and k per head;  append k and v to the cache
 *                x += residual_scale * Wo attention(q, keys, values)
 *                h = norm(x);  x += residual_scale * Wd (act(Wg h) * (Wu h))
 *   logits = W norm(x)
 *
 * All of it in fp32, but for the activations of a product, which take the kind of its weight (lowdim.h), and the cache. What does
 * not depend on a token is folded into the weights before (Gemma's 1 + w, say). Nothing here is checked for damage but sizes:
 * every matrix has to have passed ld_check.
 */
#ifndef LOWDIM_DECODE_H
#define LOWDIM_DECODE_H

#include "lowdim.h"

#ifdef __cplusplus
extern "C" {
#endif

enum ld_activation { LD_SILU = 0, LD_GELU_TANH = 1, LD_GELU = 2 };

typedef struct ld_layer {
  ld_matrix q, k, v, o, gate, up, down;
  const float *attention_norm, *mlp_norm; /* [hidden] */
  const float *q_norm, *k_norm;           /* [head_dim], or NULL */
  int32_t rotary;                         /* 0: q and k stay as they are, whatever their position */
  int32_t window;                         /* keys that a query sees, its own included; 0: all */
} ld_layer;

typedef struct ld_model {
  int32_t layers, heads, kv_heads, head_dim;
  int32_t rotary_dim;     /* even; of each head its first rotary_dim elements turn, element i with i + rotary_dim / 2 */
  int32_t activation;     /* enum ld_activation */
  int32_t embedding_kind; /* LD_FP32 or LD_BF16 */
  int32_t cache_kind;     /* LD_FP32 or LD_BF16 */
  int64_t hidden, intermediate, vocab; /* vocab: rows of the embedding */
  int64_t slots, positions;            /* sequences, and tokens that each may hold */
  float norm_eps, embedding_scale, attention_scale, residual_scale;
  const void *embedding;    /* [vocab, hidden] */
  const float *cos, *sin;   /* [positions, rotary_dim / 2]; read at a position when it is first stepped */
  const float *final_norm;  /* [hidden] */
  const ld_layer *layer;    /* [layers] */
  ld_matrix head;           /* [any number of rows, hidden] */
} ld_model;

typedef struct ld_engine ld_engine;

/* The structs are copied, what they point to is not. On failure *engine is NULL. */
LD_API int32_t ld_engine_new(const ld_model *model, ld_engine **engine);
LD_API void ld_engine_free(ld_engine *engine);

/* The cache: [2 (keys, values), layers, slots, kv_heads, positions, stride] elements of cache_kind, stride being head_dim rounded up
 * to 16; what lies beyond head_dim stays zero. Keys are rotated. Memory that was never written takes none. */
LD_API void *ld_engine_cache(ld_engine *engine, int64_t *bytes, int64_t *stride);
/* Give the memory of a slot's cache back. */
LD_API void ld_engine_forget(ld_engine *engine, int64_t slot);

/* Append tokens[i] to sequence slots[i] at positions[i], i < n; a sequence may take several tokens, in order of position, if what lies
 * before them is in the cache or among them. Logits of tokens [first, n) go to logits, fp32, `stride` elements from one token to the
 * next. `threads` >= 1: most to use. */
LD_API int32_t ld_engine_step(ld_engine *engine, int64_t n, const int32_t *slots, const int32_t *tokens, const int32_t *positions,
                              int64_t first, float *logits, int64_t stride, int32_t threads);

/* Draw a token: softmax(scores / temperature), of which the top_k best (0: all; ties with the last stay) and then the fewest with a
 * share of top_p (1: all) are kept; `draw` in [0, 1) picks among these in the order of their numbers. Returns -1 where the scores hold
 * NaN or infinity or no finite number, -2 for a bad argument, -3 without memory. */
LD_API int64_t ld_sample(const float *scores, int64_t count, float temperature, int64_t top_k, double top_p, double draw);

#ifdef __cplusplus
}
#endif
#endif
