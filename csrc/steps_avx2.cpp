// The step kernels for AVX2 with FMA.

#define LD_LANES 8
#define LD_TILE 2
#include <immintrin.h>

#define fused(a, b, c) _mm256_fmadd_ps(a, b, c)

#include "steps_body.h"

extern "C" const ld_steps ld_steps_avx2 = LD_STEPS(avx2);
