// ISA source (see cpu/isa.h): values as a compiler vector as wide as a register, and their
// logarithms, to an ulp or two. Device code includes it as well, in a namespace of its own: there a
// vector is the one value of a thread, with what the shared formulas need of it.
//
// The maskz intrinsics (all lanes) stand for the plain ones, in whose headers gcc 12 sees
// uninitialised values.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

#if defined(NNMF_CUDA_VECTOR_BYTES)

// Lanes of whole numbers, as many bits as the floating-point ones.
template <class Word>
struct IntegersOf {
  typedef Word Lanes __attribute__((vector_size(NNMF_CUDA_VECTOR_BYTES)));
};

// The whole products of the lower halves of lanes.
NNMF_CUDA_INLINE IntegersOf<uint64_t>::Lanes multiply_words(const IntegersOf<uint64_t>::Lanes& a,
                                                            const IntegersOf<uint64_t>::Lanes& b) {
  typedef IntegersOf<uint64_t>::Lanes Lanes;
#if NNMF_CUDA_VECTOR_BYTES == 64
  return (Lanes)_mm512_maskz_mul_epu32(-1, (__m512i)a, (__m512i)b);
#elif NNMF_CUDA_VECTOR_BYTES == 32
  return (Lanes)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
  return (Lanes)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xffffffff) * (b & 0xffffffff);
#endif
}

template <class T>
struct Vector {
  static constexpr int64_t kLanes = NNMF_CUDA_VECTOR_BYTES / int64_t{sizeof(T)};
  typedef T Lanes __attribute__((vector_size(NNMF_CUDA_VECTOR_BYTES)));
  using Word = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

  static NNMF_CUDA_INLINE Lanes broadcast(T value) { return value - Lanes{}; }

  // No alignment is asked for.
  static NNMF_CUDA_INLINE Lanes load(const T* p) {
    Lanes v;
    __builtin_memcpy(&v, p, sizeof(v));
    return v;
  }

  // Bytes become numbers: 0 to 255.
  static NNMF_CUDA_INLINE Lanes load(const uint8_t* p) {
#if NNMF_CUDA_VECTOR_BYTES == 64
    if constexpr (sizeof(T) == 4)
      return (Lanes)_mm512_maskz_cvtepi32_ps(
          -1, _mm512_maskz_cvtepu8_epi32(-1, _mm_loadu_si128((const __m128i*)p)));
    else
      return (Lanes)_mm512_maskz_cvtepi32_pd(
          -1, _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#elif NNMF_CUDA_VECTOR_BYTES == 32
    if constexpr (sizeof(T) == 4) {
      return (Lanes)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)));
    } else {
      int32_t four;
      __builtin_memcpy(&four, p, sizeof(four));
      return (Lanes)_mm256_cvtepi32_pd(_mm_cvtepu8_epi32(_mm_cvtsi32_si128(four)));
    }
#else
    Lanes v;
    for (int64_t l = 0; l < kLanes; ++l) v[l] = static_cast<T>(static_cast<int32_t>(p[l]));
    return v;
