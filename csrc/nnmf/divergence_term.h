// ISA source (see isa.h), and device code: what entries of X add to the divergence, in the factors'
// precision and without a difference of larger numbers. Needs common/vector.h.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

// What entries of X add, X and W H being vectors, but for the -1 that Itakura-Saito counts for
// zeros of X (with Y = W H: x log(x / y) - x + y for Kullback-Leibler, x / y - log(x / y) - 1 for
// Itakura-Saito). `lowest`: the floor of W H; entries of X up to it are zeros.
template <Loss loss, class T>
NNMF_CUDA_INLINE typename Vector<T>::Lanes divergence_terms(const typename Vector<T>::Lanes& x,
                                                            const typename Vector<T>::Lanes& wh,
                                                            T lowest) {
  using V = Vector<T>;
  using Lanes = typename V::Lanes;
  if constexpr (loss == Loss::kFrobenius) return T(0.5) * (x - wh) * (x - wh);
  constexpr T kLog2 = T(0.6931471805599453);
  const Lanes floor = V::broadcast(lowest), safe = V::max(floor, wh);
  const Lanes excess = V::divide(x - safe, safe), ratio = V::divide(x, safe);
  const Ratio<T> parts = split<T>(ratio);
  const auto near = parts.exponent == T{0};  // there x - safe is exact, and ratio - 1 is not
  const Lanes z = near ? excess : parts.rest, tail = log_tail<T>(z);
  const Lanes main = parts.exponent * kLog2 + z;  // log(ratio) is main + tail
  if constexpr (loss == Loss::kKullbackLeibler) {
    const Lanes relative = ratio * tail + (near ? z * z : ratio * main - excess);
    return x > floor ? safe * relative + (wh - safe) : wh;
  } else {
    return x > floor ? (near ? -tail : excess - main - tail) : Lanes{};
  }
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
