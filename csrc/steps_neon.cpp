// The step kernels for NEON.

#define LD_LANES 4
#define LD_TILE 4
#include <arm_neon.h>

#define fused(a, b, c) vfmaq_f32(c, a, b)

#include "steps_body.h"

extern "C" const ld_steps ld_steps_neon = LD_STEPS(neon);