#endif
  }

  // A load that is done once: gcc would rather repeat it as an operand of each instruction that
  // uses the value, and in a loop of multiply-adds loads are what runs out.
  template <class Data>
  static NNMF_CUDA_INLINE Lanes load_once(const Data* p) {
    Lanes v = load(p);
#if defined(__x86_64__)
    asm("" : "+v"(v));
#endif
    return v;
  }

  static NNMF_CUDA_INLINE void store(T* p, const Lanes& v) { __builtin_memcpy(p, &v, sizeof(v)); }

  static NNMF_CUDA_INLINE Lanes from_bits(const typename IntegersOf<Word>::Lanes& bits) {
    return (Lanes)bits;
  }
  static NNMF_CUDA_INLINE typename IntegersOf<Word>::Lanes to_bits(const Lanes& v) {
    return (typename IntegersOf<Word>::Lanes)v;
  }

  // The larger of both; NaN where `value` is, for which the order of the arguments matters.
  static NNMF_CUDA_INLINE Lanes max(const Lanes& bound, const Lanes& value) {
#if NNMF_CUDA_VECTOR_BYTES == 64
    if constexpr (sizeof(T) == 4)
      return (Lanes)_mm512_maskz_max_ps(-1, (__m512)bound, (__m512)value);
    else
      return (Lanes)_mm512_maskz_max_pd(-1, (__m512d)bound, (__m512d)value);
#elif NNMF_CUDA_VECTOR_BYTES == 32
    if constexpr (sizeof(T) == 4)
      return (Lanes)_mm256_max_ps((__m256)bound, (__m256)value);
    else
      return (Lanes)_mm256_max_pd((__m256d)bound, (__m256d)value);
#else
    return value < bound ? bound : value;
#endif
  }

  // One bit a lane: whether it is above zero.
  static NNMF_CUDA_INLINE uint32_t positive(const Lanes& v) {
#if NNMF_CUDA_VECTOR_BYTES == 64
    if constexpr (sizeof(T) == 4)
      return _mm512_cmp_ps_mask((__m512)v, (__m512)Lanes{}, _CMP_GT_OQ);
    else
      return _mm512_cmp_pd_mask((__m512d)v, (__m512d)Lanes{}, _CMP_GT_OQ);
#elif NNMF_CUDA_VECTOR_BYTES == 32
    if constexpr (sizeof(T) == 4)
      return static_cast<uint32_t>(_mm256_movemask_ps((__m256)(v > Lanes{})));
    else
      return static_cast<uint32_t>(_mm256_movemask_pd((__m256d)(v > Lanes{})));
#elif defined(__SSE2__)
    if constexpr (sizeof(T) == 4)
      return static_cast<uint32_t>(_mm_movemask_ps((__m128)(v > Lanes{})));
    else
      return static_cast<uint32_t>(_mm_movemask_pd((__m128d)(v > Lanes{})));
#else
    uint32_t bits = 0;
    for (int64_t l = 0; l < kLanes; ++l) bits |= static_cast<uint32_t>(v[l] > T{0}) << l;
    return bits;
#endif
  }

  // The lanes whose bit is set, zero elsewhere; higher bits do not matter.
  static NNMF_CUDA_INLINE Lanes keep(uint32_t bits, const Lanes& v) {
#if NNMF_CUDA_VECTOR_BYTES == 64
    if constexpr (sizeof(T) == 4)
      return (Lanes)_mm512_maskz_mov_ps(static_cast<__mmask16>(bits), (__m512)v);
    else
      return (Lanes)_mm512_maskz_mov_pd(static_cast<__mmask8>(bits), (__m512d)v);
#else
    typedef typename IntegersOf<Word>::Lanes Words;
    Words lane;
    for (int64_t l = 0; l < kLanes; ++l) lane[l] = Word{1} << l;
    const Words set = (Words)(((Word{bits} - Words{}) & lane) == lane);
    return (Lanes)(set & (Words)v);
#endif
  }

  // x / y to the last bit or two, for y whose inverse is no denormal (in float32 up to 8e37); what
  // overflows becomes NaN.
  static NNMF_CUDA_INLINE Lanes divide(const Lanes& x, const Lanes& y) {
#if NNMF_CUDA_VECTOR_BYTES == 64
    Lanes inverse;  // 14 bits, then twice as many with each Newton step
    if constexpr (sizeof(T) == 4) {
      inverse = (Lanes)_mm512_maskz_rcp14_ps(-1, (__m512)y);
    } else {
      inverse = (Lanes)_mm512_maskz_rcp14_pd(-1, (__m512d)y);
      inverse = inverse * (T{2} - y * inverse);
    }
    const Lanes quotient = x * inverse;
    return quotient + inverse * (x - y * quotient);
#elif NNMF_CUDA_VECTOR_BYTES == 32
    if constexpr (sizeof(T) == 4) {
      const Lanes inverse = (Lanes)_mm256_rcp_ps((__m256)y);  // 12 bits
      const Lanes quotient = x * inverse;
      return quotient + inverse * (x - y * quotient);
    } else {
      return x / y;
    }
#else
    return x / y;
#endif
  }

  static NNMF_CUDA_INLINE Lanes sqrt(const Lanes& v) {
#if NNMF_CUDA_VECTOR_BYTES == 64
    if constexpr (sizeof(T) == 4)
      return (Lanes)_mm512_maskz_sqrt_ps(-1, (__m512)v);
    else
      return (Lanes)_mm512_maskz_sqrt_pd(-1, (__m512d)v);
#elif NNMF_CUDA_VECTOR_BYTES == 32
    if constexpr (sizeof(T) == 4)
      return (Lanes)_mm256_sqrt_ps((__m256)v);
    else
      return (Lanes)_mm256_sqrt_pd((__m256d)v);
#elif defined(__x86_64__)
    if constexpr (sizeof(T) == 4)
      return (Lanes)_mm_sqrt_ps((__m128)v);
    else
      return (Lanes)_mm_sqrt_pd((__m128d)v);
#else
    Lanes root;
    for (int64_t l = 0; l < kLanes; ++l) root[l] = static_cast<T>(__builtin_sqrt(v[l]));
    return root;
#endif
  }

  static NNMF_CUDA_INLINE T sum(const Lanes& v) {
#if NNMF_CUDA_VECTOR_BYTES == 64
    if constexpr (sizeof(T) == 4) {
      const __m512 u = (__m512)v;
      const __m256 half = __builtin_shufflevector(u, u, 0, 1, 2, 3, 4, 5, 6, 7) +
                          __builtin_shufflevector(u, u, 8, 9, 10, 11, 12, 13, 14, 15);
      const __m128 quarter = _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
      const __m128 two = quarter + _mm_movehl_ps(quarter, quarter);
      return two[0] + two[1];
    } else {
      const __m512d u = (__m512d)v;
      const __m256d half =
          __builtin_shufflevector(u, u, 0, 1, 2, 3) + __builtin_shufflevector(u, u, 4, 5, 6, 7);
      const __m128d quarter = _mm256_castpd256_pd128(half) + _mm256_extractf128_pd(half, 1);
      return quarter[0] + quarter[1];
    }
#else
    T part[kLanes];
    __builtin_memcpy(part, &v, sizeof(v));
    for (int64_t width = kLanes / 2; width > 0; width /= 2)
      for (int64_t l = 0; l < width; ++l) part[l] += part[l + width];
    return part[0];
#endif
  }
};

