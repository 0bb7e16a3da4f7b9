// Vectors of so many floats as a register of the instruction set holds; see steps_body.h.
#ifndef LOWDIM_STEPS_VECTOR_H
#define LOWDIM_STEPS_VECTOR_H

#include <cstdint>

#define LD_INLINE inline __attribute__((always_inline))
#define LD_LAMBDA __attribute__((always_inline))

#define LD_VECTOR(lanes)                                             \
  namespace {                                                        \
  constexpr int64_t kLanes = lanes;                                  \
  typedef float Floats __attribute__((vector_size(lanes * 4)));      \
  typedef int32_t Ints __attribute__((vector_size(lanes * 4)));      \
  typedef uint32_t Words __attribute__((vector_size(lanes * 4)));    \
  typedef uint16_t Halves __attribute__((vector_size(lanes * 2)));   \
  }

#endif
