// The step kernels for AVX-512.

#define LD_LANES 16
#define LD_TILE 4
#include <immintrin.h>

#define fused(a, b, c) _mm512_fmadd_ps(a, b, c)

#include "steps_body.h"

extern "C" const ld_steps ld_steps_avx512 = LD_STEPS(avx512);
