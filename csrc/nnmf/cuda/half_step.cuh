// The sums of one half-step, in one reading of X: for every value of the factor that is updated
// the numerator, and what its denominator needs. W H exists only in registers. The same sums are
// the products that least squares needs of X and H.
#pragma once

#include <algorithm>
#include <cstdint>

#include "device_problem.cuh"
#include "factor_kernels.cuh"
#include "wide_product.cuh"

namespace nnmf_cuda {

template <class T, class Data>
struct HalfStep {
  const Data* X;
  int64_t x_stride, x_row_stride;
  const T* other;   // [B, depth, padded]
  T* own;           // [B, length, padded]: what is updated
  T* numerators;    // [B, splits, length, padded]
  T* denominators;  // the same; only where the loss sums them
  double* sums;     // [B, splits, padded]: of the other factor's components, Kullback-Leibler only
  const bool* active;  // [B]: problems that are not stay as they are; nullptr: all are
  Cut cut;
  Update update;
  TermRule<T> terms;  // the update's, in the registers' type
  int n_components, n_fixed;
  int group;    // lanes that share a row
  int at_once;  // bytes of X
  bool whole;   // there is one split, and the kernel updates the factor itself
};

// What a lane adds up.
template <class Tiling>
struct LaneSums {
  using T = typename Tiling::T;
  T own[Tiling::kUsesProduct ? Tiling::kOwn : 1][Tiling::kComponents];
  T numerator[Tiling::kOwn][Tiling::kComponents];
  T denominator[Tiling::kSumsDenominator ? Tiling::kOwn : 1][Tiling::kComponents];
};

template <class Tiling>
__device__ __forceinline__ void accumulate(LaneSums<Tiling>& lane,
                                           const typename Tiling::T (&x)[Tiling::kOwn],
                                           const typename Tiling::T (&other)[Tiling::kComponents],
                                           const TermRule<typename Tiling::T>& rule, int group) {
  using T = typename Tiling::T;
#pragma unroll
  for (int i = 0; i < Tiling::kOwn; ++i) {
    T wh = 0;
    if constexpr (Tiling::kUsesProduct) wh = product<Tiling>(lane.own[i], other, group);
    const T top = numerator_term<Tiling::kLoss>(x[i], wh, rule);
#pragma unroll
    for (int j = 0; j < Tiling::kUsed; ++j) lane.numerator[i][j] += top * other[j];
    if constexpr (Tiling::kSumsDenominator) {
      const T bottom = denominator_term<Tiling::kLoss>(wh, rule);
#pragma unroll
      for (int j = 0; j < Tiling::kUsed; ++j) lane.denominator[i][j] += bottom * other[j];
    }
  }
}

// Sums of the other factor's components, which lanes share: where there are fewer components than
// lanes, each has every `kWays`-th depth of one of them; otherwise lane l has components l, l + 32,
// and so on.
template <class Tiling>
struct ComponentSums {
  static constexpr int kWays = Tiling::kGrouped ? 1 : kWarp / Tiling::kComponents;
  static constexpr int kCount = Tiling::kGrouped ? kMaxComponents / kWarp : 1;
  double values[kCount] = {};

  static __device__ __forceinline__ int component(int at) {
    return static_cast<int>(threadIdx.x) % (kWarp / kWays) + at * kWarp;
  }

  __device__ __forceinline__ void add(const typename Tiling::T* other, int padded) {
    const int way = static_cast<int>(threadIdx.x) / (kWarp / kWays);
#pragma unroll
    for (int at = 0; at < kCount; ++at) {
      if (component(at) >= padded) break;
      const typename Tiling::T* const own = other + way * padded + component(at);
      typename Tiling::T sum = 0;
#pragma unroll
      for (int d = 0; d < Tiling::kDepth; d += kWays) sum += own[d * padded];
      values[at] += static_cast<double>(sum);
    }
  }

