// A defence as CUDA kernels see it: a chain of denoising steps, a network, or both, on blocks of 32
// flat rows, row q being draw q % n_draws of sample q / n_draws.
#pragma once

#include <cstdint>

#include "../networks/network.h"
#include "device_layers.cuh"
#include "philox.h"

namespace nnmf_cuda {

static_assert(kRows == kBlockRows);

// Scalars of a step, side by side in memory.
enum Coefficient { kKeep, kSpread, kOfPrediction, kOfXt, kOfNoise, kCoefficients };

// Backwards, layers are those from outputs to inputs.
template <class T>
struct DeviceChain {
  const T* noise;  // [n_noised][rows][n_features]; null: drawn from the seed
  uint64_t seed;
  int n_noised, n_steps, n_layers, words_per_step, embedding_dim;
  T* coefficients;  // [n_steps][kCoefficients]
  T* biases;        // [n_steps][outputs]: the first layer's, with what the embedding of t adds
  T* embeddings;    // [n_steps][embedding_dim]
  DeviceDense<T> layers[kMostLayers];
};

// Words of signs as in CnnShape.
template <class T>
struct DeviceCnn {
  int first_channels, second_channels, n_pooled;
  int pooled_at, pairs_at, hidden_at;
  const T *first_weight, *first_bias;  // [channels][3]
  DeviceDense<T> second, hidden, last;
};

template <class T>
struct DeviceDefence {
  const T* x;  // [n_samples][n_features]
  int64_t n_rows, n_draws;
  int n_features;
  bool has_chain, has_cnn;
  DeviceChain<T> chain;
  DeviceCnn<T> cnn;
  int width;     // units of each buffer for activations
  T* workspace;  // of all blocks, where shared memory is too small

  __device__ __forceinline__ int chain_words() const {
    return has_chain ? chain.n_steps * chain.words_per_step : 0;
  }
};

// The rows of a block.
struct DeviceRows {
  int64_t block, first;
  int count;
  unsigned mask;

  __device__ __forceinline__ DeviceRows(int64_t block, int64_t n_rows)
      : block(block), first(block * kRows) {
    count = n_rows - first < kRows ? static_cast<int>(n_rows - first) : kRows;
    mask = kAllLanes >> (kRows - count);
  }
};

// The row of a lane, where a warp takes a unit at a time.
struct LaneRow {
  int64_t flat, sample;
  uint32_t draw;
  bool exists;

  __device__ __forceinline__ LaneRow(const DeviceRows& rows, int64_t n_draws)
      : flat(rows.first + lane_of_thread()), exists(lane_of_thread() < rows.count) {
    sample = flat / n_draws;
    draw = static_cast<uint32_t>(flat - sample * n_draws);
  }
};

// Numbers of every row: [rows][width], or, where they are yet to be summed over draws,
// [blocks][width][32].
template <class T>
struct RowNumbers {
  T* values;
  int width;
  bool by_block;

  __device__ __forceinline__ T& at(const DeviceRows& rows, int row, int unit) const {
    return by_block ? values[(rows.block * width + unit) * kRows + row]
                    : values[(rows.first + row) * width + unit];
  }
};

// Memory of a block: features, and activations before and after a layer, [unit][row].
template <class T>
struct Work {
  T *x, *one, *two;

  __device__ __forceinline__ Work(T* memory, int n_features, int width)
      : x(memory), one(x + n_features * kRows), two(one + width * kRows) {}
  static int64_t size(int64_t n_features, int64_t width) {
    return (n_features + 2 * width) * kRows;
  }
};

// Calls f(unit) with a warp for each of its units, lanes being rows.
template <class F>
__device__ __forceinline__ void for_each_row_unit(int n_units, const F& f) {
  for (int unit = warp_of_thread(); unit < n_units; unit += kDefenceWarps) f(unit);
}

// What a backward pass calls where nothing but it is wanted.
struct NoWeights {
  __device__ __forceinline__ void begin_step(int) const {}
  template <class T>
  __device__ __forceinline__ void of_chain(int, const T*) const {}
  template <class T>
  __device__ __forceinline__ void of_cnn(int, const T*) const {}
};

}  // namespace nnmf_cuda
