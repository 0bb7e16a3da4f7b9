/* The C ABI of lowdim's CPU kernels: plain C types, no torch and no Python. Loaded with ctypes.
 *
 * A matrix is dense, or a bitmask with packed values. Word c of a row's mask covers columns 64 c .. 64 c + 63, least
 * bit first; a set bit is a stored value. Values follow one another in row order without padding. Kernels never read
 * beyond `value_bytes`, so that a matrix may lie at the very end of a mapped file.
 *
 *   LD_FP32, LD_BF16   the values themselves
 *   LD_INT8            codes in [-127, 127]; value = code * scale of the (row, group of columns)
 *   LD_INT4            indices into `table`; value = table[index] * scale. Rows go in pairs: one byte holds the i-th
 *                      index of row 2k in its low half and the i-th index of row 2k + 1 in its high half. A pair takes
 *                      as many bytes as the fuller of its rows has values; an odd last row has empty high halves.
 *   LD_INT3            indices into the first 8 entries of `table`, dense only. Rows go in blocks of eight, columns in words of 64,
 *                      the last of either filled up: 192 bytes a word, word after word. These are three runs A, B, C of 64 bytes,
 *                      a byte for each column. Bits 0-2 and 3-5 hold the indices of rows 0 and 1 (A), 2 and 3 (B), 4 and 5 (C); bits
 *                      6-7 of A the low bits of row 6, those of B of row 7; bit 6 of C the high bit of row 6, bit 7 of row 7.
 *
 * LD_EIGHTS and LD_FOURS, layouts of their own for LD_BF16, LD_INT8 and LD_INT4: every 16 columns of a row, aligned, store N = 8 or 4 values
 * (8:16, 4:8 and 2:4; 4:16, 2:8 and 1:4) and which columns they are of, in ascending order. `cols` is a multiple of 16. Rows go in pairs,
 * columns in stretches of 64 * 16 / N (128 or 256), the last of either filled up with zeros; a record for each pair and stretch, stretch
 * after stretch, holds:
 *   32 bytes    the columns, within their 16, of the 64 values of row 2k: of value i in the low half of byte i for i < 32, and in the high
 *               half of byte i - 32 for the others
 *   32 bytes    the same of row 2k + 1
 *   the values  64 of row 2k, then 64 of row 2k + 1; LD_INT4: 64 bytes, the i-th value of row 2k in the low half of byte i, that of row
 *               2k + 1 in its high half
 * Value j of group g of 16 columns is value N g + j of LD_BF16. Of codes it is value 16 (g % 4) + 4 (16 / N * (j / 4) + g / 4) + j % 4: where
 * 64 columns fill a register, 16 bytes of values are all of the same 16 bytes of registers.
 * A zero that fills up N values belongs to a column that is not kept. Infinity and NaN in columns that a row does not keep do not
 * reach its result, as they do in the other layouts.
 *
 * Activations take the kind of the values: fp32; rounded to bf16; or int8 with one scale per group of columns and
 * token (INT8, INT4, INT3). Sums are fp32 (of codes: exact int32 within a group).
 */
#ifndef LOWDIM_H
#define LOWDIM_H

#include <stdint.h>

#if defined(_WIN32)
#define LD_API __declspec(dllexport)
#else
#define LD_API __attribute__((visibility("default")))
#endif

#define LD_ABI_VERSION 6
#define LD_MAX_TOKENS 8 /* that one pass over the weights serves */

