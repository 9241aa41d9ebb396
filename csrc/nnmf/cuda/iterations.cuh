// Iterations on the device, multiplicative or by coordinates: new values of a factor from the sums
// that the splits of a half-step have left, and a launch sequence without a word from the host in
// between.
#pragma once

#include <algorithm>
#include <cstdint>

#include "factor_kernels.cuh"
#include "half_step.cuh"
#include "tensor_parts.cuh"

namespace nnmf_cuda {

template <class T>
struct UpdateTask {
  T* factor;     // [B, length, padded]
  float* parts;  // the same as tensor cores read it (tensor_parts.cuh), where they do
  bool parts_in_fours;
  const T* numerators;    // [B, splits, length, padded]
  const T* denominators;  // the same; where the loss sums them
  const double* sums;     // Kullback-Leibler: [B, splits, padded]
  const double* gram;     // Frobenius: [B, padded, padded]
  const bool* active;     // [B] or nullptr
  int64_t length, splits;
  int n_components, n_fixed, padded;
  Update update;
  Ways ways;          // of threads that have a vector each
  Ways ways_of_sums;  // of threads that have a component each
  Divisor blocks;     // of a problem
  int last;           // values of a problem's last block
};

// The task that a half-step leaves: a row has `padded` values.
template <class T, class Data>
UpdateTask<T> update_task(const HalfStep<T, Data>& step, const double* gram, int padded) {
  UpdateTask<T> task{};
  task.factor = step.own;
  task.numerators = step.numerators;
  task.denominators = step.denominators;
  task.sums = step.sums;
  task.gram = gram;
  task.active = step.active;
  task.length = step.cut.length;
  task.splits = step.cut.splits;
  task.n_components = step.n_components;
  task.n_fixed = step.n_fixed;
  task.padded = padded;
  task.update = step.update;
  return task;
}

constexpr int kMostWays = 8;  // that threads of update_kernel share parts in
template <class T>
constexpr int kUpdateVector = kPiece / static_cast<int>(sizeof(T));  // values that a thread loads
template <class T>
constexpr int kUpdateValues = kThreads * kUpdateVector<T>;  // of a block, times its ways

// The sums over parts of the block's values, of which `from` is the first: each way leaves its own
// in `to` [ways, values].
template <class T>
__device__ __forceinline__ void add_parts(const UpdateTask<T>& task, const T* from, int64_t size,
                                          int values, double* to) {
  constexpr int kVector = kUpdateVector<T>;
  const Ways& ways = task.ways;
  const int at = ways.column(threadIdx.x) * kVector, way = ways.way(threadIdx.x);
  if (at >= values) return;
  double sums[kVector] = {};
  for_each_part(from + at, way, static_cast<int>(task.splits), ways.ways, size, [&](const T* part) {
    const auto pack = *reinterpret_cast<const Pack<T, kVector>*>(part);
#pragma unroll
    for (int e = 0; e < kVector; ++e) sums[e] += static_cast<double>(pack.values[e]);
  });
#pragma unroll
  for (int e = 0; e < kVector; ++e) to[way * ways.columns() * kVector + at + e] = sums[e];
}

constexpr int kSumRows = kThreads / kWarp;  // that are left of the splits' sums

// The sums of the other factor's components, in `to` [kSumRows, padded]: each row those of some of
// the splits. With more than 32 components there are fewer rows: kThreads numbers in all.
template <class T>
__device__ __forceinline__ void add_component_sums(const UpdateTask<T>& task, int64_t b, int padded,
                                                   const Ways& ways, double* to) {
  const int thread = static_cast<int>(threadIdx.x);
  const int component = ways.column(threadIdx.x), way = ways.way(threadIdx.x);
  double sum = 0;
  for_each_part(task.sums + b * task.splits * padded + component, way,
                static_cast<int>(task.splits), ways.ways, padded,
                [&](const double* part) { sum += *part; });
  for (int distance = padded; distance < kWarp; distance *= 2)
    sum += __shfl_xor_sync(kAllLanes, sum, distance);
  if (thread % kWarp < padded)
    to[padded < kWarp ? thread / kWarp * padded + component : thread] = sum;
}

// The sum of from[at], from[at + step], ... below `end`.
__device__ __forceinline__ double sum_rows(const double* from, int at, int end, int step) {
  double sum = from[at];
#pragma unroll 1
  for (at += step; at < end; at += step) sum += from[at];
  return sum;
}

// A block for some values that lie side by side, in whole rows. Its threads share their parts, a
// vector of values each; afterwards each has new values to find, all of the same component.
template <Loss loss, class T, bool in_parts>
__global__ void __launch_bounds__(kThreads, 4) update_kernel(UpdateTask<T> task) {
  constexpr bool kSummed = loss == Loss::kKullbackLeibler;
  NNMF_CUDA_SHARED(double, numerators, [kUpdateValues<T>]);
  NNMF_CUDA_SHARED(double, denominators, [kSummed ? kThreads : kUpdateValues<T>]);
  wait_for_kernel_before();
  // Tensor cores have one number of components only: said so, the compiler leaves out the others.
  const int padded = in_parts ? kTensorComponents : task.padded;
  const Ways of_sums =
      in_parts ? Ways{kThreads / kTensorComponents, kLogTensorComponents} : task.ways_of_sums;
  const int64_t size = task.length * padded;
  const int of_block = task.ways.columns() * kUpdateVector<T>;
  const unsigned problem = task.blocks.quotient(blockIdx.x);
  const unsigned block = blockIdx.x - problem * task.blocks.value();
  const int64_t b = problem, begin = static_cast<int64_t>(block) * of_block;
  if (task.active != nullptr && !task.active[b]) return;
  const int values = block + 1 == task.blocks.value() ? task.last : of_block;
  const int thread = static_cast<int>(threadIdx.x);
  const int component = thread & (padded - 1);  // a power of two
  const int64_t first = b * task.splits * size + begin;
  T* const factor = task.factor + b * size + begin;
  add_parts(task, task.numerators + first, size, values, numerators);
  if constexpr (kSummed) {
    add_component_sums(task, b, padded, of_sums, denominators);
  } else if constexpr (loss == Loss::kFrobenius) {
    const double* const gram = task.gram + b * padded * padded + component;
    for (int v = thread; v < values; v += kThreads) {
      double sum = 0;
      for (int other = 0; other < task.n_components; ++other)
        sum += static_cast<double>(factor[v - component + other]) * gram[other * padded];
      denominators[v] = sum;
    }
  } else {
    add_parts(task, task.denominators + first, size, values, denominators);
  }
  __syncthreads();  // all is added up, and all of a row was read before any of it changes
  if (component < task.n_fixed) return;
  UpdateRule rule = task.update.rule;
  // As it is for these losses: the compiler then leaves the power out.
  if constexpr (kSummed || loss == Loss::kFrobenius) rule.gamma = 1;
  const int end = task.ways.ways * of_block;
  double denominator = 0;
  if constexpr (kSummed) {
    const int sums = padded < kWarp ? kSumRows * padded : kThreads;
    denominator = sum_rows(denominators, component, sums, padded);
    if (denominator == 0) denominator = task.update.zero_sum;
  }
  [[maybe_unused]] float* parts = nullptr;
  if constexpr (in_parts) {
    static_assert(kThreads == kUnit * kTensorComponents);
    const int64_t row = begin / kTensorComponents;  // of the block: with part of a unit, perhaps
    parts = task.parts + unit_of(b, task.length, row) +
            part_of(task.parts_in_fours,
                    static_cast<unsigned>(row) % kUnit + threadIdx.x / kTensorComponents,
                    threadIdx.x % kTensorComponents);
  }
#pragma unroll 1
  for (int v = thread; v < values; v += kThreads) {
    if constexpr (loss == Loss::kFrobenius)
      denominator = denominators[v];
    else if constexpr (!kSummed)
      denominator = sum_rows(denominators, v, end, of_block);
    const double numerator = sum_rows(numerators, v, end, of_block);
    const T changed = updated(factor[v], static_cast<T>(numerator * task.update.scale),
                              static_cast<T>(denominator), rule);
    const T value =
        component < task.n_components ? changed : T{0};  // behind the last: NaN, perhaps
    factor[v] = value;
    if constexpr (in_parts) {
      store_parts(parts, value);
      parts += kUnitParts;
    }
  }
}

template <Loss loss, bool in_parts = false, class T>
void launch_update(UpdateTask<T> task, int64_t batch, cudaStream_t stream) {
  constexpr int kVector = kUpdateVector<T>;
  // Whole rows in a block, and few ways: what comes after a thread's sums costs more than they do.
  task.ways = ways_of(task.splits / 2, task.padded / kVector, kMostWays);
  task.ways_of_sums = ways_for(task.padded);
  const int64_t blocks = task.ways.blocks(task.length * task.padded / kVector);
  if (batch * blocks == 0) return;
  task.blocks = Divisor(blocks);
  task.last =
      static_cast<int>(task.length * task.padded - (blocks - 1) * task.ways.columns() * kVector);
  NNMF_CUDA_LAUNCH_NEXT((update_kernel<loss, T, in_parts>), grid_of(batch * blocks), kThreads, 0,
                        stream, task);
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
    launch_pack(problem_.H, H_packed_, s.batch, layout_of_H(s, padded_), stream, Starts::kEarly);
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
      launch_update<Tiling::kLoss>(update_task(step, gram_, padded_), batch, stream);
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
