// Which instruction set is used, and what the library says about itself.

#include "kernels.h"

#include <cstring>

namespace {

// Best first. What the compiler or the target cannot do is left out by the build.
const ld_kernels *const kLevels[] = {
#if defined(LD_HAVE_AVX512)
    &ld_kernels_avx512,
#endif
#if defined(LD_HAVE_AVX2)
    &ld_kernels_avx2,
#endif
#if defined(LD_HAVE_NEON)
    &ld_kernels_neon,
#endif
    &ld_kernels_portable,
};

const ld_kernels *in_use = nullptr;

const ld_kernels *find(const char *wanted) {
  for (const ld_kernels *level : kLevels)
    if ((!wanted || std::strcmp(wanted, level->name) == 0) && level->supported()) return level;
  return nullptr;
}

struct Names {
  char text[64] = "";
  Names() {
    for (const ld_kernels *level : kLevels) {
      if (!level->supported()) continue;
      if (*text) std::strcat(text, " ");
      std::strcat(text, level->name);
    }
  }
};

}  // namespace

const ld_kernels *ld_current(void) {
  const ld_kernels *level = __atomic_load_n(&in_use, __ATOMIC_ACQUIRE);
  if (!level) {
    level = find(nullptr);
    __atomic_store_n(&in_use, level, __ATOMIC_RELEASE);
  }
  return level;
}

const char *ld_level(const char *wanted) {
  const ld_kernels *level = find(wanted);
  if (!level) return nullptr;
  __atomic_store_n(&in_use, level, __ATOMIC_RELEASE);
  return level->name;
}

const char *ld_levels(void) {
  static const Names names;
  return names.text;
}

int32_t ld_abi_version(void) { return LD_ABI_VERSION; }

const char *ld_build(void) {
  return
#if defined(__clang__)
      "clang " __clang_version__
#else
      "gcc " __VERSION__
#endif
#if defined(_OPENMP)
      ", OpenMP";
#else
      ", without threads";
#endif
}

const char *ld_message(int32_t status) {
  switch (status) {
    case LD_OK: return "no error";
    case LD_BAD_ARGUMENT: return "a kind, group, size or pointer that the format does not allow";
    case LD_BAD_MASK: return "the mask has bits beyond the last column";
    case LD_BAD_OFFSETS: return "the row offsets disagree with the mask";
    case LD_BAD_SIZE: return "fewer values than the mask or the shape asks for";
    case LD_NO_MEMORY: return "out of memory";
    case LD_NOT_A_NUMBER: return "NaN among the numbers that are compared";
    case LD_BAD_PLACES: return "the columns of the values do not ascend";
    case LD_NO_FIT: return "the mask does not keep as many of every 16 columns as the layout has values";
    default: return "unknown status";
  }
}
