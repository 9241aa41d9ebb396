// A defended classifier as the kernels see it: a chain of denoising steps, a network, or both.
#pragma once

#include <cstdint>

#include "../networks/network.h"

namespace nnmf_cuda {

// x_prev = of_prediction * prediction + of_x_t * x_t + of_noise * noise; of the last step only the
// prediction is wanted. `bias` is the first layer's, with what the embedding of t adds.
template <class T>
struct ChainStep {
  T of_prediction, of_x_t, of_noise;
  const T* bias;
};

// Row q is draw q % n_draws of sample q / n_draws. The chain begins at keep * x + spread * noise.
template <class T>
struct Chain {
  const T* noise;  // [n_noised][rows][n_features]; null: drawn from the seed
  uint64_t seed;
  int64_t n_noised;
  T keep, spread;
  const ChainStep<T>* steps;
  int64_t n_steps;
  Mlp<T> mlp;

  int64_t words_per_step() const {
    int64_t words = 0;
    for (int64_t l = 0; l + 1 < mlp.n_layers; ++l) words += mlp.layers[l].outputs;
    return words;
  }
  int64_t n_words() const { return n_steps * words_per_step(); }
};

// `chain` or `cnn` may be null, not both.
template <class T>
struct Defence {
  const T* x;  // [n_samples][n_features]
  int64_t n_samples, n_draws, n_features;
  const Chain<T>* chain;
  const FeatureCnn<T>* cnn;

  int64_t n_rows() const { return n_samples * n_draws; }
  int64_t chain_words() const { return chain == nullptr ? 0 : chain->n_words(); }
  int64_t n_words() const { return chain_words() + (cnn == nullptr ? 0 : cnn->shape.n_words()); }
  // Numbers that a row comes to.
  int64_t n_outputs() const { return cnn == nullptr ? n_features : cnn->shape.n_classes; }
};

// Where one task sums gradients of weights: those of the chain, step by step (the steps share all
// but the first bias), then the network's four layers.
template <class T>
struct DefenceSums {
  const LayerSums<T>*chain, *cnn;
};

// What a backward pass is given and fills in.
template <class T>
struct Gradients {
  const T* of_outputs;    // [n_samples][n_outputs] with a network, else [rows][n_outputs]
  const uint32_t* signs;  // [n_blocks][n_words]; not read where gradients of weights are summed
  T* of_rows;             // [rows][n_features]: to what the chain starts from, or to x
  T* of_noise;            // like the chain's noise; may be null
};

}  // namespace nnmf_cuda
