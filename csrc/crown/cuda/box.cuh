// What the bounds of both kinds of network share on the device: a block's box, its region and
// memory.
//
// A block has one box at a time. Its threads take items of each stage in turn, rows being
// neighbours; between stages the block waits. What a stage leaves lies in shared memory, or where
// that is too small in scratch memory of the device, of which each block has a part.
#pragma once

#include <cstdint>
#include <limits>

#include "../../common/cuda/launch.h"
#include "../problem.h"

// A thread is an instruction set of one lane.
#define NNMF_CUDA_ISA one_lane
#include "../relaxation.h"
#undef NNMF_CUDA_ISA

namespace nnmf_cuda {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kCrownThreads = 128;
constexpr int64_t kCrownRows = 32;  // that are carried back at a time: a warp's lanes

using one_lane::larger;
using one_lane::magnitude;
using one_lane::relu_lines;
using one_lane::smaller;
using Lines = one_lane::ReluLines<double>;

// Hands out pieces of a block's memory; without it, only counts numbers.
class BlockParts {
 public:
  NNMF_CUDA_INLINE explicit BlockParts(double* memory) : memory_(memory) {}

  template <class T>
  NNMF_CUDA_INLINE void take(T*& pointer, int64_t count) {
    static_assert(sizeof(T) == sizeof(double));
    pointer = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
    used_ += count;
  }
  NNMF_CUDA_INLINE int64_t used() const { return used_; }

 private:
  double* memory_;
  int64_t used_ = 0;
};

// f(item) for all items, a thread each in turn; the block waits for the last.
template <class F>
__device__ void for_items(int64_t count, const F& f) {
  for (int64_t item = threadIdx.x; item < count; item += blockDim.x) f(item);
  __syncthreads();
}

// The sum of numbers in the block's memory, in the same order always; for all threads of the first
// warp.
__device__ inline double sum_by_warp(const double* values, int64_t count) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kWarp) sum += values[i];
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  return sum;
}

struct DeviceRange {
  double low, high;
};

// Points of a box that also lie in a ball, where there is one. Around the features stand two zeros
// before and three after them, for windows that reach beyond.
struct DeviceRegion {
  static constexpr int64_t kBefore = 2, kAround = 5;

  double *middle, *half, *center, *inside;  // center: null where there is no ball
  double radius;

  NNMF_CUDA_INLINE void take(BlockParts& parts, int64_t n_features) {
    for (double** values : {&middle, &half, &center, &inside}) {
      parts.take(*values, n_features + kAround);
      *values += kBefore;
    }
  }

  __device__ void load(const CrownBoxes& boxes, int64_t box) {
    const int64_t n = boxes.n_features;
    const bool ball = boxes.center != nullptr;
    for_items(n + kAround, [&](int64_t item) {
      const int64_t i = item - kBefore, at = box * n + i;
      const bool within = i >= 0 && i < n;
      middle[i] = within ? 0.5 * boxes.lower[at] + 0.5 * boxes.upper[at] : 0;
      half[i] = within ? 0.5 * boxes.upper[at] - 0.5 * boxes.lower[at] : 0;
      center[i] = within && ball ? boxes.center[at] : 0;
      inside[i] = within ? 1 : 0;
    });
    radius = ball ? boxes.radius[box] : 0;
    if (!ball) center = nullptr;
  }

  __device__ double magnitude_at(int64_t i) const {
    const double in_box = magnitude(middle[i]) + magnitude(half[i]);
    return center == nullptr ? in_box : larger(in_box, magnitude(center[i]) + radius);
  }

  // The largest number that stands for a feature; NaN if any of them does.
  __device__ double largest(const CrownBoxes& boxes, int64_t box) const {
    double most = 0;
    const auto consider = [&](double value) {
      const double size = magnitude(value);
      if (!(size <= most) && most == most) most = size;
    };
    consider(radius);
    for (int64_t i = 0; i < boxes.n_features; ++i) {
      consider(boxes.lower[box * boxes.n_features + i]);
      consider(boxes.upper[box * boxes.n_features + i]);
      if (center != nullptr) consider(magnitude(center[i]) + radius);
    }
    return most;
  }

