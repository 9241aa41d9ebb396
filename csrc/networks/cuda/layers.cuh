// Layers, and the classifier, on the rows of a block, forwards and backwards: activations lie as
// [unit][row], a warp computes 16 units of all 32 rows at a time, a lane four rows of four of them.
// Weights are packed as [tile][input][16], so that four units of one input are one load. Of the
// classifier, units of the first convolution lie position by position, pooled ones channel by
// channel.
#pragma once

#include <cstdint>

#include "../../common/cuda/launch.h"
#include "../network.h"

namespace nnmf_cuda {

constexpr int kTileUnits = 16;  // that a warp computes at a time
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
  for (int first = warp_of_thread() * kTileUnits; first < layer.outputs;
       first += kDefenceWarps * kTileUnits) {
    const T* weight = layer.weight + static_cast<int64_t>(first) * inputs + place.unit;
    const T* given = in + place.row;
    T sums[4][4] = {};
#pragma unroll 8
    for (int i = 0; i < inputs; ++i, weight += kTileUnits, given += kBlockRows)
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
    if (exists) store_four(out + unit * kBlockRows + place.row, sums);
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
    store_four(out + unit * kBlockRows + place.row, sums);
  });
}

// The rows of a block.
struct DeviceRows {
  int64_t block, first;
  int count;
  unsigned mask;

  __device__ __forceinline__ DeviceRows(int64_t block, int64_t n_rows)
      : block(block), first(block * kBlockRows) {
    count = n_rows - first < kBlockRows ? static_cast<int>(n_rows - first) : kBlockRows;
    mask = kAllLanes >> (kBlockRows - count);
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
    return by_block ? values[(rows.block * width + unit) * kBlockRows + row]
                    : values[(rows.first + row) * width + unit];
  }
};

// Memory of a block: features, and activations before and after a layer, [unit][row].
template <class T>
struct Work {
  T *x, *one, *two;

  __device__ __forceinline__ Work(T* memory, int n_features, int width)
      : x(memory), one(x + n_features * kBlockRows), two(one + width * kBlockRows) {}
  static int64_t size(int64_t n_features, int64_t width) {
    return (n_features + 2 * width) * kBlockRows;
  }
};

// Calls f(unit) with a warp for each of its units, lanes being rows.
template <class F>
__device__ __forceinline__ void for_each_row_unit(int n_units, const F& f) {
  for (int unit = warp_of_thread(); unit < n_units; unit += kDefenceWarps) f(unit);
}

// Words of signs as in CnnShape.
template <class T>
struct DeviceCnn {
  int first_channels, second_channels, n_pooled;
  int pooled_at, pairs_at, hidden_at;
  const T *first_weight, *first_bias;  // [channels][3]
  DeviceDense<T> second, hidden, last;
};

template <class T>
__device__ __forceinline__ void first_convolution(const DeviceCnn<T>& cnn, int n_features,
                                                  const T* x, T* out, uint32_t* words,
                                                  unsigned rows) {
  const int lane = lane_of_thread();
  for_each_row_unit(cnn.first_channels, [&](int channel) {
    const T* weight = cnn.first_weight + channel * 3;
    const T w0 = weight[0], w1 = weight[1], w2 = weight[2], bias = cnn.first_bias[channel];
    T before = 0, here = x[lane];
    for (int position = 0; position < n_features; ++position) {
      const T after = position + 1 < n_features ? x[(position + 1) * kBlockRows + lane] : T{0};
      const T value = relu(bias + w0 * before + w1 * here + w2 * after);
      const int unit = position * cnn.first_channels + channel;
      out[unit * kBlockRows + lane] = value;
      if (words != nullptr) {
        const unsigned word = __ballot_sync(kAllLanes, value > 0) & rows;
        if (lane == 0) words[unit] = word;
      }
      before = here;
      here = after;
    }
  });
}

// Four rows of a unit, zeros where it does not exist.
template <class T>
__device__ __forceinline__ Four<T> load_four_if(bool exists, const T* from) {
  return exists ? load_four(from) : Four<T>{};
}

