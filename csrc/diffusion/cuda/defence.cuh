// A defence as CUDA kernels see it: a chain of denoising steps, a network, or both, on blocks of
// flat rows, row q being draw q % n_draws of sample q / n_draws. And the chain on the rows of a
// block, forwards and backwards.
#pragma once

#include <cstdint>

#include "../../networks/cuda/layers.cuh"
#include "../ddim.h"
#include "../philox.h"

namespace nnmf_cuda {

// Backwards, layers are those from outputs to inputs.
template <class T>
struct DeviceChain {
  const T* noise;  // [n_noised][rows][n_features]; null: drawn from the seed
  uint64_t seed;
  int n_noised, n_steps, n_layers, words_per_step, embedding_dim;
  ChainStep<T>* steps;
  T* biases;      // [n_steps][outputs]: the first layer's, with what the embedding of t adds
  T* embeddings;  // [n_steps][embedding_dim]
};

template <class T>
struct DeviceDefence {
  const T* x;  // [n_samples][n_features]
  int64_t n_rows, n_draws;
  int n_features;
  bool has_chain, has_cnn;
  DeviceChain<T> chain;
  DeviceCnn<T> cnn;
  DeviceDense<T> layers[kMostLayers + 3];  // the chain's, then the network's second to last
  int width;                               // units of each buffer for activations
  T* workspace;                            // of all blocks, where shared memory is too small