  // By all lanes.
  template <class Number>
  __device__ __forceinline__ void store(Number* to, int padded) const {
#pragma unroll
    for (int at = 0; at < kCount; ++at) {
      double sum = values[at];
#pragma unroll
      for (int distance = kWarp / kWays; distance < kWarp; distance *= 2)
        sum += __shfl_xor_sync(kAllLanes, sum, distance);
      if (component(at) < padded) to[component(at)] = static_cast<Number>(sum);
    }
  }
};

// Values of a warp's rows, which lie side by side.
template <class Tiling>
constexpr int kRowValues = kWarp * Tiling::kOwn * Tiling::kComponents;

// Leaves the lanes' rows in shared memory, side by side, and returns where.
template <class Tiling, Factor factor>
__device__ __forceinline__ const typename Tiling::T* stage_rows(
    const typename Tiling::T (&rows)[Tiling::kOwn][Tiling::kComponents],
    const Place<Tiling, factor>& place, unsigned char* memory) {
  using T = typename Tiling::T;
  T* const staged = reinterpret_cast<T*>(memory);
  __syncwarp();  // before this overwrites what is read there
#pragma unroll
  for (int i = 0; i < Tiling::kOwn; ++i)
    store_components(rows[i], place, staged + place.row(i) * Tiling::kComponents * place.group);
  __syncwarp();
  return staged;
}

// Stores the lanes' rows, at most `count` values. They go by way of shared memory, so that lanes
// write side by side.
template <class Tiling, Factor factor>
__device__ __forceinline__ void store_rows(
    const typename Tiling::T (&rows)[Tiling::kOwn][Tiling::kComponents],
    const Place<Tiling, factor>& place, unsigned char* memory, typename Tiling::T* to,
    int64_t count) {
  using Vector = Pack<typename Tiling::T, Tiling::kVector>;
  const auto* const staged = stage_rows(rows, place, memory);
  for (int first = 0; first < kRowValues<Tiling>; first += kWarp * Tiling::kVector) {
    const int at = first + static_cast<int>(threadIdx.x) * Tiling::kVector;
    if (at < count)
      *reinterpret_cast<Vector*>(to + at) = *reinterpret_cast<const Vector*>(staged + at);
  }
}

// Kullback-Leibler, whole depth: new values of the warp's rows, at most `count` of them, which
// begin at `own`. `memory` has room for the rows and a row of sums.
template <class Tiling, Factor factor>
__device__ __forceinline__ void update_rows(
    const HalfStep<typename Tiling::T, typename Tiling::Data>& step,
    const Place<Tiling, factor>& place, const LaneSums<Tiling>& lane,
    const ComponentSums<Tiling>& sums, unsigned char* memory, typename Tiling::T* own,
    int64_t count) {
  using T = typename Tiling::T;
  using Vector = Pack<T, Tiling::kVector>;
  const int padded = Tiling::kComponents * step.group;
  T* const denominators = reinterpret_cast<T*>(memory) + kRowValues<Tiling>;
  sums.store(denominators, padded);
  const T* const numerators = stage_rows(lane.numerator, place, memory);
  UpdateRule rule = step.update.rule;
  rule.gamma = 1;  // as it is for this loss: the compiler then leaves the power out
#pragma unroll 1
  for (int at = static_cast<int>(threadIdx.x) * Tiling::kVector;
       at < count && at < kRowValues<Tiling>; at += kWarp * Tiling::kVector) {
    const int first = at & (padded - 1);  // component: a power of two
    const Vector numerator = *reinterpret_cast<const Vector*>(numerators + at);
    const Vector denominator = *reinterpret_cast<const Vector*>(denominators + first);
    Vector values = *reinterpret_cast<const Vector*>(own + at);
#pragma unroll
    for (int e = 0; e < Tiling::kVector; ++e) {
      if (first + e < step.n_fixed) continue;
      const T sum =
          denominator.values[e] == 0 ? static_cast<T>(step.update.zero_sum) : denominator.values[e];
      const T value = updated(values.values[e],
                              numerator.values[e] * static_cast<T>(step.update.scale), sum, rule);
      values.values[e] = first + e < step.n_components ? value : T{0};  // behind the last: NaN?
    }
    *reinterpret_cast<Vector*>(own + at) = values;
  }
}

// A warp for each problem, split and tile of the length.
template <class Tiling, Factor factor>
__global__ void __launch_bounds__(kWarp, Tiling::kResident)
    half_step_kernel(HalfStep<typename Tiling::T, typename Tiling::Data> step) {
  using T = typename Tiling::T;
  NNMF_CUDA_DYNAMIC_SHARED(unsigned char, memory);
  const Cut& cut = step.cut;
  const int group = Tiling::kGrouped ? step.group : 1, padded = Tiling::kComponents * group;
  const Place<Tiling, factor> place(group);
  const Walk<Tiling> walk = walk_of<Tiling, factor>(step, step.other, group);
  const int64_t b = walk.problem, split = walk.split;
  const bool idle = step.active != nullptr && !step.active[b];
  if (!idle) start_walk<Tiling, factor>(walk, memory);
  wait_for_kernel_before();
  if (idle) return;

  T* const own = Tiling::kUsesProduct ? step.own + (b * cut.length + walk.first) * padded : nullptr;
  LaneSums<Tiling> lane = {};
  if constexpr (Tiling::kUsesProduct) {
#pragma unroll
    for (int i = 0; i < Tiling::kOwn; ++i)
      if (walk.first + place.row(i) < cut.length)
        load_components(own + place.row(i) * padded, place, lane.own[i]);
  }
  ComponentSums<Tiling> sums;
  const bool adds_components =
      Tiling::kLoss == Loss::kKullbackLeibler && (step.whole || walk.tile == 0);
  for_each_tile<Tiling, factor>(
      walk, memory, [&](const unsigned char* x_tile, const T* other, int64_t) {
        for_each_entry<Tiling, factor>(
            x_tile, other, place,
            [&](int, const T(&x)[Tiling::kOwn], const T(&components)[Tiling::kComponents]) {
              accumulate<Tiling>(lane, x, components, step.terms, group);
            });
        if (adds_components) sums.add(other, padded);
      });

  const int64_t count = (walk.length - walk.first) * padded;
  if constexpr (Tiling::kLoss == Loss::kKullbackLeibler) {
    if (step.whole) return update_rows(step, place, lane, sums, memory, own, count);
    if (walk.tile == 0) sums.store(step.sums + (b * cut.splits + split) * padded, padded);
  }
  const int64_t at = ((b * cut.splits + split) * cut.length + walk.first) * padded;
  store_rows(lane.numerator, place, memory, step.numerators + at, count);
  if constexpr (Tiling::kSumsDenominator)
    store_rows(lane.denominator, place, memory, step.denominators + at, count);
}

template <class Tiling, Factor factor>
void launch_half_step(const HalfStep<typename Tiling::T, typename Tiling::Data>& step,
                      int64_t batch, cudaStream_t stream, Starts starts) {
  const int64_t blocks = batch * step.cut.tiles * step.cut.splits;
  if (blocks == 0) return;
  const int values = kRowValues<Tiling> + Tiling::kComponents * step.group;  // rows, and their sums
  const int bytes = std::max(kStages * stage_of<Tiling, factor>(step.group).bytes,
                             values * static_cast<int>(sizeof(typename Tiling::T)));
  if (starts == Starts::kEarly)
    NNMF_CUDA_LAUNCH_NEXT((half_step_kernel<Tiling, factor>), grid_of(blocks), kWarp, bytes, stream,
                          step);
  else
    NNMF_CUDA_LAUNCH((half_step_kernel<Tiling, factor>), grid_of(blocks), kWarp, bytes, stream,
                     step);
}

// Tiling is one of dispatch_tiling<Loss::kFrobenius, ...>; the problem's W is not looked at.
template <class Tiling>
class ProductsLaunches {
 public:
  using T = typename Tiling::T;
  using Data = typename Tiling::Data;
  static_assert(Tiling::kLoss == Loss::kFrobenius);

