// AVX-512: rows of int8 codes.

#include "avx512_codes.h"

Range ld_avx512_int8(const ld_matrix *m, Load how, int tokens, int step) { return codes_of<Int8>(m, how, tokens, step); }
