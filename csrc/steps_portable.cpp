// The step kernels for any processor.

#define LD_LANES 4
#define LD_TILE 2
#define fused(a, b, c) ((a) * (b) + (c))

#include "steps_body.h"

extern "C" const ld_steps ld_steps_portable = LD_STEPS(portable);
