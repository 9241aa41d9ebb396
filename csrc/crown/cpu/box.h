// ISA source (see isa.h): what the bounds of every kind of network are made of: regions, and
// products over lists of units.
//
// Lanes are rows: the functions that are carried back, one a lane. What is known of the units below
// is then one number for all lanes, and units that are off, or on, cost less: products go over
// lists of those units that matter in the box at hand.

#include "../relaxation.h"

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

using Real = Vector<double>;
using Lanes = Real::Lanes;

constexpr int64_t kLanes = Real::kLanes;
constexpr int64_t kPanel = 64;  // rows at a time, so that what is summed stays in cache
constexpr int64_t kTile = NNMF_CUDA_VECTOR_BYTES == 64 ? 8 : 4;  // units of a tile

// Hands out pieces of one block of memory; without a block, it only counts.
class MemoryParts {
 public:
  explicit MemoryParts(char* memory) : memory_(memory) {}

  template <class T>
  void take(T*& pointer, int64_t count) {
    pointer = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
    used_ += blocks_of(count * static_cast<int64_t>(sizeof(T)), 64) * 64;
  }
  int64_t used() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

// Points of a box that also lie in a ball, where there is one: `center` is null where there is not.
// Around the features stand two zeros before and three after them, for windows that reach beyond.
struct Region {
  static constexpr int64_t kBefore = 2, kAfter = 3;
  static int64_t size(int64_t n_features) { return 4 * (n_features + kBefore + kAfter); }

  double *middle, *half, *center, *inside;
  double radius, largest;

  Region(const CrownBoxes& boxes, int64_t box, double* memory) : radius(0), largest(0) {
    const int64_t n = boxes.n_features, stride = n + kBefore + kAfter;
    __builtin_memset(memory, 0, sizeof(double) * static_cast<std::size_t>(4 * stride));
    middle = memory + kBefore;
    half = middle + stride;
    center = half + stride;
    inside = center + stride;
    const double *lower = boxes.lower + box * n, *upper = boxes.upper + box * n;
    if (boxes.radius != nullptr) radius = boxes.radius[box];
    for (int64_t i = 0; i < n; ++i) {
      middle[i] = 0.5 * lower[i] + 0.5 * upper[i];
      half[i] = 0.5 * upper[i] - 0.5 * lower[i];
      inside[i] = 1;
      if (boxes.center != nullptr) center[i] = boxes.center[box * n + i];
    }
    if (boxes.center == nullptr) center = nullptr;
    consider(radius);
    for (int64_t i = 0; i < n; ++i) {
      consider(lower[i]);
      consider(upper[i]);
      if (center != nullptr) consider(magnitude(center[i]) + radius);
    }
  }

  // Of a feature, anywhere in box or ball.
  double magnitude_at(int64_t i) const {
    const double in_box = magnitude(middle[i]) + magnitude(half[i]);
    return center == nullptr ? in_box : larger(in_box, magnitude(center[i]) + radius);
  }

 private:
  void consider(double value) {
    const double size = magnitude(value);
    if (!(size <= largest) && largest == largest) largest = size;
  }
};

// What a linear function is on the region: at least `low`, at most `high`.
struct Range {
  Lanes low, high;
};

// The ranges of functions with `count` coefficients get(i), from feature `first` on.
template <class Get>
NNMF_CUDA_INLINE Range range_of(const Region& r, int64_t first, int64_t count, const Get& get) {
  Lanes at_middle{}, reach{};
  for (int64_t i = 0; i < count; ++i) {
    const Lanes c = get(i);
    at_middle += c * r.middle[first + i];
    reach += magnitude(c) * r.half[first + i];
  }
  Range range{at_middle - reach, at_middle + reach};
  if (r.center == nullptr) return range;
  Lanes at_center{}, square{};
  for (int64_t i = 0; i < count; ++i) {
    const Lanes c = get(i) * r.inside[first + i];
    at_center += c * r.center[first + i];
    square += c * c;
  }
  const Lanes length = r.radius * Real::sqrt(square + kUnderflow);
  range.low = larger(range.low, Lanes(at_center - length));
  range.high = smaller(range.high, Lanes(at_center + length));
  return range;
}

// What rounding can have done to the bound of a unit of some magnitude.
struct Slack {
  double share, absolute;

