/* The C ABI of whole-step decoding: all layers of a Llama-like model for one token of each of some sequences, in one call.
 *
 *   x = embedding[token] * embedding_scale
 *   each layer:  h = norm(x);  q, k, v = W h;  norm and rotate q and k per head;  append k and v to the cache, and read them back
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
  int32_t cache_kind;     /* LD_FP32, LD_BF16, LD_INT8 or LD_INT4, see ld_engine_write */
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

/* Keys, rotated, and values [kv_heads, n, head_dim] of a layer at positions [at, at + n) of a slot, into its cache and out of it. `threads`
 * >= 1: most to use. What the cache holds of a row of head_dim elements:
 *   LD_FP32, LD_BF16   its numbers
 *   LD_INT8            codes in [-127, 127] and one scale, which bf16 holds: the largest magnitude / 127
 *   LD_INT4            codes in [-8, 7] of the row times H / sqrt(size), H being Sylvester's matrix of signs, on each `size` elements, the
 *                      largest power of two that divides head_dim. It spreads what one element has over all of them; queries are
 *                      multiplied by it too, and what attention gives once more, which undoes it. Of each 64 elements, every eighth
 *                      has the same scale, which bf16 holds: eight scales.
 * Zero is code 0. NaN or infinity makes all of its row NaN. */
LD_API int32_t ld_engine_write(ld_engine *engine, int64_t slot, int64_t layer, int64_t at, int64_t n, const float *k, const float *v,
                               int32_t threads);
LD_API int32_t ld_engine_read(ld_engine *engine, int64_t slot, int64_t layer, int64_t at, int64_t n, float *k, float *v, int32_t threads);
/* Bytes of memory that the cache of a sequence of so many tokens takes. Memory is taken a page at a time, as tokens come. */
LD_API int64_t ld_engine_bytes(const ld_engine *engine, int64_t tokens);
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
