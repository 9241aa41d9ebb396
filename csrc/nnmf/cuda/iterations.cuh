// Iterations on the device, multiplicative or by coordinates: new values of a factor from the sums
// that the splits of a half-step have left, and a launch sequence without a word from the host in
// between.
#pragma once

#include <algorithm>
#include <cstdint>

#include "factor_kernels.cuh"
#include "half_step.cuh"

namespace nnmf_cuda {

template <class T>
struct UpdateTask {
  T* factor;              // [B, length, padded]
  const T* numerators;    // [B, splits, length, padded]
  const T* denominators;  // the same; where the loss sums them
  const double* sums;     // Kullback-Leibler: [B, splits, padded]
  const double* gram;     // Frobenius: [B, padded, padded]
  const bool* active;     // [B] or nullptr
  int64_t length, splits;
  int n_components, n_fixed, padded;
  Update update;
  Ways ways, ways_of_sums;
};

// The other factor's components summed, for all values of the block.
template <class T>
__device__ double sum_of_component(const UpdateTask<T>& task, int64_t b, int component) {
  NNMF_CUDA_SHARED(double, sums, [kMaxComponents]);
  const Ways& ways = task.ways_of_sums;
  const int own = ways.column(threadIdx.x);
  const double sum = sum_parts(task.sums + b * task.splits * task.padded + own, task.splits,
                               task.padded, true, ways);
  if (ways.way(threadIdx.x) == 0) sums[own] = sum;
  __syncthreads();
  return sums[component];
}

// A block for some values that lie side by side, in whole rows; a way of threads each.
template <Loss loss, class T>
__global__ void __launch_bounds__(kThreads, 4) update_kernel(UpdateTask<T> task) {
  wait_for_kernel_before();
  const int64_t size = task.length * task.padded;
  const Ways& ways = task.ways;
  const auto blocks = static_cast<unsigned>(ways.blocks(size)), block = blockIdx.x % blocks;
  const int64_t b = blockIdx.x / blocks;
  const int64_t at = (int64_t{block} << ways.log_columns) + ways.column(threadIdx.x);
  if (task.active != nullptr && !task.active[b]) return;
  const bool inside = at < size;
  const int component = static_cast<int>(at & (task.padded - 1));  // a power of two
  const int64_t first = b * task.splits * size + at;
  T* const value = task.factor + b * size + at;
  double denominator = 0;
  if constexpr (loss == Loss::kKullbackLeibler) {
    denominator = sum_of_component(task, b, component);
    if (denominator == 0) denominator = task.update.zero_sum;
  } else if constexpr (loss == Loss::kFrobenius) {
    const double* gram = task.gram + b * task.padded * task.padded;
    if (inside)
      for (int other = 0; other < task.n_components; ++other)
        denominator +=
            static_cast<double>(value[other - component]) * gram[other * task.padded + component];
    __syncthreads();  // all of a row is read before any of it changes
  } else {
    denominator = sum_parts(task.denominators + first, task.splits, size, inside, ways);
  }
  const double numerator = sum_parts(task.numerators + first, task.splits, size, inside, ways);
  if (!inside || component < task.n_fixed) return;
  if (ways.way(threadIdx.x) > 0) return;
  const T changed = updated(*value, static_cast<T>(numerator * task.update.scale),
                            static_cast<T>(denominator), task.update.rule);
  *value = component < task.n_components ? changed : T{0};  // behind the last it may be NaN
}

template <Loss loss, class T>
void launch_update(UpdateTask<T> task, int64_t batch, cudaStream_t stream) {
  task.ways = ways_of(task.splits, task.padded);
  task.ways_of_sums = ways_for(task.padded);
  const int64_t blocks = batch * task.ways.blocks(task.length * task.padded);
  if (blocks > 0)
    NNMF_CUDA_LAUNCH_NEXT((update_kernel<loss, T>), grid_of(blocks), kThreads, 0, stream, task);
}

// Coordinate descent on half the squared Frobenius norm, component by component, from sums over X;
// the twin of update_by_coordinates in cpu/iterate.h.

constexpr int kHalsThreads = 32;  // of a block: one for each row, whose components they all hold

template <class T>
struct HalsTask {
  T* factor;             // [B, length, padded]
  const double* cross;   // [B, length, padded]: the numerators
  const double* gram;    // [B, padded, padded], of the other factor
  int64_t rows, length;  // rows: of all problems
  int n_components, n_fixed, padded;
  Update update;
};

template <class T>
__global__ void __launch_bounds__(kHalsThreads) hals_kernel(HalsTask<T> task) {
  wait_for_kernel_before();
  NNMF_CUDA_DYNAMIC_SHARED(double, values);  // [n_components, kHalsThreads]
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kHalsThreads + threadIdx.x;
  if (row >= task.rows) return;
  double* const own = values + threadIdx.x;
  T* const factor = task.factor + row * task.padded;
  const double* const cross = task.cross + row * task.padded;
  const double* const gram = task.gram + row / task.length * task.padded * task.padded;
  const double l1 = task.update.rule.l1_reg, l2 = task.update.rule.l2_reg;
  for (int r = 0; r < task.n_components; ++r)
    own[r * kHalsThreads] = static_cast<double>(factor[r]);
  for (int64_t sweep = 0; sweep < task.update.n_inner; ++sweep) {
    for (int r = task.n_fixed; r < task.n_components; ++r) {
      const double* const column = gram + r * task.padded;
      const double curvature = column[r] + l2;
      if (curvature == 0) continue;
      own[r * kHalsThreads] = 0;
      double left = task.update.scale * cross[r] - l1;
#pragma unroll 4
      for (int other = 0; other < task.n_components; ++other)
        left -= own[other * kHalsThreads] * column[other];
      own[r * kHalsThreads] = left < 0 ? 0 : left / curvature;
    }
  }
  for (int r = 0; r < task.n_components; ++r) factor[r] = static_cast<T>(own[r * kHalsThreads]);
}

template <class T>
void launch_hals(const HalsTask<T>& task, cudaStream_t stream) {
  const int bytes = task.n_components * kHalsThreads * static_cast<int>(sizeof(double));
  if (task.rows > 0 && task.n_components > 0)
    NNMF_CUDA_LAUNCH_NEXT((hals_kernel<T>), grid_of(blocks_of(task.rows, kHalsThreads)),
                          kHalsThreads, bytes, stream, task);
}

// Both factors in the kernels' layout, what is summed for them, and the launches that do it.
template <class Tiling>
class Iterations {
 public:
  using T = typename Tiling::T;
  using Data = typename Tiling::Data;

