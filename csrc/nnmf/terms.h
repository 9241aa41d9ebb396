// ISA source (see foreach_isa.h): what the numerators and denominators of an update sum, tile by
// tile. The formulas are those of beta_loss.h; pixels count from 0 to 255 here, and whoever uses a
// numerator divides it by 255 once.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

// The denominator of Kullback-Leibler and Frobenius needs no W H.
template <Loss loss>
constexpr bool kSumsDenominator = loss == Loss::kItakuraSaito || loss == Loss::kGeneral;

// Whether a panel holds exact zeros alone, which add nothing to a numerator while W H is finite.
// Data without zeros pay for the look at one entry.
template <class T, class Data>
NNMF_CUDA_INLINE bool all_zero(const Data* x, int64_t x_stride) {
  if (*x != 0) return false;
  constexpr int64_t kBytes = kColumns<T> * int64_t{sizeof(Data)};
  using Word = std::conditional_t<kBytes % 4 == 0, uint32_t, uint16_t>;
  constexpr int64_t kWords = kBytes / int64_t{sizeof(Word)};
  static_assert(kWords * int64_t{sizeof(Word)} == kBytes);
  uint32_t any = 0;
  for (int64_t i = 0; i < kRows; ++i) {
    Word words[kWords];
    __builtin_memcpy(words, x + i * x_stride, sizeof(words));
    for (int64_t w = 0; w < kWords; ++w) any |= words[w];
  }
  return any == 0;
}

// numerator = X (W H)^(beta_loss - 2), denominator = (W H)^(beta_loss - 1), one tile of each.
template <Loss loss, class T, class Data>
[[gnu::noinline]] void form_terms(const Panel<T, Data>& p, const T* right, int64_t n_components,
                                  T beta_loss, T* numerator, T* denominator, int64_t stride) {
  using V = Vector<T>;
  prefetch<T, true>(p.ahead, p.x_stride);
  if constexpr (loss == Loss::kFrobenius) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < kRows; ++i)
#pragma GCC unroll 3
      for (int64_t v = 0; v < kVectors; ++v)
        V::store(numerator + i * stride + v * V::kLanes,
                 V::load(p.x + i * p.x_stride + v * V::kLanes));
    return;
  }
  prefetch<T, false>(p.x, p.x_stride);
  typename V::Lanes wh[kRows][kVectors];
  multiply(p.left.data, p.left.stride, right, n_components, wh);
  if constexpr (loss == Loss::kGeneral) {
    for (int64_t i = 0; i < kRows; ++i)
      for (int64_t v = 0; v < kVectors; ++v) {
        T values[V::kLanes];
        V::store(values, wh[i][v]);
        for (int64_t l = 0; l < V::kLanes; ++l) {
          const int64_t c = v * V::kLanes + l;
          // In the padding W H is zero: to a very negative power infinite, times zero NaN.
          const bool valid = i < p.rows && c < p.columns;
          const T x = static_cast<T>(p.x[i * p.x_stride + c]);
          numerator[i * stride + c] = valid ? numerator_term<loss>(x, values[l], beta_loss) : T{0};
          denominator[i * stride + c] = valid ? denominator_term<loss>(values[l], beta_loss) : T{0};
        }
      }
    return;
  }
  const typename V::Lanes floor = V::broadcast(static_cast<T>(kEpsilon));
#pragma GCC unroll 8
  for (int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 3
    for (int64_t v = 0; v < kVectors; ++v) {
      const int64_t c = v * V::kLanes;
      const typename V::Lanes x = V::load(p.x + i * p.x_stride + c);
      typename V::Lanes term;
      if constexpr (loss == Loss::kKullbackLeibler) {
        term = V::divide(x, V::max(floor, wh[i][v]));
      } else {
        const typename V::Lanes inverse = V::divide(V::broadcast(T{1}), V::max(floor, wh[i][v]));
        term = x * (inverse * inverse);
        V::store(denominator + i * stride + c, inverse);
      }
      V::store(numerator + i * stride + c, term);
    }
  }
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
