// Matrices, sound and corrupt, from a fixed seed, for a build with AddressSanitizer and UndefinedBehaviorSanitizer. Every array has
// exactly the size that the format states, so that a byte too far is found. Sound matrices must give the right product; corrupt
// ones must be refused by ld_check or do no harm.
//
//   fuzz LEVEL [ROUNDS [SEED]]      returns 77 where this processor or this build lacks the level

#include "lowdim.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

namespace {

std::mt19937_64 random_bits;

int64_t below(int64_t limit) { return static_cast<int64_t>(random_bits() % static_cast<uint64_t>(limit)); }
bool once_in(int64_t times) { return below(times) == 0; }
float normal() { return std::normal_distribution<float>()(random_bits); }

float widen(uint16_t bf16) {
  const uint32_t bits = static_cast<uint32_t>(bf16) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
uint16_t narrow(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>(bits >> 16);
}

// Exactly as many bytes as asked for; a vector may hold more.
template <class T>
struct Exact {
  std::unique_ptr<T[]> at;
  int64_t size;
  explicit Exact(int64_t count) : at(new T[static_cast<size_t>(count)]()), size(count) {}
  explicit Exact(const std::vector<T> &v) : Exact(static_cast<int64_t>(v.size())) {
    if (size) std::memcpy(at.get(), v.data(), v.size() * sizeof(T));
  }
  T *get() const { return at.get(); }
  void scramble() {
    for (int64_t i = 0; i < size * static_cast<int64_t>(sizeof(T)); ++i) reinterpret_cast<char *>(get())[i] = static_cast<char>(random_bits());
  }
};

struct Sample {
  ld_matrix m = {};
  Exact<uint64_t> mask{0};
  Exact<uint8_t> values{0};
  Exact<int64_t> row_ptr{0};
  Exact<uint16_t> scales{0};
  Exact<int8_t> table{16};
  Exact<float> bias{0};
  std::vector<double> dense;  // [rows, cols]
};

template <class T>
void append(std::vector<uint8_t> &bytes, T value) {
  uint8_t raw[sizeof value];
  std::memcpy(raw, &value, sizeof value);
  bytes.insert(bytes.end(), raw, raw + sizeof value);
}

// A weight's code, and what it stands for without its scale.
double draw_code(const Sample &s, std::vector<uint8_t> &row) {
  if (s.m.kind == LD_FP32) {
    const float value = normal();
    append(row, value);
    return value;
  }
  if (s.m.kind == LD_BF16) {
    const uint16_t value = narrow(normal());
    append(row, value);
    return widen(value);
  }
  if (s.m.kind == LD_INT8) {
    const int8_t code = static_cast<int8_t>(below(255) - 127);
    append(row, code);
    return code;
  }
  const uint8_t index = static_cast<uint8_t>(below(s.m.kind == LD_INT4 ? 16 : 8));
  append(row, index);
  return s.table.get()[index];
}

constexpr double kFew = -1;  // for a density, less how many of every 16 are kept

// One row's codes in order, its mask and its dense weights.
std::vector<uint8_t> draw_row(Sample &s, int64_t row, bool packed, double density) {
  std::vector<uint8_t> codes;
  int64_t taken = 0;
  for (int64_t c = 0; c < s.m.cols; ++c) {
    bool keep = !packed || std::uniform_real_distribution<double>()(random_bits) < density;
    const int64_t few = static_cast<int64_t>(kFew - density);
    if (density < 0) keep = below(16 - c % 16) < few - (taken - c / 16 * few);
    taken += keep;
    if (!keep) continue;
    if (packed) s.mask.get()[row * s.m.mask_words + c / 64] |= uint64_t{1} << c % 64;
    const double scale = s.m.group ? widen(s.scales.get()[row * ((s.m.cols + s.m.group - 1) / s.m.group) + c / s.m.group]) : 1.0;
    s.dense[static_cast<size_t>(row * s.m.cols + c)] = draw_code(s, codes) * scale;
  }
  return codes;
}

std::vector<uint8_t> join_pair(const std::vector<uint8_t> &low, const std::vector<uint8_t> &high) {
  std::vector<uint8_t> bytes(low.size() > high.size() ? low.size() : high.size());
  for (size_t i = 0; i < low.size(); ++i) bytes[i] = low[i];
  for (size_t i = 0; i < high.size(); ++i) bytes[i] = static_cast<uint8_t>(bytes[i] | high[i] << 4);
  return bytes;
}

// A block of eight rows, of which the last may be missing, bit by bit.
std::vector<uint8_t> join_octet(const std::vector<std::vector<uint8_t>> &rows, int64_t cols) {
  std::vector<uint8_t> bytes(static_cast<size_t>((cols + 63) / 64 * 192));
  for (size_t r = 0; r < rows.size(); ++r)
    for (size_t c = 0; c < rows[r].size(); ++c)
      for (unsigned bit = 0; bit < 3; ++bit) {
        const size_t run = r < 6 ? r / 2 : bit < 2 ? r - 6 : 2;
        const size_t place = r < 6 ? r % 2 * 3 + bit : bit < 2 ? 6 + bit : r;
        uint8_t &byte = bytes[c / 64 * 192 + run * 64 + c % 64];
        byte = static_cast<uint8_t>(byte | (rows[r][c] >> bit & 1) << place);
      }
  return bytes;
}

void to_records(Sample &s, int32_t layout) {
  ld_matrix &m = s.m;
  Exact<uint8_t> records(ld_records_bytes(m.kind, layout, m.rows, m.cols));
  if (ld_records(&m, layout, records.get(), records.size, static_cast<int32_t>(1 + below(3))) != LD_OK) {
    std::fprintf(stderr, "ld_records refuses %d of every 16\n", layout);
    std::exit(1);
  }
  s.values = std::move(records);
  s.mask = Exact<uint64_t>(0);
  s.row_ptr = Exact<int64_t>(0);
  m.values = s.values.get();
  m.value_bytes = s.values.size;
  m.mask = nullptr;
  m.row_ptr = nullptr;
  m.layout = layout;
}

std::unique_ptr<Sample> draw_sample() {
  auto s = std::make_unique<Sample>();
  ld_matrix &m = s->m;
  m.kind = static_cast<int32_t>(below(5));
  m.rows = 1 + below(9);
  m.cols = 1 + below(once_in(8) ? 2200 : 300);
  const int32_t layout = m.kind < LD_BF16 || m.kind > LD_INT4 || !once_in(3) ? LD_ROWS : once_in(2) ? LD_EIGHTS : LD_FOURS;
  if (layout) m.cols = (m.cols + 15) / 16 * 16;
  m.mask_words = (m.cols + 63) / 64 + (once_in(4) ? 1 : 0);
  const bool codes = m.kind >= LD_INT8, packed = layout != LD_ROWS || (m.kind != LD_INT3 && !once_in(3));
  if (codes) {
    m.group = once_in(2) ? 64 : 128;
    s->scales = Exact<uint16_t>(m.rows * ((m.cols + m.group - 1) / m.group));
    for (int64_t i = 0; i < s->scales.size; ++i) s->scales.get()[i] = narrow(0.01f + 0.001f * static_cast<float>(below(100)));
    for (int i = 0; i < 16; ++i) s->table.get()[i] = static_cast<int8_t>(below(255) - 127);
  }
  if (packed) s->mask = Exact<uint64_t>(m.rows * m.mask_words);
  s->bias = Exact<float>(m.rows);
  for (int64_t r = 0; r < m.rows; ++r) s->bias.get()[r] = normal();
  s->dense.resize(static_cast<size_t>(m.rows * m.cols));
  const double densities[] = {0, 0.05, 0.3, 0.5, 0.9, 1};
  const double density = layout ? kFew - layout : densities[below(6)];
  std::vector<uint8_t> bytes;
  for (int64_t r = 0; r < m.rows; ++r) {
    std::vector<uint8_t> row = draw_row(*s, r, packed, density);
    if (m.kind == LD_INT3) {
      std::vector<std::vector<uint8_t>> block(1, row);
      while (block.size() < 8 && r + 1 < m.rows) block.push_back(draw_row(*s, ++r, packed, density));
      row = join_octet(block, m.cols);
    }
    if (m.kind == LD_INT4) row = join_pair(row, ++r < m.rows ? draw_row(*s, r, packed, density) : std::vector<uint8_t>());
    bytes.insert(bytes.end(), row.begin(), row.end());
  }
  s->values = Exact<uint8_t>(bytes);
  m.values = s->values.get();
  m.value_bytes = s->values.size;
  m.scales = codes ? s->scales.get() : nullptr;
  m.table = s->table.get();
  m.bias = once_in(2) ? s->bias.get() : nullptr;
  if (!packed) return s;
  m.mask = s->mask.get();
  s->row_ptr = Exact<int64_t>((m.kind == LD_INT4 ? (m.rows + 1) / 2 : m.rows) + 1);
  m.row_ptr = s->row_ptr.get();
  if (ld_row_ptr(m.kind, m.rows, m.cols, m.mask, m.mask_words, s->row_ptr.get()) != m.value_bytes) {
    std::fprintf(stderr, "ld_row_ptr disagrees with the packing\n");
    std::exit(1);
  }
  if (layout) to_records(*s, layout);
  return s;
}

// ---------------------------------------------------------------- what may befall a file

int64_t draw_number() {
  const int64_t numbers[] = {-1, 0, 1, 63, 64, 65, 128, 1 << 20, int64_t{1} << 31, int64_t{1} << 46, INT64_MAX, INT64_MIN, INT64_MAX / 2};
  if (once_in(4)) return static_cast<int64_t>(random_bits());
  return numbers[below(static_cast<int64_t>(sizeof numbers / sizeof *numbers))];
}

// Nobody can tell from a struct that an array is shorter than it promises: that is the caller's word, which is kept here. But a
// dense matrix can have no more rows or columns than it has values.
constexpr int64_t kBeyondAll = 1 << 20;
void set_size(int64_t *size, bool told) {
  const int64_t number = draw_number();
  if (number < *size || (told && number >= kBeyondAll)) *size = number;
}

// Offsets of row pairs are fewer than those of rows.
void set_kind(ld_matrix &m) {
  if (m.mask && m.kind == LD_INT4) m.rows = m.rows < 2 ? 0 : m.rows / 2;
  m.kind = static_cast<int32_t>(once_in(2) ? below(5) : draw_number());
}

void corrupt(Sample &s) {
  ld_matrix &m = s.m;
  switch (below(12)) {
    case 0:
      if (s.mask.size) s.mask.get()[below(s.mask.size)] = random_bits();
      break;
    case 1:
      if (s.mask.size) s.mask.get()[below(s.mask.size)] ^= uint64_t{1} << below(64);
      break;
    case 2:
      if (s.row_ptr.size) s.row_ptr.get()[below(s.row_ptr.size)] = draw_number();
      break;
    case 3:
      if (s.row_ptr.size) s.row_ptr.get()[below(s.row_ptr.size)] ^= 1 + below(8);
      break;
    case 4: set_size(&m.rows, !m.mask); break;
    case 5: set_size(&m.cols, !m.mask); break;
    case 6: set_size(&m.mask_words, false); break;
    case 7: set_size(&m.value_bytes, false); break;
    case 8: set_kind(m); break;
    case 10: m.layout = static_cast<int32_t>(once_in(2) ? 4 * below(4) : draw_number()); break;
    case 9: m.group = static_cast<int32_t>(once_in(2) ? 128 : 3 * draw_number()); break;
    default:
      s.values.scramble();
      s.scales.scramble();
      s.table.scramble();
      s.bias.scramble();
  }
  if (once_in(30)) m.values = nullptr;
  if (once_in(30)) m.row_ptr = nullptr;
  if (once_in(30)) m.scales = nullptr;
  if (once_in(30)) m.table = nullptr;
}

// ---------------------------------------------------------------- products

void quantise(std::vector<double> &x, int64_t begin, int64_t end, const float *from) {
  float amax = 0;
  for (int64_t c = begin; c < end; ++c) amax = std::fmax(amax, std::fabs(from[c]));
  for (int64_t c = begin; c < end; ++c) x[static_cast<size_t>(c)] = std::nearbyint(from[c] * (127.0f / amax)) * (amax / 127.0f);
}

bool right(const Sample &s, const float *x, const float *y) {
  const ld_matrix &m = s.m;
  std::vector<double> seen(x, x + m.cols);
  if (m.group)
    for (int64_t c = 0; c < m.cols; c += m.group) quantise(seen, c, c + m.group < m.cols ? c + m.group : m.cols, x);
  for (int64_t r = 0; r < m.rows; ++r) {
    double sum = m.bias ? m.bias[r] : 0, size = std::fabs(sum);
    for (int64_t c = 0; c < m.cols; ++c) {
      const double product = s.dense[static_cast<size_t>(r * m.cols + c)] * seen[static_cast<size_t>(c)];
      sum += product;
      size += std::fabs(product);
    }
    if (!(std::fabs(y[r] - sum) <= 1e-6 * size)) {
      std::fprintf(stderr, "kind %d, %lld x %lld, row %lld: %.9g, not %.9g\n", m.kind, static_cast<long long>(m.rows),
                   static_cast<long long>(m.cols), static_cast<long long>(r), static_cast<double>(y[r]), sum);
      return false;
    }
  }
  return true;
}

// Inputs that bf16 holds exactly, or any bits at all.
void draw_input(Exact<float> &x, bool sound) {
  for (int64_t i = 0; i < x.size; ++i) x.get()[i] = widen(narrow(normal()));
  if (!sound && once_in(2)) x.scramble();
}

bool use(const Sample &s, bool sound) {
  const ld_matrix &m = s.m;
  const int64_t tokens = 1 + below(once_in(4) ? 20 : 4);
  const int32_t threads = static_cast<int32_t>(1 + below(3));
  Exact<float> x(tokens * m.cols), y(tokens * m.rows), out(m.rows * m.cols);
  draw_input(x, sound);
  if (ld_linear(&m, LD_FP32, x.get(), m.cols, tokens, LD_FP32, y.get(), m.rows, threads) != LD_OK) return false;
  if (sound)
    for (int64_t t = 0; t < tokens; ++t)
      if (!right(s, x.get() + t * m.cols, y.get() + t * m.rows)) return false;
  Exact<uint16_t> half_x(tokens * m.cols), half_y(tokens * m.rows), half_out(m.rows * m.cols);
  half_x.scramble();
  if (ld_linear(&m, LD_BF16, half_x.get(), m.cols, tokens, LD_BF16, half_y.get(), m.rows, threads) != LD_OK) return false;
  const int64_t begin = m.rows ? below(m.rows) : 0;
  if (ld_unpack(&m, begin, m.rows, LD_FP32, out.get() + begin * m.cols, m.cols, threads) != LD_OK) return false;
  if (ld_unpack(&m, begin, m.rows, LD_BF16, half_out.get() + begin * m.cols, m.cols, threads) != LD_OK) return false;
  for (int64_t i = begin * m.cols; sound && i < m.rows * m.cols; ++i)
    if (out.get()[i] != static_cast<float>(s.dense[static_cast<size_t>(i)])) return false;
  return true;
}

}  // namespace

int main(int count, char **arguments) {
  if (count < 2 || !ld_level(arguments[1])) return 77;
  const int64_t rounds = count > 2 ? std::atoll(arguments[2]) : 20000;
  random_bits.seed(count > 3 ? static_cast<uint64_t>(std::atoll(arguments[3])) : 1);
  int64_t refused = 0, harmless = 0;
  for (int64_t i = 0; i < rounds; ++i) {
    const std::unique_ptr<Sample> s = draw_sample();
    if (ld_check(&s->m) != LD_OK || !use(*s, true)) {
      std::fprintf(stderr, "round %lld: a sound matrix of kind %d fails\n", static_cast<long long>(i), s->m.kind);
      return 1;
    }
    for (int64_t times = 1 + below(3); times > 0; --times) corrupt(*s);
    if (s->m.rows == 0 || s->m.cols == 0) continue;  // no values, so that nothing tells how long the other side may be
    if (ld_check(&s->m) != LD_OK) {
      ++refused;
    } else if (use(*s, false)) {
      ++harmless;
    } else {
      std::fprintf(stderr, "round %lld: a matrix that ld_check lets pass cannot be used\n", static_cast<long long>(i));
      return 1;
    }
  }
  std::printf("%s: %lld sound, %lld corrupt refused, %lld harmless\n", arguments[1], static_cast<long long>(rounds),
              static_cast<long long>(refused), static_cast<long long>(harmless));
  return 0;
}
