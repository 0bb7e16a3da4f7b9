// AVX-512: rows of int4 codes.

#include "avx512_codes.h"

Range ld_avx512_int4(const ld_matrix *m, Load how, int tokens, int step) { return codes_of<Int4>(m, how, tokens, step); }
