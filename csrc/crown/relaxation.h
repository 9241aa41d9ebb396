// ISA source (see isa.h), and device code: lines around ReLU and planes around a max-pool of two,
// as vectors of units or as the one unit of a thread. Needs problem.h.
//
// Every choice of slopes gives a valid bound; offsets are made for the slopes as they were rounded.
// All slopes are in [0, 1].

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

template <class L>
NNMF_CUDA_INLINE L smaller(const L& a, const L& b) {
  return a < b ? a : b;
}

template <class L>
NNMF_CUDA_INLINE L larger(const L& a, const L& b) {
  return a < b ? b : a;
}

template <class L>
NNMF_CUDA_INLINE L magnitude(const L& a) {
  return larger(a, L(-a));
}

template <class L>
NNMF_CUDA_INLINE L within(const L& value, const L& low, const L& high) {
  return smaller(larger(value, low), high);
}

// lower z <= ReLU(z) <= upper z + offset for z in [low, high].
template <class L>
struct ReluLines {
  L lower, upper, offset;
};

// The chord above; below, the nearer of 0 and z.
template <class L>
NNMF_CUDA_INLINE ReluLines<L> relu_lines(const L& low, const L& high) {
  const L zero{}, one = zero + 1.0;
  const auto crosses = (low < zero) & (high > zero);
  const L on = low >= zero ? one : zero;
  const L width = crosses ? high - low : one;
  const L upper = crosses ? smaller(L(high / width), one) : on;
  // ReLU less a line is convex: largest at an end.
  const L offset =
      larger(L(-low * upper), L(high * (one - upper))) * (1 + 16 * kHalfUlp) + kUnderflow;
  return {crosses ? (high > -low ? one : zero) : on, upper, crosses ? offset : zero};
}

// What is known of the two units of a pair, and of their difference.
template <class L>
struct PairBounds {
  L low_a, high_a, low_b, high_b, low_d, high_d;
};

// lower_a a + lower_b b <= max(a, b, 0) <= upper_a a + upper_b b + offset. One of the lower slopes
// is 1 and the other 0, or both are 0.
template <class L>
struct PoolPlanes {
  L lower_a, lower_b, upper_a, upper_b, offset;
};

// Six points whose hull holds all pairs that are possible: both ends of the box's diagonal, and
// what the difference leaves of the other two corners. A plane is above the pool if it is above it
// there, since their difference is convex.
template <class L>
struct PoolCorners {
  L a[6], b[6], pooled[6], size, rounding;

  NNMF_CUDA_INLINE explicit PoolCorners(const PairBounds<L>& p) {
    a[0] = p.low_a, b[0] = p.low_b;
    a[1] = p.high_a, b[1] = p.high_b;
    a[2] = p.high_a, b[2] = within(L(p.high_a - p.high_d), p.low_b, p.high_b);
    a[3] = within(L(p.low_b + p.high_d), p.low_a, p.high_a), b[3] = p.low_b;
    a[4] = p.low_a, b[4] = within(L(p.low_a - p.low_d), p.low_b, p.high_b);
    a[5] = within(L(p.high_b + p.low_d), p.low_a, p.high_a), b[5] = p.high_b;
    for (int i = 0; i < 6; ++i) pooled[i] = larger(larger(a[i], b[i]), L{});
    const auto most = [](const L& low, const L& high) {
      return larger(magnitude(low), magnitude(high));
    };
    size = most(p.low_a, p.high_a) + most(p.low_b, p.high_b);
    // Corners are rounded once, products and sums five times; pool and plane together change by at
    // most 3 where a corner changes by 1.
    rounding = (size + most(p.low_d, p.high_d)) * (32 * kHalfUlp) + kUnderflow;
  }

  // The least offset that these slopes can have.
  NNMF_CUDA_INLINE L offset(const L& slope_a, const L& slope_b) const {
    L most = pooled[0] - slope_a * a[0] - slope_b * b[0];
    for (int i = 1; i < 6; ++i) most = larger(most, L(pooled[i] - slope_a * a[i] - slope_b * b[i]));
    return most;
  }
};

// Above, the lowest of four planes in the middle of the box; below, the larger unit there.
template <class L>
NNMF_CUDA_INLINE PoolPlanes<L> pool_planes(const PairBounds<L>& p) {
  const L zero{}, one = zero + 1.0, half = zero + 0.5;
  const L low = larger(p.low_a, p.low_b), high = larger(p.high_a, p.high_b);
  const ReluLines<L> of_larger = relu_lines(low, high), of_first = relu_lines(p.low_d, p.high_d);
  // Slopes along the four edges of the box.
  const auto slope = [&](const L& at_high, const L& at_low, const L& width) {
    const L rise = larger(at_high, L{}) - larger(at_low, L{});
    return within(L(rise / larger(width, L(L{} + kUnderflow))), L{}, L(L{} + 1.0));
  };
  const L wide_a = p.high_a - p.low_a, wide_b = p.high_b - p.low_b,
          only_a = larger(p.high_a, p.low_b), only_b = larger(p.low_a, p.high_b);
  L slope_a[4], slope_b[4];
  slope_a[0] = slope(only_a, low, wide_a), slope_b[0] = slope(only_b, low, wide_b);
  slope_a[1] = slope(high, only_b, wide_a), slope_b[1] = slope(high, only_a, wide_b);
  slope_a[2] = of_larger.upper * of_first.upper;
  slope_b[2] = of_larger.upper * (one - of_first.upper);
  slope_a[3] = half * (slope_a[0] + slope_a[1]), slope_b[3] = half * (slope_b[0] + slope_b[1]);
  const PoolCorners<L> corners(p);
  const L middle_a = half * (p.low_a + p.high_a), middle_b = half * (p.low_b + p.high_b);
  PoolPlanes<L> planes{};
  L best{};
  for (int i = 0; i < 4; ++i) {
    const L offset = corners.offset(slope_a[i], slope_b[i]);
    // Equally low ones are common: the first, whatever the rounding.
    const L value =
        offset + slope_a[i] * middle_a + slope_b[i] * middle_b + (i * 1e-9) * corners.size;
    const auto better = i == 0 ? value == value : value < best;
    best = better ? value : best;
    planes.upper_a = better ? slope_a[i] : planes.upper_a;
    planes.upper_b = better ? slope_b[i] : planes.upper_b;
    planes.offset = better ? offset : planes.offset;
  }
  const auto off = high <= zero;
  const auto a_leads =
      (p.low_d >= zero) | ((p.high_d > zero) & (p.low_a + p.high_a >= p.low_b + p.high_b));
  const L on = off ? zero : of_larger.lower;
  planes.lower_a = a_leads ? on : zero;
  planes.lower_b = a_leads ? zero : on;
  // Where it is known which of a, b and 0 the pool is, that is it, above and below.
  const auto known = off | ((low >= zero) & ((p.low_d >= zero) | (p.high_d <= zero)));
  planes.upper_a = known ? planes.lower_a : planes.upper_a;
  planes.upper_b = known ? planes.lower_b : planes.upper_b;
  planes.offset = known ? zero : L(planes.offset + corners.rounding);
  return planes;
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
