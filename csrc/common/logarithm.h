// ISA source (see foreach_isa.h): logarithms of vectors, to an ulp or two.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

// A positive ratio as 2^exponent (1 + rest), with 1 + rest in [sqrt(1/2), sqrt(2)).
template <class T>
struct Ratio {
  typename Vector<T>::Lanes exponent, rest;
};

template <class T>
NNMF_CUDA_INLINE Ratio<T> split(const typename Vector<T>::Lanes& ratio) {
  using V = Vector<T>;
  // Bits of 1, of sqrt(1/2), of the mantissa; a number whose sum with a small integer shows it.
  constexpr bool kSingle = sizeof(T) == 4;
  using Word = std::conditional_t<kSingle, uint32_t, uint64_t>;
  constexpr int kMantissa = kSingle ? 23 : 52;
  constexpr Word kOne = kSingle ? 0x3f800000 : 0x3ff0000000000000;
  constexpr Word kRootHalf = kSingle ? 0x3f3504f3 : 0x3fe6a09e667f3bcd;
  constexpr Word kBias = kOne >> kMantissa, kMagic = kSingle ? 0x4b400000 : 0x4338000000000000;
  constexpr T kShift = kSingle ? T{12582912} : T{6755399441055744};
  typedef typename IntegersOf<Word>::Lanes Words;
  const Words bits = (Words)ratio + (kOne - kRootHalf);
  const Words exponent = (bits >> kMantissa) - kBias + kMagic;
  const Words mantissa = (bits & ((Word{1} << kMantissa) - 1)) + kRootHalf;
  return {(typename V::Lanes)exponent - kShift, (typename V::Lanes)mantissa - T{1}};
}

// log(1 + z) - z for 1 + z in [sqrt(1/2), sqrt(2)), exact relative to z^2: the polynomials of
// FreeBSD's e_logf.c and e_log.c.
template <class T>
NNMF_CUDA_INLINE typename Vector<T>::Lanes log_tail(const typename Vector<T>::Lanes& z) {
  using V = Vector<T>;
  const typename V::Lanes s = V::divide(z, T{2} + z), s2 = s * s, s4 = s2 * s2;
  typename V::Lanes even, odd;
  if constexpr (sizeof(T) == 4) {
    odd = s2 * (T(0.66666662693) + s4 * T(0.28498786688));
    even = s4 * (T(0.40000972152) + s4 * T(0.24279078841));
  } else {
    odd = s2 * (0.6666666666666735 +
                s4 * (0.2857142874366239 + s4 * (0.1818357216161805 + s4 * 0.14798198605116586)));
    even = s4 * (0.3999999999940942 + s4 * (0.22222198432149784 + s4 * 0.15313837699209373));
  }
  const typename V::Lanes half_square = T(0.5) * z * z;
  return s * (half_square + (odd + even)) - half_square;
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
