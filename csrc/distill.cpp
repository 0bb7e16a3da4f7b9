// Losses of rows of logits, and their gradients: checks, and the split of the work.

#include "distill_kernels.h"

#include "kernels.h"

#include <cstring>

namespace {

constexpr int64_t kWorkTogether = int64_t{1} << 14;  // logits, below which handing out rows one by one costs more than it brings

const ld_distill *current() {
  const char *const name = ld_current()->name;
#if defined(LD_HAVE_AVX512)
  if (std::strcmp(name, ld_distill_avx512.name) == 0) return &ld_distill_avx512;
#endif
#if defined(LD_HAVE_AVX2)
  if (std::strcmp(name, ld_distill_avx2.name) == 0) return &ld_distill_avx2;
#endif
  (void)name;
  return &ld_distill_portable;
}

bool sound(const ld_logits *m, int64_t rows, int64_t words) {
  int64_t size;
  return (m->kind == LD_FP32 || m->kind == LD_BF16) && m->values && m->stride >= words && !__builtin_mul_overflow(rows, m->stride, &size);
}

struct Work {
  const ld_distill *kernels;
  ld_distilling d;
};

void some(void *context, int64_t begin, int64_t end) {
  const Work *const work = static_cast<const Work *>(context);
  work->kernels->rows(&work->d, begin, end);
}

}  // namespace

int32_t ld_divergence(int64_t rows, int64_t words, const ld_logits *student, const ld_logits *teacher, const int64_t *labels,
                      float temperature, float kl_weight, float ce_weight, float *kl, float *ce, int32_t threads) {
  if (rows < 0 || words < 1 || threads < 1 || !student || !(temperature > 0.0f)) return LD_BAD_ARGUMENT;
  if (rows == 0) return LD_OK;
  if (!kl || !ce || !sound(student, rows, words) || (teacher && !sound(teacher, rows, words))) return LD_BAD_ARGUMENT;
  for (int64_t r = 0; labels && r < rows; ++r)
    if (labels[r] != LD_NO_LABEL && (labels[r] < 0 || labels[r] >= words)) return LD_BAD_ARGUMENT;
  Work work = {current(), {words, *student, teacher ? *teacher : ld_logits{student->kind, nullptr, 0}, labels, temperature, kl_weight, ce_weight,
                           kl, ce}};
  ld_parallel(threads, rows, 1 + kWorkTogether / words, some, &work);
  return LD_OK;
}