// Calls f(pair, first unit of the tile) with a warp for each pair of positions and tile of units.
template <class F>
__device__ __forceinline__ void for_each_pair(int n_pairs, int n_units, const F& f) {
  const int tiles = (n_units + kTileUnits - 1) / kTileUnits;
  for (int item = warp_of_thread(); item < n_pairs * tiles; item += kDefenceWarps)
    f(item % n_pairs, item / n_pairs * kTileUnits);
}

// The second convolution of pairs of positions, ReLU, and the larger one of each pair.
template <class T>
__device__ __forceinline__ void second_convolution(const DeviceCnn<T>& cnn, int n_features,
                                                   const T* in, T* pooled, uint32_t* words,
                                                   unsigned rows) {
  const TilePlace place;
  const int channels = cnn.first_channels;
  for_each_pair(cnn.n_pooled, cnn.second_channels, [&](int pair, int first) {
    const T* weight = cnn.second.weight + static_cast<int64_t>(first) * cnn.second.inputs;
    T sums[2][4][4] = {};
    for (int c = 0; c < channels; ++c) {
      const T* here = in + (2 * pair * channels + c) * kBlockRows + place.row;
      const int next = channels * kBlockRows;
      const Four<T> given[4] = {load_four_if(pair > 0, here - next), load_four(here),
                                load_four(here + next),
                                load_four_if(2 * pair + 2 < n_features, here + 2 * next)};
#pragma unroll
      for (int tap = 0; tap < 3; ++tap) {
        const Four<T> w = load_four(weight + (c * 3 + tap) * kTileUnits + place.unit);
        multiply_add(w, given[tap], sums[0]);
        multiply_add(w, given[tap + 1], sums[1]);
      }
    }
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      const int channel = first + place.unit + u;
      const bool exists = channel < cnn.second_channels;
      const T bias = exists ? cnn.second.bias[channel] : T{0};
      const int unit = channel * cnn.n_pooled + pair;
      unsigned from_second = 0;
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const T one = relu(sums[0][u][r] + bias), two = relu(sums[1][u][r] + bias);
        const bool second = two > one || two != two;  // NaN is the largest
        from_second |= static_cast<unsigned>(second) << r;
        sums[0][u][r] = second ? two : one;
      }
      if (words != nullptr) {
        store_word(words + cnn.pooled_at + unit, positive(sums[0][u]), rows, exists);
        store_word(words + cnn.pairs_at + unit, from_second, rows, exists);
      }
      if (exists) store_four(pooled + unit * kBlockRows + place.row, sums[0][u]);
    }
  });
}

// Everything but the last layer.
template <class T>
__device__ __forceinline__ void cnn_forward(const DeviceCnn<T>& cnn, int n_features,
                                            const DeviceRows& rows, const T* x, T* first, T* pooled,
                                            T* hidden, uint32_t* words) {
  first_convolution(cnn, n_features, x, first, words, rows.mask);
  __syncthreads();
  second_convolution(cnn, n_features, first, pooled, words, rows.mask);
  __syncthreads();
  dense_forward(cnn.hidden, cnn.hidden.bias, true, pooled, hidden,
                words == nullptr ? nullptr : words + cnn.hidden_at, rows.mask);
  __syncthreads();
}

template <class T>
__device__ __forceinline__ void store_logits(const DeviceDense<T>& last, const DeviceRows& rows,
                                             const T* hidden, const RowNumbers<T>& out) {
  const TilePlace place;
  for_each_unit(last, hidden, [&](int unit, T(&sums)[4]) {
    if (unit >= last.outputs) return;
#pragma unroll
    for (int r = 0; r < 4; ++r)
      if (place.row + r < rows.count) out.at(rows, place.row + r, unit) = sums[r] + last.bias[unit];
  });
}

