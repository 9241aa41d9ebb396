// A defended classifier as the CPU kernels see it: a chain of denoising steps, a network, or both;
// and what a call computes once for it, before the rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../../common/arguments.h"
#include "../../networks/cpu/weights.h"
#include "../ddim.h"
#include "../params.h"

namespace nnmf_cuda {

// Row q is draw q % n_draws of sample q / n_draws.
template <class T>
struct Chain {
  const T* noise;  // [n_noised][rows][n_features]; null: drawn from the seed
  uint64_t seed;
  int64_t n_noised;
  const ChainStep<T>* steps;
  const T* biases;  // [n_steps][outputs]: the first layer's, with what the embedding of t adds
  int64_t n_steps;
  Mlp<T> mlp;

  const T* bias(int64_t step) const { return biases + step * mlp.layers[0].outputs; }
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

// What a backward pass over rows is given and fills in.
template <class T>
struct RowGradients {
  const T* of_outputs;    // [n_samples][n_outputs] with a network, else [rows][n_outputs]
  const uint32_t* signs;  // [n_blocks][n_words]; not read where gradients of weights are summed
  T* of_rows;             // [rows][n_features]: to what the chain starts from, or to x
  T* of_noise;            // like the chain's noise; may be null
};

// A defence with all it points to but the user's tensors.
template <class T>
class PreparedDefence {
 public:
  explicit PreparedDefence(const DefenceParams<T>& p)
      : defence{p.x, p.n_samples, p.n_draws, p.n_features, nullptr, nullptr} {
    if (!p.denoiser.empty()) add_chain(p);
    if (!p.classifier.empty()) add_cnn(p);
  }
  PreparedDefence(const PreparedDefence&) = delete;
  PreparedDefence& operator=(const PreparedDefence&) = delete;

  int64_t embedding_dim() const { return layers_[0].stride - defence.n_features; }
  // What follows x_t in the input of the first layer, at a step.
  const T* embedding(int64_t step) const { return embeddings_.data() + step * embedding_dim(); }

 private:
  void add_chain(const DefenceParams<T>& p) {
    for (const LayerParams<T>& layer : p.denoiser)
      layers_.push_back({layer.weight, layer.bias, layer.inputs, layer.outputs, layer.inputs});
    layers_[0].inputs = p.n_features;
    add_steps(p);
    chain_.noise = p.noise;
    chain_.seed = static_cast<uint64_t>(p.seed);
    chain_.n_noised = p.n_noised();
    chain_.steps = steps_.data();
    chain_.biases = biases_.data();
    chain_.n_steps = p.n_steps;
    chain_.mlp = {layers_.data(), static_cast<int64_t>(layers_.size())};
    defence.chain = &chain_;
  }

  void add_steps(const DefenceParams<T>& p) {
    const Dense<T>& first = layers_[0];
    const int64_t dim = embedding_dim();
    biases_.resize(static_cast<std::size_t>(p.n_steps * first.outputs));
    embeddings_.resize(static_cast<std::size_t>(p.n_steps * dim));
    const auto kept = [&](int64_t i) { return p.alphas_cumprod[p.timesteps[i]]; };
    for (int64_t i = 0; i < p.n_steps; ++i) {
      steps_.push_back(chain_step<T>(kept(i), i + 1 < p.n_steps ? kept(i + 1) : 1, p.eta));
      embed(p.timesteps[i], dim, 0, 1, embeddings_.data() + i * dim);
      for (int64_t o = 0; o < first.outputs; ++o)
        biases_[static_cast<std::size_t>(i * first.outputs + o)] = fold_embedding(
            first.bias[o], first.weight + o * first.stride + p.n_features, embedding(i), dim);
    }
  }

  void add_cnn(const DefenceParams<T>& p) {
    const auto& c = p.classifier;
    packed_.resize(static_cast<std::size_t>(packed_size(p.cnn())));
    cnn_ = pack_feature_cnn<T>(p.cnn(),
                               {c[0].weight, c[0].bias, c[1].weight, c[1].bias, c[2].weight,
                                c[2].bias, c[3].weight, c[3].bias},
                               packed_.data());
    defence.cnn = &cnn_;
  }

  std::vector<Dense<T>> layers_;
  std::vector<ChainStep<T>> steps_;
  std::vector<T> biases_, embeddings_, packed_;
  Chain<T> chain_{};
  FeatureCnn<T> cnn_{};

 public:
  Defence<T> defence;
};

}  // namespace nnmf_cuda