  template <class L>
  NNMF_CUDA_INLINE L of(const L& size) const {
    return share * size + absolute;
  }
};

// At least 1, NaN where `value` is.
NNMF_CUDA_INLINE double at_least_one(double value) {
  return value <= 1 ? 1 : value;
}

// How much the objective can enlarge numbers of the last hidden layer.
inline double objective_growth(const double* objective, const double* weight, const double* bias,
                               int64_t n_classes, int64_t lanes) {
  double sum = 0;
  for (int64_t k = 0; k < n_classes; ++k) {
    double row = magnitude(bias[k]);
    for (int64_t o = 0; o < lanes; ++o) row += magnitude(weight[k * lanes + o]);
    sum += magnitude(objective[k]) * row;
  }
  return at_least_one(sum);
}

inline void claim_nothing(const CrownBoxes& boxes, int64_t box) {
  boxes.bound[box] = -__builtin_inf();
  for (int64_t i = 0; i < boxes.n_features; ++i) boxes.slope[box * boxes.n_features + i] = 0;
  for (int64_t o = 0; o < boxes.n_hidden; ++o) {
    boxes.new_hidden_lower[box * boxes.n_hidden + o] = -__builtin_inf();
    boxes.new_hidden_upper[box * boxes.n_hidden + o] = __builtin_inf();
  }
}

// Narrows the last hidden layer's bounds to what was known before.
inline void meet_known(const CrownBoxes& boxes, int64_t box, double* low, double* high) {
  if (boxes.hidden_lower == nullptr) return;
  const double *known_low = boxes.hidden_lower + box * boxes.n_hidden,
               *known_high = boxes.hidden_upper + box * boxes.n_hidden;
  for (int64_t o = 0; o < boxes.n_hidden; ++o) {
    if (known_low[o] > low[o]) low[o] = known_low[o];
    if (known_high[o] < high[o]) high[o] = known_high[o];
  }
}

inline void give_hidden(const CrownBoxes& boxes, int64_t box, const double* low,
                        const double* high) {
  for (int64_t o = 0; o < boxes.n_hidden; ++o) {
    boxes.new_hidden_lower[box * boxes.n_hidden + o] = low[o];
    boxes.new_hidden_upper[box * boxes.n_hidden + o] = high[o];
  }
}

// Lists the units whose sign is not known: only those are worth more work. Returns how many.
inline int64_t list_open(const double* low, const double* high, int64_t n_units, int64_t* open) {
  int64_t n_open = 0;
  for (int64_t o = 0; o < n_units; ++o)
    if (low[o] < 0 && high[o] > 0) open[n_open++] = o;
  return n_open;
}

// The objective's bound, of which `slope` and a constant that has the slack are the function.
inline void give_bound(const CrownBoxes& boxes, int64_t box, const Region& region,
                       const double* slope, double constant) {
  const Range range =
      range_of(region, 0, boxes.n_features, [&](int64_t i) { return Real::broadcast(slope[i]); });
  const double bound = range.low[0] + constant;
  if (!(bound - bound == 0)) return claim_nothing(boxes, box);
  boxes.bound[box] = bound;
  for (int64_t i = 0; i < boxes.n_features; ++i) boxes.slope[box * boxes.n_features + i] = slope[i];
}

// Takes better bounds of a vector of listed units, whose slack is still to come off.
inline void improve(const Lanes& low, const Lanes& high, const Slack& slack, const double* sizes,
                    const int64_t* units, int64_t count, double* to_low, double* to_high) {
  for (int64_t l = 0; l < kLanes && l < count; ++l) {
    const int64_t o = units[l];
    const double less = slack.of(sizes[o]);
    to_low[o] = larger(to_low[o], low[l] - less);
    to_high[o] = smaller(to_high[o], high[l] + less);
  }
}

NNMF_CUDA_INLINE void add(double* to, const Lanes& value) {
  Real::store(to, Real::load(to) + value);
}

// sum[o][v] += sum_k weights[k][o] rows[k][v]: `count` units below, `vectors` vectors of rows.
template <int64_t count, int64_t vectors>
NNMF_CUDA_INLINE void add_products(const double* const* rows, int64_t row, const double* weights,
                                   int64_t stride, int64_t n_units, Lanes (&sum)[count][vectors]) {
  for (int64_t k = 0; k < n_units; ++k, weights += stride) {
    Lanes r[vectors];
#pragma GCC unroll 2
    for (int64_t v = 0; v < vectors; ++v) r[v] = Real::load_once(rows[k] + row + v * kLanes);
#pragma GCC unroll 12
    for (int64_t o = 0; o < count; ++o) {
      const Lanes w = Real::broadcast(weights[o]);
#pragma GCC unroll 2
      for (int64_t v = 0; v < vectors; ++v) sum[o][v] += w * r[v];
    }
  }
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
