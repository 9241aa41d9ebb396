// Layers on the rows of a block: activations lie as [unit][row], a warp computes 16 units of all 32
// rows at a time, a lane four rows of four of them. Weights are packed as [tile][input][16], so
// that four units of one input are one load.
#pragma once

#include <cstdint>

#include "../common/launch.h"
#include "../common/warp.h"

namespace nnmf_cuda {

constexpr int kRows = 32;  // of a block, a bit each in a word of signs
constexpr int kTile = 16;  // units that a warp computes at a time
constexpr int kDefenceThreads = 256, kDefenceWarps = kDefenceThreads / kWarp;

// Blocks that a multiprocessor has registers for: more would cost spills.
template <class T>
constexpr int kDefenceBlocks = sizeof(T) == 4 ? 2 : 1;

// Neighbouring rows of a unit, or units of an input: loaded and stored at once.
template <class T>
struct alignas(16) Four {
  T values[4];
};

template <class T>
__device__ __forceinline__ Four<T> load_four(const T* from) {
  return *reinterpret_cast<const Four<T>*>(from);
}

template <class T>
__device__ __forceinline__ void store_four(T* to, const T (&values)[4]) {
  *reinterpret_cast<Four<T>*>(to) = {{values[0], values[1], values[2], values[3]}};
}

// out[o] = bias[o] + sum_i weight[o, i] in[i], `weight` being packed.
template <class T>
struct DeviceDense {
  const T *weight, *bias;
  int inputs, outputs;
};

__device__ __forceinline__ int lane_of_thread() {
  return static_cast<int>(threadIdx.x) % kWarp;
}

__device__ __forceinline__ int warp_of_thread() {
  return static_cast<int>(threadIdx.x) / kWarp;
}

// The first of a lane's four rows, and of its four units in a tile.
struct TilePlace {
  int row, unit;
  __device__ __forceinline__ TilePlace()
      : row(lane_of_thread() % 8 * 4), unit(lane_of_thread() / 8 * 4) {}
};

template <class T>
__device__ __forceinline__ T relu(T value) {
  return value < 0 ? T{0} : value;  // NaN stays
}

// Bits of the lane's four rows.
template <class T>
__device__ __forceinline__ unsigned positive(const T (&values)[4]) {
  unsigned bits = 0;
#pragma unroll
  for (int r = 0; r < 4; ++r) bits |= values[r] > 0 ? 1u << r : 0u;
  return bits;
}

// Every lane's four bits in their place of a unit's word, which the eight lanes of the unit get.
__device__ __forceinline__ unsigned join_rows(unsigned bits) {
  unsigned word = bits << (lane_of_thread() % 8 * 4);
#pragma unroll
  for (int step = 1; step < 8; step *= 2) word |= __shfl_xor_sync(kAllLanes, word, step);
  return word;
}

// All lanes arrive; `exists` says whether the word of their unit is to be written.
__device__ __forceinline__ void store_word(uint32_t* to, unsigned bits, unsigned rows,
                                           bool exists) {
  const unsigned word = join_rows(bits) & rows;
  if (exists && lane_of_thread() % 8 == 0) *to = word;
}

// Zero where the bit of a row is not set.
template <class T>
__device__ __forceinline__ void keep_rows(uint32_t word, int first_row, T (&values)[4]) {
#pragma unroll
  for (int r = 0; r < 4; ++r)
    if ((word >> (first_row + r) & 1) == 0) values[r] = 0;
}

template <class T>
__device__ __forceinline__ void multiply_add(const Four<T>& weight, const Four<T>& in,
                                             T (&sums)[4][4]) {
#pragma unroll
  for (int u = 0; u < 4; ++u)
#pragma unroll
    for (int r = 0; r < 4; ++r) sums[u][r] += weight.values[u] * in.values[r];
}

// Calls f(unit, sums of four rows) with all lanes of a warp for each of its units, those of the
// last tile that do not exist included.
template <class T, class F>
__device__ __forceinline__ void for_each_unit(const DeviceDense<T>& layer, const T* in,
                                              const F& f) {
  const TilePlace place;
  const int inputs = layer.inputs;
  for (int first = warp_of_thread() * kTile; first < layer.outputs;
       first += kDefenceWarps * kTile) {
    const T* weight = layer.weight + static_cast<int64_t>(first) * inputs + place.unit;
    const T* given = in + place.row;
    T sums[4][4] = {};
#pragma unroll 8
    for (int i = 0; i < inputs; ++i, weight += kTile, given += kRows)
      multiply_add(load_four(weight), load_four(given), sums);
#pragma unroll
    for (int u = 0; u < 4; ++u) f(first + place.unit + u, sums[u]);
  }
}

// out = the layer's outputs, after ReLU if `hidden`; `words` (may be null) receive their signs.
template <class T>
__device__ __forceinline__ void dense_forward(const DeviceDense<T>& layer, const T* bias,
                                              bool hidden, const T* in, T* out, uint32_t* words,
                                              unsigned rows) {
  const TilePlace place;
  for_each_unit(layer, in, [&](int unit, T(&sums)[4]) {
    const bool exists = unit < layer.outputs;
    const T offset = exists ? bias[unit] : T{0};
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      sums[r] += offset;
      if (hidden) sums[r] = relu(sums[r]);
    }
    if (words != nullptr) store_word(words + unit, positive(sums), rows, exists);
    if (exists) store_four(out + unit * kRows + place.row, sums);
  });
}

// out = the gradient to what the layer is given, by that to its outputs; its weights are packed the
// other way round. `words`: the signs of the units that the gradient reaches.
template <class T>
__device__ __forceinline__ void dense_backward(const DeviceDense<T>& layer, const uint32_t* words,
                                               const T* grad, T* out) {
  const TilePlace place;
  for_each_unit(layer, grad, [&](int unit, T(&sums)[4]) {
    if (unit >= layer.outputs) return;
    keep_rows(words[unit], place.row, sums);
    store_four(out + unit * kRows + place.row, sums);
  });
}

}  // namespace nnmf_cuda
