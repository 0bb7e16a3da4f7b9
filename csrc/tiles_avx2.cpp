// The search for masks for AVX2.

#include "steps_vector.h"

LD_VECTOR(8)

#include "tiles_body.h"

extern "C" const ld_tiles_some ld_tiles_avx2 = fours;
