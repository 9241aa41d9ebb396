// The classifier on the rows of a block, forwards and backwards: units of the first convolution lie
// position by position, pooled ones channel by channel.
#pragma once

#include <cstdint>

#include "device_defence.cuh"

namespace nnmf_cuda {

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
      const T after = position + 1 < n_features ? x[(position + 1) * kRows + lane] : T{0};
      const T value = relu(bias + w0 * before + w1 * here + w2 * after);
      const int unit = position * cnn.first_channels + channel;
      out[unit * kRows + lane] = value;
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
  const int tiles = (n_units + kTile - 1) / kTile;
  for (int item = warp_of_thread(); item < n_pairs * tiles; item += kDefenceWarps)
    f(item % n_pairs, item / n_pairs * kTile);
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
      const T* here = in + (2 * pair * channels + c) * kRows + place.row;
      const int next = channels * kRows;
      const Four<T> given[4] = {load_four_if(pair > 0, here - next), load_four(here),
                                load_four(here + next),
                                load_four_if(2 * pair + 2 < n_features, here + 2 * next)};
#pragma unroll
      for (int tap = 0; tap < 3; ++tap) {
        const Four<T> w = load_four(weight + (c * 3 + tap) * kTile + place.unit);
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
      if (exists) store_four(pooled + unit * kRows + place.row, sums[0][u]);
    }
  });
}

// Everything but the last layer.
template <class T>
__device__ __forceinline__ void cnn_forward(const DeviceDefence<T>& d, const DeviceRows& rows,
                                            const T* x, T* first, T* pooled, T* hidden,
                                            uint32_t* words) {
  const DeviceCnn<T>& cnn = d.cnn;
  first_convolution(cnn, d.n_features, x, first, words, rows.mask);
  __syncthreads();
  second_convolution(cnn, d.n_features, first, pooled, words, rows.mask);
  __syncthreads();
  dense_forward(cnn.hidden, cnn.hidden.bias, true, pooled, hidden,
                words == nullptr ? nullptr : words + cnn.hidden_at, rows.mask);
  __syncthreads();
}

template <class T>
__device__ __forceinline__ void store_logits(const DeviceDefence<T>& d, const DeviceRows& rows,
                                             const T* hidden, const RowNumbers<T>& out) {
  const DeviceDense<T>& last = d.cnn.last;
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
  Four<T> grad = load_four(pooled + unit * kRows + row);
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
        const Four<T> w = load_four(weight + (c * 3 + tap) * kTile + place.unit);
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
        store_four(out + unit * kRows + place.row, sums[p][u]);
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
        sum += cnn.first_weight[c * 3 + tap] * grad[(from * channels + c) * kRows + lane];
    }
    x[position * kRows + lane] = sum;
  });
}

// work.x = the gradient to the features, from that to the logits, which stands in work.one.
// Calls weights.of_cnn(layer, gradient to its outputs), that of the second convolution being to the
// pooled units.
template <class T, class Weights>
__device__ __forceinline__ void cnn_backward(const DeviceDefence<T>& d, const uint32_t* words,
                                             const Work<T>& work, const Weights& weights) {
  const DeviceCnn<T>& cnn = d.cnn;
  weights.of_cnn(3, work.one);
  dense_backward(cnn.last, words + cnn.hidden_at, work.one, work.two);
  __syncthreads();
  weights.of_cnn(2, work.two);
  dense_backward(cnn.hidden, words + cnn.pooled_at, work.two, work.one);
  __syncthreads();
  weights.of_cnn(1, work.one);
  second_backward(cnn, d.n_features, words, work.one, work.two);
  __syncthreads();
  weights.of_cnn(0, work.two);
  first_backward(cnn, d.n_features, work.two, work.x);
  __syncthreads();
}

}  // namespace nnmf_cuda
