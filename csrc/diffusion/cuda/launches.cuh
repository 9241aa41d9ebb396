// The launches of purify, feature_cnn and defended_logits. Free of torch, without host
// synchronisation. What a row gets does not depend on the other rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels.cuh"
#include "prepare.cuh"

namespace nnmf_cuda {

// How a kernel is compiled: for blocks of as many rows, their activations in shared memory or not.
template <int rows, bool shared>
struct Placed {
  static constexpr int kRows = rows;
  static constexpr bool kShared = shared;
};

// Bytes of shared memory that a block of kRows rows asks for.
template <class T, int kRows>
int64_t shared_bytes_of(int64_t units) {
  return (kMultiplierSize<T, kRows> + units * kRows) * static_cast<int64_t>(sizeof(T));
}

inline bool fits(int64_t bytes, const DeviceSize& size) {
  return bytes <= size.shared_bytes - kReservedShared;
}

constexpr int kHalfRows = kBlockRows / 2;

// Whether blocks have 16 rows: where there is a multiprocessor for each of them, and half of them
// would have nothing to do if blocks had 32. What a row gets is the same either way.
inline bool has_half_blocks(int64_t n_rows, const DeviceSize& size) {
  return 2 * n_blocks(n_rows) <= size.multiprocessors;
}

// Calls f(Placed<>, blocks, bytes) after setting how many blocks of rows there are: with the
// activations in shared memory and a block of threads for each, or with a few, for whose
// activations task.d.workspace is allocated.
template <class T, bool kMayHalve, class Task, class Memory, class F>
void place_activations(Task& task, int64_t n_rows, int64_t most_blocks, const DeviceSize& size,
                       Memory& memory, const F& f) {
  task.n_blocks = n_blocks(n_rows);
  if constexpr (kMayHalve) {
    const int64_t bytes = shared_bytes_of<T, kHalfRows>(task.units);
    if (has_half_blocks(n_rows, size) && fits(bytes, size)) {
      task.n_blocks *= 2;
      return f(Placed<kHalfRows, true>{}, task.n_blocks, bytes);
    }
  }
  const int64_t bytes = shared_bytes_of<T, kBlockRows>(task.units);
  if (fits(bytes, size)) return f(Placed<kBlockRows, true>{}, most_blocks, bytes);
  const int64_t blocks = std::min(most_blocks, 2 * size.multiprocessors);
  task.d.workspace = memory.template get<T>(blocks * task.units * kBlockRows);
  f(Placed<kBlockRows, false>{}, blocks, shared_bytes_of<T, kBlockRows>(0));
}

// Whether kernels for blocks of 16 rows are compiled.
template <class T>
constexpr bool kHasHalfBlocks = sizeof(T) == 4;

template <class T>
void launch_sum_draws(const RowNumbers<T>& rows, T* to, const DefenceParams<T>& in, double divisor,
                      cudaStream_t stream) {
  const int64_t size = in.n_samples * rows.width;
  if (size == 0) return;
  NNMF_CUDA_LAUNCH(sum_draws_kernel<T>, grid_of((size + kDefenceThreads - 1) / kDefenceThreads),
                   kDefenceThreads, 0, stream, rows.values, to, in.n_samples, in.n_draws,
                   rows.width, divisor);
}

// Where rows go whose sums over draws go to `to`: there, if there is one draw, or if blocks of any
// size sum them.
template <class T, class Memory>
RowNumbers<T> rows_of_samples(const DefenceParams<T>& in, int64_t width, T* to, Memory& memory) {
  if (in.n_draws == 1) return {to, static_cast<int>(width), false, 0};
  if (kHalfRows % in.n_draws == 0)
    return {to, static_cast<int>(width), false, static_cast<int>(in.n_draws)};
  return {memory.template get<T>(n_blocks(in.n_rows()) * width * kBlockRows),
          static_cast<int>(width), true, 0};
}

// out: logits [n_samples][n_classes], without a network predictions [rows][n_features]; signs
// [n_blocks][n_words] may be null, and so may be memory for what launch_defence_backward is then
// given as `prepared` [backward_preparation_size], 16-byte aligned.
template <class T, class Memory>
void launch_defence_forward(const DefenceParams<T>& in, T* out, uint32_t* signs, T* prepared,
                            const DeviceSize& size, Memory& memory, cudaStream_t stream) {
  const bool mean = !in.classifier.empty();
  ForwardTask<T> task{};
  task.out = mean ? rows_of_samples(in, in.n_outputs(), out, memory)
                  : RowNumbers<T>{out, static_cast<int>(in.n_features), false, 0};
  if (in.n_rows() > 0) {
    DefencePreparation<T> forward(in, Direction::kForward);
    forward.place(memory.template get<T>(forward.size()));
    if (prepared != nullptr) {
      DefencePreparation<T> backward(in, Direction::kBackward);
      backward.place(prepared);
      forward.join(backward);
    }
    forward.launch(stream);
    task.d = forward.defence();
    task.signs = signs;
    task.n_words = in.n_words();
    task.units = work_units(in.n_features, in.width());
    place_activations<T, kHasHalfBlocks<T>>(
        task, in.n_rows(), n_blocks(in.n_rows()), size, memory,
        [&]<int rows, bool shared>(Placed<rows, shared>, int64_t blocks, int64_t bytes) {
          NNMF_CUDA_LAUNCH((defence_forward_kernel<T, rows, shared>), grid_of(blocks),
                           kDefenceThreads, static_cast<size_t>(bytes), stream, task);
        });
  }
  if (mean && task.out.by_block)
    launch_sum_draws(task.out, out, in, static_cast<double>(in.n_draws), stream);
}

// of_x [n_samples][n_features]; of_noise like the noise, may be null; so may be `prepared`, which
// is then prepared here.
template <class T, class Memory>
void launch_defence_backward(const DefenceParams<T>& in, const T* grad, const uint32_t* signs,
                             const T* prepared, T* of_x, T* of_noise, const DeviceSize& size,
                             Memory& memory, cudaStream_t stream) {
  BackwardTask<T> task{};
  task.of_x = rows_of_samples(in, in.n_features, of_x, memory);
  if (in.n_rows() > 0) {
    DefencePreparation<T> backward(in, Direction::kBackward);
    if (prepared != nullptr) {
      backward.place(const_cast<T*>(prepared));  // and not launched: nothing is written
    } else {
      backward.place(memory.template get<T>(backward.size()));
      backward.launch(stream);
    }
    task.d = backward.defence();
    task.grad = grad;
    task.n_classes = in.classifier.empty() ? 0 : static_cast<int>(in.n_outputs());
    task.signs = signs;
    task.of_noise = of_noise;
    task.n_words = in.n_words();
    task.units = work_units(in.n_features, in.width());
    place_activations<T, kHasHalfBlocks<T>>(
        task, in.n_rows(), n_blocks(in.n_rows()), size, memory,
        [&]<int rows, bool shared>(Placed<rows, shared>, int64_t blocks, int64_t bytes) {
          NNMF_CUDA_LAUNCH((defence_backward_kernel<T, rows, shared>), grid_of(blocks),
                           kDefenceThreads, static_cast<size_t>(bytes), stream, task);
        });
  }
  if (task.of_x.by_block) launch_sum_draws(task.of_x, of_x, in, 1.0, stream);
}

// Groups of blocks that have sums of their own: many, but with at most so many sums in all.
constexpr int64_t kMostGroups = 256, kMostSums = int64_t{1} << 23;

inline int64_t weight_groups(int64_t n_blocks, int64_t n_weights) {
  return std::min({n_blocks, kMostGroups, std::max(kMostSums / n_weights, int64_t{8})});
}

template <class T>
void launch_sum_groups(const double* sums, T* to, int64_t groups, int64_t stride, int64_t size,
                       cudaStream_t stream) {
  if (size == 0) return;
  NNMF_CUDA_LAUNCH(sum_groups_kernel<T>, grid_of((size + kDefenceThreads - 1) / kDefenceThreads),
                   kDefenceThreads, 0, stream, sums, to, groups, stride, size);
}

// One tensor after another: the denoiser's, and the classifier's. How sums are rounded depends on
// `most_groups`, which is another one in tests alone.
template <class T, class Memory>
void launch_defence_weights(const DefenceParams<T>& in, const T* grad, const uint32_t* signs,
                            T* of_denoiser, T* of_classifier, const DeviceSize& size,
                            Memory& memory, cudaStream_t stream,
                            int64_t most_groups = kMostGroups) {
  const int64_t n_denoiser = in.count(in.denoiser), n_classifier = in.count(in.classifier);
  WeightsTask<T> task{};
  task.n_weights = n_denoiser + n_classifier;
  task.n_blocks = n_blocks(in.n_rows());
  const int64_t groups = std::min(most_groups, weight_groups(task.n_blocks, task.n_weights));
  if (groups > 0) {
    DefencePreparation<T> forward(in, Direction::kForward), backward(in, Direction::kBackward);
    forward.place(memory.template get<T>(forward.size()));
    backward.place(memory.template get<T>(backward.size()));
    forward.join(backward);
    forward.launch(stream);
    task.d = forward.defence();
    task.back = backward.defence();
    task.grad = grad;
    task.signs = signs;
    task.n_words = in.n_words();
    task.sums = memory.template get<double>(groups * task.n_weights);
    int64_t at = 0;
    for (std::size_t l = 0; l < in.denoiser.size(); at += in.denoiser[l++].size())
      task.chain_at[l] = at;
    for (std::size_t l = 0; l < in.classifier.size(); at += in.classifier[l++].size())
      task.cnn_at[l] = at;
    int64_t units = (in.n_steps + 1) * in.n_features + in.words_per_step();
    if (!in.classifier.empty()) {
      const CnnShape s = in.cnn();
      units += s.n_features * s.first + s.second * s.n_pooled() + s.hidden;
    }
    task.units = units + work_units(in.n_features, in.width());
    // The number of groups decides how sums are rounded: it is the same wherever activations are.
    const DeviceSize any{groups, size.shared_bytes};
    place_activations<T, false>(
        task, in.n_rows(), groups, any, memory,
        [&]<int rows, bool shared>(Placed<rows, shared>, int64_t blocks, int64_t bytes) {
          NNMF_CUDA_LAUNCH((defence_weights_kernel<T, shared>), grid_of(blocks), kDefenceThreads,
                           static_cast<size_t>(bytes), stream, task);
        });
  }
  launch_sum_groups(task.sums, of_denoiser, groups, task.n_weights, n_denoiser, stream);
  launch_sum_groups<T>(task.sums == nullptr ? nullptr : task.sums + n_denoiser, of_classifier,
                       groups, task.n_weights, n_classifier, stream);
}

}  // namespace nnmf_cuda
