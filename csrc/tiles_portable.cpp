// The search for masks for any processor.

#include "steps_vector.h"

LD_VECTOR(4)

#include "tiles_body.h"

extern "C" const ld_tiles_some ld_tiles_portable = fours;
