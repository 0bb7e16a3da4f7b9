// Distillation for any processor.

#include "steps_vector.h"

LD_VECTOR(4)

namespace {

LD_INLINE Floats fused(Floats a, Floats b, Floats c) { return a * b + c; }

}  // namespace

#include "distill_body.h"

extern "C" const ld_distill ld_distill_portable = LD_DISTILL(portable);
