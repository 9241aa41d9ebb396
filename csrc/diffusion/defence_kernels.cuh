// purify, feature_cnn and defended_logits for blocks of 32 rows, forwards, and backwards from the
// signs of the units: everything between the first load and the last store stays on chip.
#pragma once

#include <cstdint>

#include "device_chain.cuh"
#include "device_cnn.cuh"

namespace nnmf_cuda {

// The block's activations: in shared memory, or, where that is too small, in memory.
template <bool kShared, class T>
__device__ __forceinline__ T* memory_of_block(T* shared, T* workspace, int64_t size) {
  return kShared ? shared : workspace + int64_t{blockIdx.x} * size;
}

template <class T>
struct ForwardTask {
  DeviceDefence<T> d;
  RowNumbers<T> out;
  uint32_t* signs;  // [n_blocks][n_words]; may be null
  int64_t n_words, n_blocks, memory;
};

template <class T, bool kShared>
__global__ void __launch_bounds__(kDefenceThreads, kDefenceBlocks<T>)
    defence_forward_kernel(const __grid_constant__ ForwardTask<T> task) {
  NNMF_CUDA_DYNAMIC_SHARED(T, shared);
  const DeviceDefence<T>& d = task.d;
  const Work<T> work(memory_of_block<kShared>(shared, d.workspace, task.memory), d.n_features,
                     d.width);
  for (int64_t block = blockIdx.x; block < task.n_blocks; block += gridDim.x) {
    const DeviceRows rows(block, d.n_rows);
    const LaneRow row(rows, d.n_draws);
    uint32_t* words = task.signs == nullptr ? nullptr : task.signs + block * task.n_words;
    start_rows<T>(d, row, work.x, nullptr);
    if (d.has_chain) chain_forward<T>(d, rows, row, work, words, nullptr);
    if (d.has_cnn) {
      uint32_t* of_cnn = words == nullptr ? nullptr : words + d.chain_words();
      cnn_forward(d, rows, work.x, work.one, work.two, work.one, of_cnn);
      store_logits(d, rows, work.one, task.out);
    } else {
      for_each_row_unit(d.n_features, [&](int j) {
        if (row.exists)
          task.out.at(rows, lane_of_thread(), j) = work.x[j * kRows + lane_of_thread()];
      });
    }
  }
}

template <class T>
struct BackwardTask {
  DeviceDefence<T> d;  // layers from outputs to inputs
  const T* grad;       // [n_samples][n_classes] with a network, else [rows][n_features]
  const uint32_t* signs;
  RowNumbers<T> of_x;
  T* of_noise;  // like the noise; may be null
  int64_t n_words, n_blocks, memory;
};

// The gradient to the outputs: where cnn_backward or chain_backward expects it.
template <class T>
__device__ __forceinline__ void load_gradient(const DeviceDefence<T>& d, const LaneRow& row,
                                              const T* grad, int n_classes, const Work<T>& work) {
  const int lane = lane_of_thread();
  if (d.has_cnn) {
    for_each_row_unit(n_classes, [&](int c) {
      work.one[c * kRows + lane] =
          row.exists ? grad[row.sample * n_classes + c] / static_cast<T>(d.n_draws) : T{0};
    });
    __syncthreads();
  } else {  // every thread goes on with what it has loaded
    for_each_row_unit(d.n_features, [&](int j) {
      work.x[j * kRows + lane] = row.exists ? grad[row.flat * d.n_features + j] : T{0};
    });
  }
}

template <class T, bool kShared>
__global__ void __launch_bounds__(kDefenceThreads, kDefenceBlocks<T>)
    defence_backward_kernel(const __grid_constant__ BackwardTask<T> task) {
  NNMF_CUDA_DYNAMIC_SHARED(T, shared);
  const DeviceDefence<T>& d = task.d;
  const Work<T> work(memory_of_block<kShared>(shared, d.workspace, task.memory), d.n_features,
                     d.width);
  for (int64_t block = blockIdx.x; block < task.n_blocks; block += gridDim.x) {
    const DeviceRows rows(block, d.n_rows);
    const LaneRow row(rows, d.n_draws);
    const uint32_t* words = task.signs + block * task.n_words;
    load_gradient(d, row, task.grad, d.cnn.last.inputs, work);
    if (d.has_cnn) cnn_backward(d, words + d.chain_words(), work, NoWeights{});
    if (d.has_chain) chain_backward(d, row, words, work, task.of_noise, NoWeights{});
    const T keep = d.has_chain ? d.chain.coefficients[kKeep] : T{1};
    for_each_row_unit(d.n_features, [&](int j) {
      const T grad = work.x[j * kRows + lane_of_thread()];
      if (!row.exists) return;
      task.of_x.at(rows, lane_of_thread(), j) = keep * grad;
      if (task.of_noise != nullptr)
        task.of_noise[row.flat * d.n_features + j] = d.chain.coefficients[kSpread] * grad;
    });
  }
}

// to[sample] = the sum over draws of numbers that lie by block, over `divisor`.
template <class T>
__global__ void __launch_bounds__(kDefenceThreads)
    sum_draws_kernel(const T* from, T* to, int64_t n_samples, int64_t n_draws, int width,
                     double divisor) {
  const int64_t at = int64_t{blockIdx.x} * kDefenceThreads + threadIdx.x;
  if (at >= n_samples * width) return;
  const int64_t sample = at / width, unit = at - sample * width;
  double sum = 0;
  for (int64_t draw = 0; draw < n_draws; ++draw) {
    const int64_t row = sample * n_draws + draw;
    sum += static_cast<double>(from[(row / kRows * width + unit) * kRows + row % kRows]);
  }
  to[at] = static_cast<T>(sum / divisor);
}

}  // namespace nnmf_cuda