  // Memory has get<T>(size), as DeviceMemory.
  template <class Memory>
  Iterations(const DeviceProblem<T, Data>& problem, int group, Memory& memory)
      : problem_(problem),
        group_(group),
        padded_(Tiling::kComponents * group),
        W_(cut_for<Tiling, Factor::kW>(problem, group)),
        H_(cut_for<Tiling, Factor::kH>(problem, group)) {
    const int64_t rows = problem.shape.batch * padded_;
    W_packed_ = memory.template get<T>(rows * W_.length);
    H_packed_ = memory.template get<T>(rows * H_.length);
    const int64_t sums = rows * std::max(W_.splits * W_.length, H_.splits * H_.length);
    numerators_ = memory.template get<T>(sums);
    if (Tiling::kSumsDenominator) denominators_ = memory.template get<T>(sums);
    if (Tiling::kLoss == Loss::kKullbackLeibler)
      sums_ = memory.template get<double>(rows * std::max(W_.splits, H_.splits));
    if (Tiling::kLoss == Loss::kFrobenius) {
      const int64_t batch = problem.shape.batch;
      const int64_t chunks = std::max(gram_chunks(batch, W_.length), gram_chunks(batch, H_.length));
      gram_ = memory.template get<double>(rows * padded_);
      gram_parts_ = memory.template get<double>(rows * padded_ * chunks);
      cross_ = memory.template get<double>(rows * std::max(W_.length, H_.length));
    }
  }