// Four rows of a pooled unit's gradient, where the pair's first (or second) position has given it.
template <class T>
__device__ __forceinline__ Four<T> load_position(const uint32_t* pairs, const T* pooled, int unit,
                                                 bool second, int row) {
  Four<T> grad = load_four(pooled + unit * kBlockRows + row);
  keep_rows(second ? pairs[unit] : ~pairs[unit], row, grad.values);
  return grad;
}

// out = the gradient to the first convolution's units, by that to the pooled ones.
template <class T>
__device__ __forceinline__ void second_backward(const DeviceCnn<T>& cnn, int n_features,
                                                const uint32_t* words, const T* grad, T* out) {
  const TilePlace place;
  const int n_pooled = cnn.n_pooled, channels = cnn.first_channels;
  const uint32_t* pairs = words + cnn.pairs_at;
  for_each_pair((n_features + 1) / 2, channels, [&](int pair, int first) {
    const T* weight = cnn.second.weight + static_cast<int64_t>(first) * cnn.second.inputs;
    T sums[2][4][4] = {};
    for (int c = 0; c < cnn.second_channels; ++c) {
      // To the positions from one before the pair to one behind it.
      const int unit = c * n_pooled + pair;
      Four<T> given[4] = {};
      if (pair > 0) given[0] = load_position(pairs, grad, unit - 1, true, place.row);
      if (pair < n_pooled) {
        given[1] = load_position(pairs, grad, unit, false, place.row);
        given[2] = load_position(pairs, grad, unit, true, place.row);
      }
      if (pair + 1 < n_pooled) given[3] = load_position(pairs, grad, unit + 1, false, place.row);
#pragma unroll
      for (int tap = 0; tap < 3; ++tap) {
        const Four<T> w = load_four(weight + (c * 3 + tap) * kTileUnits + place.unit);
        multiply_add(w, given[2 - tap], sums[0]);
        multiply_add(w, given[3 - tap], sums[1]);
      }
    }
#pragma unroll
    for (int p = 0; p < 2; ++p)
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        const int position = 2 * pair + p, channel = first + place.unit + u;
        if (position >= n_features || channel >= channels) continue;
        const int unit = position * channels + channel;
        keep_rows(words[unit], place.row, sums[p][u]);
        store_four(out + unit * kBlockRows + place.row, sums[p][u]);
      }
  });
}

template <class T>
__device__ __forceinline__ void first_backward(const DeviceCnn<T>& cnn, int n_features,
                                               const T* grad, T* x) {
  const int lane = lane_of_thread(), channels = cnn.first_channels;
  for_each_row_unit(n_features, [&](int position) {
    T sum = 0;
#pragma unroll
    for (int tap = 0; tap < 3; ++tap) {
      const int from = position + 1 - tap;
      if (from < 0 || from >= n_features) continue;
      for (int c = 0; c < channels; ++c)
        sum += cnn.first_weight[c * 3 + tap] * grad[(from * channels + c) * kBlockRows + lane];
    }
    x[position * kBlockRows + lane] = sum;
  });
}

// work.x = the gradient to the features, from that to the logits, which stands in work.one.
// Calls weights.of_cnn(layer, gradient to its outputs), that of the second convolution being to the
// pooled units.
template <class T, class Weights>
__device__ __forceinline__ void cnn_backward(const DeviceCnn<T>& cnn, int n_features,
                                             const uint32_t* words, const Work<T>& work,
                                             const Weights& weights) {
  weights.of_cnn(3, work.one);
  dense_backward(cnn.last, words + cnn.hidden_at, work.one, work.two);
  __syncthreads();
  weights.of_cnn(2, work.two);
  dense_backward(cnn.hidden, words + cnn.pooled_at, work.two, work.one);
  __syncthreads();
  weights.of_cnn(1, work.one);
  second_backward(cnn, n_features, words, work.one, work.two);
  __syncthreads();
  weights.of_cnn(0, work.two);
  first_backward(cnn, n_features, work.two, work.x);
  __syncthreads();
}

}  // namespace nnmf_cuda
