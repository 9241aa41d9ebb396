// A defence as the kernels of both devices are given it: a chain of denoising steps, a network, or
// both, as sizes and pointers to the user's tensors. Free of torch.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../networks/network.h"

namespace nnmf_cuda {

// A layer as the user has it, [outputs][inputs]; a convolution's inputs are [channels][3].
template <class T>
struct LayerParams {
  const T *weight, *bias;
  int64_t outputs, inputs;

  int64_t size() const { return outputs * (inputs + 1); }
};

// All that an op is given but gradients. Either list of layers may be empty, not both.
template <class T>
struct DefenceParams {
  const T* x;
  int64_t n_samples, n_draws, n_features;
  const T* noise;  // null: drawn from the seed
  int64_t seed;
  const int64_t* timesteps;
  int64_t n_steps;
  const double* alphas_cumprod;
  int64_t n_alphas;
  double eta;
  std::vector<LayerParams<T>> denoiser, classifier;

  int64_t n_rows() const { return n_samples * n_draws; }
  int64_t n_noised() const { return eta > 0 ? n_steps : 1; }
  int64_t words_per_step() const {
    int64_t words = 0;
    for (std::size_t l = 0; l + 1 < denoiser.size(); ++l) words += denoiser[l].outputs;
    return words;
  }
  CnnShape cnn() const {
    return {n_features, classifier[0].outputs, classifier[1].outputs, classifier[2].outputs,
            classifier[3].outputs};
  }
  int64_t n_words() const {
    return n_steps * words_per_step() + (classifier.empty() ? 0 : cnn().n_words());
  }
  int64_t n_outputs() const { return classifier.empty() ? n_features : classifier[3].outputs; }
  // Units of a buffer that holds what any layer is given or gives, backwards as well.
  int64_t width() const {
    int64_t most = n_features;
    for (const auto& layer : denoiser) most = std::max(most, layer.outputs);
    if (classifier.empty()) return most;
    const CnnShape s = cnn();
    return std::max({most, s.n_features * s.first, s.second * s.n_pooled(), s.hidden, s.n_classes});
  }
  static int64_t count(const std::vector<LayerParams<T>>& layers) {
    int64_t n = 0;
    for (const auto& layer : layers) n += layer.size();
    return n;
  }
};

constexpr int64_t kPreparedBytes = 16;  // at a multiple of which begins what a device has prepared

// What a forward pass keeps for a backward pass, in words of 32 bits [rows(), n_words]: the signs
// of the blocks of rows, and in `more` rows behind them `prepared` numbers that a device has made
// of the weights, which not every device does.
template <class T>
struct KeptShape {
  KeptShape(const DefenceParams<T>& p, int64_t prepared)
      : n_blocks(nnmf_cuda::n_blocks(p.n_rows())), n_words(p.n_words()) {
    constexpr int64_t kWords = sizeof(T) / 4;  // of a number
    if (prepared > 0 && n_words > 0 && n_blocks > 0)
      more = blocks_of(prepared * kWords + kPreparedBytes / 4 - 1, n_words);
  }

  int64_t rows() const { return n_blocks + more; }
  int64_t prepared_at() const {  // word
    return blocks_of(n_blocks * n_words, kPreparedBytes / 4) * (kPreparedBytes / 4);
  }

  int64_t n_blocks, n_words, more = 0;
};

}  // namespace nnmf_cuda