  // n_iter iterations, from the problem's factors to W and H, which are shaped as they are.
  void run(const Update& update_W, const Update& update_H, int64_t n_iter, bool updates_H, T* W,
           T* H, cudaStream_t stream) const {
    const Shape& s = problem_.shape;
    launch_pack(problem_.W, W_packed_, s.batch, layout_of_W(s, padded_), stream);
    launch_pack(problem_.H, H_packed_, s.batch, layout_of_H(s, padded_), stream);
    for (int64_t i = 0; i < n_iter; ++i) {
      update<Factor::kW>(update_W, stream);
      if (updates_H) update<Factor::kH>(update_H, stream);
    }
    launch_unpack(W_packed_, W, s.batch, layout_of_W(s, padded_), stream);
    launch_unpack(H_packed_, H, s.batch, layout_of_H(s, padded_), stream);
  }

 private:
  template <Factor factor>
  void update(const Update& rule, cudaStream_t stream) const {
    const int64_t batch = problem_.shape.batch;
    const auto step = half_step<factor>(rule);
    if (Tiling::kLoss == Loss::kFrobenius)
      launch_gram(step.other, gram_parts_, gram_, batch, step.cut.depth, padded_, padded_, stream);
    launch_half_step<Tiling, factor>(step, batch, stream, Starts::kEarly);
    if (rule.n_inner > 0)
      descend(step, stream);
    else if (!step.whole)
      multiply(step, stream);
  }

  void multiply(const HalfStep<T, Data>& step, cudaStream_t stream) const {
    UpdateTask<T> task{};
    task.factor = step.own;
    task.numerators = step.numerators;
    task.denominators = step.denominators;
    task.sums = sums_;
    task.gram = gram_;
    task.active = problem_.active;
    task.length = step.cut.length;
    task.splits = step.cut.splits;
    task.n_components = step.n_components;
    task.n_fixed = step.n_fixed;
    task.padded = padded_;
    task.update = step.update;
    launch_update<Tiling::kLoss>(task, problem_.shape.batch, stream);
  }

  void descend(const HalfStep<T, Data>& step, cudaStream_t stream) const {
    const int64_t batch = problem_.shape.batch, length = step.cut.length;
    launch_sum_parts(step.numerators, cross_, batch, step.cut.splits,
                     {length, length, padded_, padded_, 1}, stream);
    HalsTask<T> task{};
    task.factor = step.own;
    task.cross = cross_;
    task.gram = gram_;
    task.rows = batch * length;
    task.length = length;
    task.n_components = step.n_components;
    task.n_fixed = step.n_fixed;
    task.padded = padded_;
    task.update = step.update;
    launch_hals(task, stream);
  }

  template <Factor factor>
  HalfStep<T, Data> half_step(const Update& update) const {
    const Shape& s = problem_.shape;
    constexpr bool kIsW = factor == Factor::kW;
    HalfStep<T, Data> step{};
    step.X = problem_.X;
    step.x_stride = s.x_stride;
    step.x_row_stride = s.x_row_stride;
    step.other = kIsW ? H_packed_ : W_packed_;
    step.own = kIsW ? W_packed_ : H_packed_;
    step.cut = kIsW ? W_ : H_;
    step.numerators = numerators_;
    step.denominators = denominators_;
    step.sums = sums_;
    step.active = problem_.active;
    step.update = update;
    step.terms = update.terms.as<T>();
    step.n_fixed = static_cast<int>(update.n_fixed);
    step.n_components = static_cast<int>(s.n_components);
    step.group = group_;
    step.at_once = copied_at_once<Tiling, factor>(problem_, group_);
    step.whole = Tiling::kLoss == Loss::kKullbackLeibler && step.cut.splits == 1;
    return step;
  }

  DeviceProblem<T, Data> problem_;
  int group_, padded_;
  Cut W_, H_;
  T *W_packed_, *H_packed_, *numerators_, *denominators_ = nullptr;
  double *sums_ = nullptr, *gram_ = nullptr, *gram_parts_ = nullptr, *cross_ = nullptr;
};

}  // namespace nnmf_cuda