  // Memory has get<T>(size), as DeviceMemory.
  template <class Memory>
  ProductsLaunches(const DeviceProblem<T, Data>& problem, int group, Memory& memory)
      : problem_(problem),
        group_(group),
        padded_(Tiling::kComponents * group),
        cut_(cut_for<Tiling, Factor::kW>(problem, group)) {
    const Shape& s = problem.shape;
    products_ = memory.template get<T>(s.batch * padded_ * cut_.splits * s.n_samples);
  }

  // cross [B, n_samples, n_components] = scale * X H^T, added up in float64. `packed` is H.
  void launch(double scale, const T* packed, double* cross, cudaStream_t stream) const {
    const Shape& s = problem_.shape;
    const int k = static_cast<int>(s.n_components);
    HalfStep<T, Data> step{};
    step.X = problem_.X;
    step.x_stride = s.x_stride;
    step.x_row_stride = s.x_row_stride;
    step.other = packed;
    step.cut = cut_;
    step.numerators = products_;
    step.n_components = k;
    step.group = group_;
    step.at_once = copied_at_once<Tiling, Factor::kW>(problem_, group_);
    launch_half_step<Tiling, Factor::kW>(step, s.batch, stream, Starts::kAfter);
    launch_sum_parts(products_, cross, s.batch, cut_.splits,
                     {s.n_samples, s.n_samples, padded_, k, scale}, stream);
  }