  __device__ __forceinline__ int chain_words() const {
    return has_chain ? chain.n_steps * chain.words_per_step : 0;
  }
  // What is computed first of the network, or of the chain.
  __device__ __forceinline__ int cnn_forward_begins() const {
    return has_cnn ? cnn.second : kNoLayer;
  }
  __device__ __forceinline__ int forward_begins() const {
    return has_chain ? 0 : cnn_forward_begins();
  }
  __device__ __forceinline__ int chain_backward_begins() const {
    return has_chain ? chain.n_layers - 1 : kNoLayer;
  }
  __device__ __forceinline__ int backward_begins() const {
    return has_cnn ? cnn.last : chain_backward_begins();
  }
};

// What a backward pass calls where nothing but it is wanted.
struct NoWeights {
  static constexpr bool kComputesLayers = false;  // between those of the backward pass
  __device__ __forceinline__ void begin_step(int) const {}
  template <class T>
  __device__ __forceinline__ void of_chain(int, const T*) const {}
  template <class T>
  __device__ __forceinline__ void of_cnn(int, const T*) const {}
};

template <class T, int kRows>
__device__ __forceinline__ T noise_at(const DeviceDefence<T>& d, const LaneRow<kRows>& row,
                                      int step, int feature) {
  if (d.chain.noise != nullptr)
    return d.chain.noise[(step * d.n_rows + row.flat) * d.n_features + feature];
  return static_cast<T>(philox_normal(d.chain.seed, static_cast<uint32_t>(step),
                                      static_cast<uint32_t>(row.sample), row.draw,
                                      static_cast<uint32_t>(feature)));
}

// x = what the first layer is given: x_t of the chain's first step, or the features themselves.
// Rows that do not exist are zero.
template <class T, int kRows>
__device__ __forceinline__ void start_rows(const DeviceDefence<T>& d, const LaneRow<kRows>& row,
                                           T* x, T* kept) {
  for_each_row_unit<kRows>(d.n_features, [&](int j) {
    T value = row.exists ? d.x[row.sample * d.n_features + j] : T{0};
    if (d.has_chain && row.exists)
      value = d.chain.steps[0].keep * value + d.chain.steps[0].spread * noise_at(d, row, 0, j);
    const int at = j * kRows + row.row;
    x[at] = value;
    if (kept != nullptr) kept[at] = value;
  });
  __syncthreads();
}

// x = the chain's prediction, from what `start_rows` has left there. `kept` (may be null) has x_t
// of every step and then the prediction, [n_steps + 1][n_features][row]; the first is there
// already.
template <class T, int kRows, class Word>
__device__ __forceinline__ void chain_forward(Multiplier<T, kRows>& layers,
                                              const DeviceDefence<T>& d, unsigned rows,
                                              const LaneRow<kRows>& row, const Work<T, kRows>& work,
                                              SignWords<Word> words, T* kept) {
  const DeviceChain<T>& chain = d.chain;
  for (int step = 0; step < chain.n_steps; ++step) {
    const T* in = work.x;
    T *out = work.one, *other = work.two;
    for (int l = 0; l < chain.n_layers; ++l) {
      const DeviceDense<T>& layer = layers[l];
      const bool hidden = l + 1 < chain.n_layers;
      const int next = hidden ? l + 1 : step + 1 < chain.n_steps ? 0 : d.cnn_forward_begins();
      const T* bias = l == 0 ? chain.biases + step * layer.outputs : layer.bias;
      dense_forward(layers, l, next, bias, hidden, in, out,
                    hidden ? words : SignWords<Word>{nullptr}, rows);
      if (hidden) words = words.behind(layer.outputs);
      __syncthreads();
      in = out;
      T* const written = out;
      out = other;
      other = written;
    }
    const bool last = step + 1 == chain.n_steps;
    const ChainStep<T>& of = chain.steps[step];
    for_each_row_unit<kRows>(d.n_features, [&](int j) {
      const int at = j * kRows + row.row;
      T value = in[at];
      if (!last) {
        value = of.of_prediction * value + of.of_x_t * work.x[at];
        if (chain.n_noised > 1 && row.exists) value += of.of_noise * noise_at(d, row, step + 1, j);
      }
      work.x[at] = value;
      if (kept != nullptr) kept[(step + 1) * d.n_features * kRows + at] = value;
    });
    __syncthreads();
  }
}

// x = the gradient to x_t of the first step, from that to the prediction, which stands there.
// Calls weights.begin_step(step), then weights.of_chain(layer, gradient to its outputs).
template <class T, int kRows, class Word, class Weights>
__device__ __forceinline__ void chain_backward(Multiplier<T, kRows>& layers,
                                               const DeviceDefence<T>& d, const LaneRow<kRows>& row,
                                               const SignWords<Word>& words,
                                               const Work<T, kRows>& work, T* of_noise,
                                               const Weights& weights) {
  const DeviceChain<T>& chain = d.chain;
  const TilePlace<kRows> place;
  for (int step = chain.n_steps - 1; step >= 0; --step) {
    const bool last = step + 1 == chain.n_steps;
    const ChainStep<T>& of = chain.steps[step];
    weights.begin_step(step);
    for_each_row_unit<kRows>(d.n_features, [&](int j) {
      const int at = j * kRows + row.row;
      const T grad = work.x[at];
      work.one[at] = last ? grad : of.of_prediction * grad;
      if (!last && chain.n_noised > 1 && of_noise != nullptr && row.exists)
        of_noise[((step + 1) * d.n_rows + row.flat) * d.n_features + j] = of.of_noise * grad;
    });
    __syncthreads();
    int words_at = (step + 1) * chain.words_per_step;
    T *from = work.one, *to = work.two;
    for (int l = chain.n_layers - 1; l > 0; --l) {
      weights.of_chain(l, from);
      words_at -= layers[l].outputs;
      dense_backward(layers, l, l - 1, words.behind(words_at), from, to);
      __syncthreads();
      T* const read = from;
      from = to;
      to = read;
    }
    weights.of_chain(0, from);
    const int next = step > 0 && !Weights::kComputesLayers ? chain.n_layers - 1 : kNoLayer;
    layers.for_each_unit(
        0, next, from, [](int) { return 0; },
        [&](int unit, T(&sums)[4], int) {
          if (unit >= d.n_features) return;
          T* x = work.x + unit * kRows + place.row;
          const Four<T> before = load_four(x);
          if (!last) {
#pragma unroll
            for (int r = 0; r < 4; ++r) sums[r] += of.of_x_t * before.values[r];
          }
          store_four(x, sums);
        });
    __syncthreads();
  }
}

}  // namespace nnmf_cuda