  // The range of a linear function with coefficients get(i), from feature `first` on.
  template <class Get>
  __device__ DeviceRange range(int64_t first, int64_t count, const Get& get) const {
    double at_middle = 0, reach = 0, at_center = 0, square = 0;
    for (int64_t i = 0; i < count; ++i) {
      const double c = get(i);
      at_middle += c * middle[first + i];
      reach += magnitude(c) * half[first + i];
      if (center == nullptr) continue;
      at_center += c * center[first + i];
      square += c * c * inside[first + i];
    }
    DeviceRange range{at_middle - reach, at_middle + reach};
    if (center == nullptr) return range;
    const double length = radius * sqrt(square + kUnderflow);
    range.low = larger(range.low, at_center - length);
    range.high = smaller(range.high, at_center + length);
    return range;
  }
};

// How rounding can have moved the bound of a unit of some magnitude.
struct DeviceSlack {
  double share, absolute;
  NNMF_CUDA_INLINE double of(double size) const { return share * size + absolute; }
};

__device__ inline void claim_nothing(const CrownBoxes& boxes, int64_t box) {
  if (threadIdx.x == 0) boxes.bound[box] = -kInfinity;
  for (int64_t i = threadIdx.x; i < boxes.n_features; i += blockDim.x)
    boxes.slope[box * boxes.n_features + i] = 0;
  for (int64_t o = threadIdx.x; o < boxes.n_hidden; o += blockDim.x) {
    boxes.new_hidden_lower[box * boxes.n_hidden + o] = -kInfinity;
    boxes.new_hidden_upper[box * boxes.n_hidden + o] = kInfinity;
  }
}

// How much the last layer and the objective can enlarge numbers; NaN if anything is.
__device__ inline double objective_growth(const CrownLayer& last, const double* objective) {
  double sum = 0;
  for (int64_t k = 0; k < last.outputs; ++k) {
    double row = magnitude(last.bias[k]);
    for (int64_t i = 0; i < last.inputs; ++i) row += magnitude(last.weight[k * last.inputs + i]);
    sum += magnitude(objective[k]) * row;
  }
  return sum <= 1 ? 1 : sum;
}

// Narrower bounds of a hidden unit, where a parent box has had them.
__device__ inline void meet_known(const CrownBoxes& boxes, int64_t box, int64_t unit, double& low,
                                  double& high) {
  if (boxes.hidden_lower == nullptr) return;
  const double known_low = boxes.hidden_lower[box * boxes.n_hidden + unit],
               known_high = boxes.hidden_upper[box * boxes.n_hidden + unit];
  if (known_low > low) low = known_low;
  if (known_high < high) high = known_high;
}

// Lists the units whose sign is not known; gives their number to all threads.
__device__ inline int64_t list_open(const double* low, const double* high, int64_t n_units,
                                    int64_t* open, int64_t* n_open) {
  if (threadIdx.x == 0) {
    int64_t count = 0;
    for (int64_t o = 0; o < n_units; ++o)
      if (low[o] < 0 && high[o] > 0) open[count++] = o;
    *n_open = count;
  }
  __syncthreads();
  return *n_open;
}

// A function through the line of one unit: below it, or above.
struct ThroughLine {
  double coefficient, constant;
};

template <bool above>
NNMF_CUDA_INLINE ThroughLine through_line(double c, double lower, double upper, double offset) {
  const double relaxed = above ? larger(c, 0.0) : smaller(c, 0.0);
  return {c * lower + relaxed * (upper - lower), relaxed * offset};
}

// Whether the objective's bound, slope . x + constant at its least, is a number; if so it is given.
__device__ inline void give_bound(const CrownBoxes& boxes, int64_t box, const DeviceRegion& region,
                                  const double* slope, double constant) {
  const double bound =
      region.range(0, boxes.n_features, [&](int64_t i) { return slope[i]; }).low + constant;
  if (!(bound - bound == 0)) return claim_nothing(boxes, box);
  if (threadIdx.x == 0) boxes.bound[box] = bound;
  for (int64_t i = threadIdx.x; i < boxes.n_features; i += blockDim.x)
    boxes.slope[box * boxes.n_features + i] = slope[i];
}

}  // namespace nnmf_cuda
