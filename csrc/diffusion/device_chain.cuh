// A chain of denoising steps on the rows of a block, forwards and backwards.
#pragma once

#include <cstdint>

#include "device_defence.cuh"

namespace nnmf_cuda {

template <class T>
__device__ __forceinline__ T noise_at(const DeviceDefence<T>& d, const LaneRow& row, int step,
                                      int feature) {
  if (d.chain.noise != nullptr)
    return d.chain.noise[(step * d.n_rows + row.flat) * d.n_features + feature];
  return static_cast<T>(philox_normal(d.chain.seed, static_cast<uint32_t>(step),
                                      static_cast<uint32_t>(row.sample), row.draw,
                                      static_cast<uint32_t>(feature)));
}

// x = what the first layer is given: x_t of the chain's first step, or the features themselves.
// Rows that do not exist are zero.
template <class T>
__device__ __forceinline__ void start_rows(const DeviceDefence<T>& d, const LaneRow& row, T* x,
                                           T* kept) {
  for_each_row_unit(d.n_features, [&](int j) {
    T value = row.exists ? d.x[row.sample * d.n_features + j] : T{0};
    if (d.has_chain && row.exists)
      value = d.chain.coefficients[kKeep] * value +
              d.chain.coefficients[kSpread] * noise_at(d, row, 0, j);
    const int at = j * kRows + lane_of_thread();
    x[at] = value;
    if (kept != nullptr) kept[at] = value;
  });
  __syncthreads();
}

// x = the chain's prediction, from what `start_rows` has left there. `kept` (may be null) has x_t
// of every step and then the prediction, [n_steps + 1][n_features][row]; the first is there
// already.
template <class T>
__device__ __forceinline__ void chain_forward(const DeviceDefence<T>& d, const DeviceRows& rows,
                                              const LaneRow& row, const Work<T>& work,
                                              uint32_t* words, T* kept) {
  const DeviceChain<T>& chain = d.chain;
  for (int step = 0; step < chain.n_steps; ++step) {
    const T* in = work.x;
    T *out = work.one, *other = work.two;
    for (int l = 0; l < chain.n_layers; ++l) {
      const DeviceDense<T>& layer = chain.layers[l];
      const bool hidden = l + 1 < chain.n_layers;
      const T* bias = l == 0 ? chain.biases + step * layer.outputs : layer.bias;
      dense_forward(layer, bias, hidden, in, out, hidden ? words : nullptr, rows.mask);
      if (words != nullptr && hidden) words += layer.outputs;
      __syncthreads();
      in = out;
      T* const written = out;
      out = other;
      other = written;
    }
    const bool last = step + 1 == chain.n_steps;
    const T* of = chain.coefficients + step * kCoefficients;
    for_each_row_unit(d.n_features, [&](int j) {
      const int at = j * kRows + lane_of_thread();
      T value = in[at];
      if (!last) {
        value = of[kOfPrediction] * value + of[kOfXt] * work.x[at];
        if (chain.n_noised > 1 && row.exists) value += of[kOfNoise] * noise_at(d, row, step + 1, j);
      }
      work.x[at] = value;
      if (kept != nullptr) kept[(step + 1) * d.n_features * kRows + at] = value;
    });
    __syncthreads();
  }
}

// x = the gradient to x_t of the first step, from that to the prediction, which stands there.
// Calls weights.begin_step(step), then weights.of_chain(layer, gradient to its outputs).
template <class T, class Weights>
__device__ __forceinline__ void chain_backward(const DeviceDefence<T>& d, const LaneRow& row,
                                               const uint32_t* words, const Work<T>& work,
                                               T* of_noise, const Weights& weights) {
  const DeviceChain<T>& chain = d.chain;
  const TilePlace place;
  for (int step = chain.n_steps - 1; step >= 0; --step) {
    const bool last = step + 1 == chain.n_steps;
    const T* of = chain.coefficients + step * kCoefficients;
    weights.begin_step(step);
    for_each_row_unit(d.n_features, [&](int j) {
      const int at = j * kRows + lane_of_thread();
      const T grad = work.x[at];
      work.one[at] = last ? grad : of[kOfPrediction] * grad;
      if (!last && chain.n_noised > 1 && of_noise != nullptr && row.exists)
        of_noise[((step + 1) * d.n_rows + row.flat) * d.n_features + j] = of[kOfNoise] * grad;
    });
    __syncthreads();
    const uint32_t* of_layer = words + (step + 1) * chain.words_per_step;
    T *from = work.one, *to = work.two;
    for (int l = chain.n_layers - 1; l > 0; --l) {
      const DeviceDense<T>& layer = chain.layers[l];
      weights.of_chain(l, from);
      of_layer -= layer.outputs;
      dense_backward(layer, of_layer, from, to);
      __syncthreads();
      T* const read = from;
      from = to;
      to = read;
    }
    weights.of_chain(0, from);
    for_each_unit<T>(chain.layers[0], from, [&](int unit, T(&sums)[4]) {
      if (unit >= d.n_features) return;
      T* x = work.x + unit * kRows + place.row;
      const Four<T> before = load_four(x);
      if (!last) {
#pragma unroll
        for (int r = 0; r < 4; ++r) sums[r] += of[kOfXt] * before.values[r];
      }
      store_four(x, sums);
    });
    __syncthreads();
  }
}

}  // namespace nnmf_cuda