#else  // device code

template <class Word>
struct IntegersOf {
  using Lanes = Word;
};

template <class T>
struct Vector {
  using Lanes = T;
  using Word = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

  static NNMF_CUDA_INLINE T broadcast(T value) { return value; }
  static NNMF_CUDA_INLINE T max(T bound, T value) { return at_least(bound, value); }
  static NNMF_CUDA_INLINE T divide(T x, T y) { return quotient(x, y); }
  static NNMF_CUDA_INLINE T from_bits(Word bits) {
    T value;
    memcpy(&value, &bits, sizeof(value));
    return value;
  }
  static NNMF_CUDA_INLINE Word to_bits(T value) {
    Word bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
  }
};

#endif

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
  using Word = typename V::Word;
  constexpr int kMantissa = kSingle ? 23 : 52;
  constexpr Word kOne = kSingle ? 0x3f800000 : 0x3ff0000000000000;
  constexpr Word kRootHalf = kSingle ? 0x3f3504f3 : 0x3fe6a09e667f3bcd;
  constexpr Word kBias = kOne >> kMantissa, kMagic = kSingle ? 0x4b400000 : 0x4338000000000000;
  constexpr T kShift = kSingle ? T{12582912} : T{6755399441055744};
  typedef typename IntegersOf<Word>::Lanes Words;
  const Words bits = V::to_bits(ratio) + (kOne - kRootHalf);
  const Words exponent = (bits >> kMantissa) - kBias + kMagic;
  const Words mantissa = (bits & ((Word{1} << kMantissa) - 1)) + kRootHalf;
  return {V::from_bits(exponent) - kShift, V::from_bits(mantissa) - T{1}};
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