#ifdef __cplusplus
extern "C" {
#endif

enum ld_kind { LD_FP32 = 0, LD_BF16 = 1, LD_INT8 = 2, LD_INT4 = 3, LD_INT3 = 4 };

enum ld_layout { LD_ROWS = 0, LD_FOURS = 4, LD_EIGHTS = 8 };

enum ld_status {
  LD_OK = 0,
  LD_BAD_ARGUMENT = 1,   /* kind, group, a size or a null pointer that the format does not allow */
  LD_BAD_MASK = 2,       /* bits set beyond the last column */
  LD_BAD_OFFSETS = 3,    /* row_ptr disagrees with the mask */
  LD_BAD_SIZE = 4,       /* value_bytes disagrees with the mask or the shape */
  LD_NO_MEMORY = 5,
  LD_NOT_A_NUMBER = 6,   /* NaN where numbers are to be compared */
  LD_BAD_PLACES = 7,     /* LD_EIGHTS, LD_FOURS: columns that do not ascend */
  LD_NO_FIT = 8          /* a mask that the layout cannot hold */
};

typedef struct ld_matrix {
  int32_t kind;            /* enum ld_kind */
  int32_t group;           /* columns per scale: 64 or 128 (codes); else 0 */
  int64_t rows, cols;
  const uint64_t *mask;    /* [rows, mask_words]; NULL: dense, row-major [rows, cols] (LD_INT4: [ceil(rows/2), cols] bytes;
                            * LD_INT3, for which it is NULL: [ceil(rows/8), ceil(cols/64), 192] bytes) */
  int64_t mask_words;      /* words from one row to the next, >= ceil(cols / 64) */
  const void *values;
  int64_t value_bytes;     /* readable bytes at `values` */
  const int64_t *row_ptr;  /* byte at which a row's values begin, [rows + 1]; LD_INT4: a pair's, [ceil(rows/2) + 1]; dense: NULL */
  const uint16_t *scales;  /* bf16 [rows, ceil(cols / group)] (codes); else NULL */
  const int8_t *table;     /* [16] (LD_INT4), [8] (LD_INT3); else NULL */
  const float *bias;       /* [rows] or NULL */
  int32_t layout;          /* enum ld_layout; all but LD_ROWS have neither mask nor row_ptr */
} ld_matrix;

LD_API int32_t ld_abi_version(void);

/* Name of the instruction set in use: "avx512", "avx2", "neon" or "portable". `wanted`: one of these, or NULL for the best
 * that is compiled in and that the processor has. Returns NULL, and changes nothing, where `wanted` is neither. */
LD_API const char *ld_level(const char *wanted);
/* The levels that are compiled in and that this processor runs, best first, separated by spaces. */
LD_API const char *ld_levels(void);
/* The compiler that built the library, and whether it runs threads ("gcc 12.2.0, OpenMP"). */
LD_API const char *ld_build(void);
LD_API const char *ld_message(int32_t status);

/* Fill row_ptr (see ld_matrix) from a mask; returns the bytes that the values take, or -1 for a bad argument. */
LD_API int64_t ld_row_ptr(int32_t kind, int64_t rows, int64_t cols, const uint64_t *mask, int64_t mask_words, int64_t *row_ptr);

/* Bytes that the values take in the layout LD_EIGHTS or LD_FOURS, or -1 where the kind or the size does not allow it. */
LD_API int64_t ld_records_bytes(int32_t kind, int32_t layout, int64_t rows, int64_t cols);

/* Write the values of a matrix with a mask, which has passed ld_check, in one of these layouts. `bytes`: of `out`, from
 * ld_records_bytes. LD_NO_FIT: 16 columns keep more values, or fewer in LD_INT4, which has no zero to fill up with. */
LD_API int32_t ld_records(const ld_matrix *m, int32_t layout, void *out, int64_t bytes, int32_t threads);

/* Check a matrix of unknown origin completely: afterwards no call below can read or write outside its arrays. */
LD_API int32_t ld_check(const ld_matrix *m);

/* y[t, r] = sum_c W[r, c] x[t, c] + bias[r]. x: fp32 or bf16 [tokens, cols], x_stride elements apart; y likewise [tokens, rows].
 * Any number of tokens >= 0. `threads` >= 1: most threads to use. */
LD_API int32_t ld_linear(const ld_matrix *m, int32_t x_kind, const void *x, int64_t x_stride, int64_t tokens, int32_t y_kind,
                         void *y, int64_t y_stride, int32_t threads);

/* Rows [begin, end) as a dense fp32 or bf16 [end - begin, cols] array, `stride` elements from row to row. */
LD_API int32_t ld_unpack(const ld_matrix *m, int64_t begin, int64_t end, int32_t out_kind, void *out, int64_t stride,
                         int32_t threads);

#ifdef __cplusplus
}
#endif
#endif
