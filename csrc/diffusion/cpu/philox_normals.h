// ISA source (see isa.h): the normals of philox.h, a vector of them at a time. Words lie in
// lanes of 64 bits, of which the upper halves are without meaning.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

constexpr int64_t kNormalRows = 32;  // of a block that draw_normals fills

typedef typename IntegersOf<uint64_t>::Lanes WordLanes;

struct WordVectors {
  WordLanes word[4];
};

// The key of each round.
struct RoundKeys {
  explicit RoundKeys(uint64_t seed) {
    uint32_t even = static_cast<uint32_t>(seed), odd = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < Philox::kRounds; ++round) {
      key[2 * round] = even;
      key[2 * round + 1] = odd;
      even += Philox::kWeyl0;
      odd += Philox::kWeyl1;
    }
  }

  uint64_t key[2 * Philox::kRounds];
};

NNMF_CUDA_INLINE WordVectors philox_4x32(WordVectors counter, const RoundKeys& keys) {
  const WordLanes multiplier0 = uint64_t{Philox::kMultiplier0} - WordLanes{},
                  multiplier1 = uint64_t{Philox::kMultiplier1} - WordLanes{};
  WordLanes(&c)[4] = counter.word;
#pragma GCC unroll 10
  for (int round = 0; round < Philox::kRounds; ++round) {
    const WordLanes product0 = multiply_words(multiplier0, c[0]),
                    product1 = multiply_words(multiplier1, c[2]);
    c[0] = (product1 >> 32) ^ c[1] ^ keys.key[2 * round];
    c[1] = product1;
    c[2] = (product0 >> 32) ^ c[3] ^ keys.key[2 * round + 1];
    c[3] = product0;
  }
  return counter;
}

// 53 bits as a number in [0, 1), exactly: 27 and 26 of them become mantissas of numbers whose last
// bit counts 2^-27 and 2^-53.
NNMF_CUDA_INLINE Vector<double>::Lanes uniform_of(const WordLanes& upper, const WordLanes& lower) {
  typedef Vector<double>::Lanes Lanes;
  constexpr uint64_t k2To25 = 0x4180000000000000, kHalf = 0x3fe0000000000000;
  const WordLanes high = ((upper >> 5) & 0x7ffffff) | k2To25,
                  low = ((lower >> 6) & 0x3ffffff) | kHalf;
  return ((Lanes)high - 33554432.5) + (Lanes)low;
}

// cos(2 pi u); the uppermost bit of `word`, of which u was made, says whether u >= 1/2.
NNMF_CUDA_INLINE Vector<double>::Lanes cosine_of_turn(const Vector<double>::Lanes& u,
                                                      const WordLanes& word) {
  typedef Vector<double>::Lanes Lanes;
  using B = BoxMuller;
  const Lanes x = NNMF_CUDA_ROUNDED(B::kTwoPi * u);
  const auto late = u >= 0.5;
  const Lanes high = late ? B::kThreeQuarters - Lanes{} : B::kQuarter - Lanes{};
  const Lanes low = late ? B::kThreeQuartersLow - Lanes{} : B::kQuarterLow - Lanes{};
  const Lanes r = (high - x) + low, z = r * r, z2 = z * z;
  const Lanes tail =
      (B::k0 + z * B::k1) + z2 * ((B::k2 + z * B::k3) + z2 * ((B::k4 + z * B::k5) + z2 * B::k6));
  const Lanes sine = r + r * z * tail;
  return (Lanes)((WordLanes)sine ^ ((word << 32) & 0x8000000000000000));
}

NNMF_CUDA_INLINE Vector<double>::Lanes normals_from_words(const WordVectors& words) {
  using V = Vector<double>;
  const typename V::Lanes first = uniform_of(words.word[0], words.word[1]) + 0x1p-53;
  const Ratio<double> parts = split<double>(first);
  const typename V::Lanes log =
      parts.exponent * 0.6931471805599453 + (parts.rest + log_tail<double>(parts.rest));
  const typename V::Lanes second = uniform_of(words.word[2], words.word[3]);
  return V::sqrt(-2.0 * log) * cosine_of_turn(second, words.word[2]);
}

// Rounds to float32 and stores as T.
template <class T>
NNMF_CUDA_INLINE void store_normals(T* to, const Vector<double>::Lanes& normals) {
  typedef float Singles __attribute__((vector_size(NNMF_CUDA_VECTOR_BYTES / 2)));
  const Singles rounded = __builtin_convertvector(normals, Singles);
  if constexpr (sizeof(T) == 4)
    __builtin_memcpy(to, &rounded, sizeof(rounded));
  else
    Vector<double>::store(to, __builtin_convertvector(rounded, Vector<double>::Lanes));
}

// Normals of 32 flat rows, lanes being rows: row i is draw (first_row + i) % n_draws of sample
// (first_row + i) / n_draws, and out[j * 32 + i] receives what philox_normal gives for it and
// feature first_feature + j, j < n_features. Only the first n_rows rows of the block exist (any
// number; all 32 if there are more); the others receive 0.
template <class T>
void draw_normals(uint64_t seed, uint32_t step, int64_t first_row, int64_t n_rows, int64_t n_draws,
                  int64_t n_features, T* out, int64_t first_feature = 0) {
  constexpr int64_t kLanes = Vector<double>::kLanes;
  WordLanes samples[kNormalRows / kLanes], draws[kNormalRows / kLanes];
  int64_t sample = first_row / n_draws, draw = first_row % n_draws;
  for (int64_t i = 0; i < kNormalRows; ++i) {
    samples[i / kLanes][i % kLanes] = static_cast<uint64_t>(sample);
    draws[i / kLanes][i % kLanes] = static_cast<uint64_t>(draw);
    if (++draw == n_draws) {
      draw = 0;
      ++sample;
    }
  }
  const RoundKeys keys(seed);
  for (int64_t j = 0; j < n_features; ++j) {
    const WordLanes feature = static_cast<uint64_t>(first_feature + j) - WordLanes{},
                    steps = uint64_t{step} - WordLanes{};
    T* const row = out + j * kNormalRows;
    for (int64_t i = 0; i < kNormalRows && i < n_rows; i += kLanes) {
      const WordVectors counter{{feature, draws[i / kLanes], samples[i / kLanes], steps}};
      store_normals(row + i, normals_from_words(philox_4x32(counter, keys)));
    }
    for (int64_t i = n_rows; i < kNormalRows; ++i) row[i] = 0;
  }
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