 private:
  DeviceProblem<T, Data> problem_;
  int group_, padded_;
  Cut cut_;
  T* products_;
};

// Whether X and H are multiplied by blocks: for more components than a warp keeps in registers, and
// in float64 where there are more of them than features. Those depend on each other, and the
// rounding of float32 would pull rows along combinations that change nothing.
template <class T>
bool multiplies_exactly(const Shape& s) {
  return sizeof(T) < sizeof(double) && s.n_components > s.n_features;
}

template <class T>
bool multiplies_by_blocks(const Shape& s) {
  return s.n_components > kMaxComponents || multiplies_exactly<T>(s);
}

// Components of H where products read it, zeros behind the last one.
template <class T>
int64_t packed_components(const Shape& s) {
  int64_t padded = s.n_components;
  if (!multiplies_by_blocks<T>(s))
    dispatch_tiling<Loss::kFrobenius, T, T>(
        padded, [&]<class Tiling>(Tiling, int group) { padded = Tiling::kComponents * group; });
  return padded;
}

// packed [B, n_features, packed_components] = H; gram [B, n_components, n_components] = H H^T,
// added up in float64. The problem's X is not looked at.
template <class T, class Data, class Memory>
void launch_components(const DeviceProblem<T, Data>& problem, T* packed, double* gram,
                       Memory& memory, cudaStream_t stream) {
  const Shape& s = problem.shape;
  const int padded = static_cast<int>(packed_components<T>(s)),
            k = static_cast<int>(s.n_components);
  launch_pack(problem.H, packed, s.batch, layout_of_H(s, padded), stream);
  if (multiplies_by_blocks<T>(s))
    return launch_wide_gram(packed, gram, nullptr, s.batch, s.n_features, k, stream);
  double* const parts =
      memory.template get<double>(s.batch * gram_chunks(s.batch, s.n_features) * padded * padded);
  launch_gram(packed, parts, gram, s.batch, s.n_features, padded, k, stream);
}

// The products by blocks; T is what X and H are multiplied in.
template <class T, class F, class Data>
void launch_wide_products(const DeviceProblem<F, Data>& problem, double scale, const F* packed,
                          double* cross, cudaStream_t stream) {
  const Shape& s = problem.shape;
  const int64_t k = s.n_components;
  WideProduct<T, Data, F> product{};
  product.left = problem.X;
  product.left_problem = s.x_stride;
  product.left_row = s.x_row_stride;
  product.left_deep = 1;
  product.right = packed;
  product.right_problem = s.n_features * k;
  product.out = cross;
  product.rows = s.n_samples;
  product.columns = k;
  product.depth = s.n_features;
  product.scale = scale;
  launch_wide_product(product, s.batch, stream);
}

// cross [B, n_samples, n_components] = scale * X H^T for any number of components; `packed` is H as
// launch_components leaves it.
template <class T, class Data, class Memory>
void launch_products(const DeviceProblem<T, Data>& problem, double scale, const T* packed,
                     double* cross, Memory& memory, cudaStream_t stream) {
  const Shape& s = problem.shape;
  if (multiplies_exactly<T>(s))
    return launch_wide_products<double>(problem, scale, packed, cross, stream);
  if (multiplies_by_blocks<T>(s))
    return launch_wide_products<T>(problem, scale, packed, cross, stream);
  dispatch_tiling<Loss::kFrobenius, T, Data>(s.n_components, [&]<class Tiling>(Tiling, int group) {
    ProductsLaunches<Tiling>(problem, group, memory).launch(scale, packed, cross, stream);
  });
}

}  // namespace nnmf_cuda
