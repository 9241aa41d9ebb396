// The arguments of purify, feature_cnn and defended_logits as a Defence of the CPU kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../common/checks.h"
#include "../networks/pack.h"
#include "defence.h"

namespace nnmf_cuda {

inline Tensor adjacent(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline std::vector<Tensor> adjacent(const std::vector<Tensor>& tensors, const Argument& like,
                                    const char* name) {
  std::vector<Tensor> result;
  for (const Tensor& tensor : tensors) {
    check_same_dtype({name, tensor}, like);
    check_same_device({name, tensor}, like);
    result.push_back(adjacent(tensor));
  }
  return result;
}

// A chain with all it points to.
template <class T>
class ChainArguments {
 public:
  ChainArguments(const Argument& x, const std::optional<Tensor>& noise, const Tensor& timesteps,
                 const Tensor& alphas_cumprod, const std::vector<Tensor>& weights, double eta,
                 int64_t seed)
      : n_features_(x.tensor.size(1)), weights_(adjacent(weights, x, "weights")) {
    STD_TORCH_CHECK(timesteps.scalar_type() == ScalarType::Long, "timesteps must be int64, got ",
                    dtype_name(timesteps.scalar_type()));
    STD_TORCH_CHECK(alphas_cumprod.scalar_type() == ScalarType::Double,
                    "alphas_cumprod must be float64, got ",
                    dtype_name(alphas_cumprod.scalar_type()));
    check_layers();
    if (noise.has_value()) check_same_dtype({"noise", *noise}, x);
    if (noise.has_value()) noise_ = adjacent(*noise);
    add_steps(adjacent(timesteps), adjacent(alphas_cumprod), eta);
    chain_.noise = noise_.has_value() ? noise_->template const_data_ptr<T>() : nullptr;
    chain_.seed = static_cast<uint64_t>(seed);
    chain_.n_noised = eta > 0 ? chain_.n_steps : 1;
    chain_.mlp = {layers_.data(), static_cast<int64_t>(layers_.size())};
  }
  ChainArguments(const ChainArguments&) = delete;
  ChainArguments& operator=(const ChainArguments&) = delete;

  const Chain<T>& chain() const { return chain_; }
  int64_t embedding_dim() const { return layers_[0].stride - n_features_; }
  // What follows x_t in the input of the first layer, at a step.
  const T* embedding(int64_t step) const { return embeddings_.data() + step * embedding_dim(); }

 private:
  void check_layers() {
    const std::size_t n_layers = weights_.size() / 2;
    STD_TORCH_CHECK(n_layers >= 1 && n_layers <= kMostLayers, "weights must be those of 1 to ",
                    kMostLayers, " layers for the compiled kernels, got ", n_layers);
    for (std::size_t l = 0; l < n_layers; ++l) {
      const Tensor& weight = weights_[2 * l];
      const int64_t stride = weight.size(1);
      layers_.push_back({weight.template const_data_ptr<T>(),
                         weights_[2 * l + 1].template const_data_ptr<T>(),
                         l == 0 ? n_features_ : stride, weight.size(0), stride});
    }
  }

  // Coefficients by Song et al. (2021), equation 12: see the reference.
  void add_steps(const Tensor& timesteps, const Tensor& alphas_cumprod, double eta) {
    const int64_t n_steps = timesteps.size(0);
    const int64_t* t = timesteps.const_data_ptr<int64_t>();
    const double* kept = alphas_cumprod.const_data_ptr<double>();
    chain_.n_steps = n_steps;
    chain_.keep = static_cast<T>(std::sqrt(kept[t[0]]));
    chain_.spread = static_cast<T>(std::sqrt(1 - kept[t[0]]));
    biases_.resize(static_cast<std::size_t>(n_steps * layers_[0].outputs));
    embeddings_.resize(static_cast<std::size_t>(n_steps * embedding_dim()));
    for (int64_t i = 0; i < n_steps; ++i) {
      const double now = kept[t[i]], prev = i + 1 < n_steps ? kept[t[i + 1]] : 1;
      const double sigma =
          eta * std::sqrt(std::max((1 - prev) / (1 - now) * (1 - now / prev), 0.0));
      const double direction =
          std::sqrt(std::max(1 - prev - sigma * sigma, 0.0)) / std::sqrt(1 - now);
      T* bias = biases_.data() + i * layers_[0].outputs;
      embed(t[i], embeddings_.data() + i * embedding_dim());
      fold(embedding(i), bias);
      steps_.push_back({static_cast<T>(std::sqrt(prev) - direction * std::sqrt(now)),
                        static_cast<T>(direction), static_cast<T>(sigma), bias});
    }
    chain_.steps = steps_.data();
  }

  // Sines, then cosines, of t * 10000^(-i / half); an odd width ends in a zero.
  void embed(int64_t t, T* to) const {
    const int64_t dim = embedding_dim(), half = dim / 2;
    for (int64_t i = 0; i < half; ++i) {
      const double angle =
          static_cast<double>(t) *
          std::exp(-std::log(10000.0) * (static_cast<double>(i) / static_cast<double>(half)));
      to[i] = static_cast<T>(std::sin(angle));
      to[half + i] = static_cast<T>(std::cos(angle));
    }
    if (dim % 2 == 1) to[dim - 1] = T{0};
  }

  void fold(const T* embedding, T* bias) const {
    const Dense<T>& layer = layers_[0];
    for (int64_t o = 0; o < layer.outputs; ++o) {
      double sum = layer.bias[o];
      for (int64_t i = 0; i < embedding_dim(); ++i)
        sum += static_cast<double>(layer.weight[o * layer.stride + n_features_ + i]) * embedding[i];
      bias[o] = static_cast<T>(sum);
    }
  }

  int64_t n_features_;
  std::vector<Tensor> weights_;
  std::optional<Tensor> noise_;
  std::vector<Dense<T>> layers_;
  std::vector<ChainStep<T>> steps_;
  std::vector<T> biases_, embeddings_;
  Chain<T> chain_{};
};

// A network with all it points to.
template <class T>
class CnnArguments {
 public:
  CnnArguments(const Argument& x, const std::vector<Tensor>& weights)
      : weights_(adjacent(weights, x, "weights")) {
    STD_TORCH_CHECK(weights_.size() == 8, "weights must be 8 tensors, got ", weights_.size());
    const CnnShape s{x.tensor.size(1), weights_[0].size(0), weights_[2].size(0),
                     weights_[4].size(0), weights_[6].size(0)};
    const auto at = [&](std::size_t i) { return weights_[i].template const_data_ptr<T>(); };
    packed_.resize(static_cast<std::size_t>(packed_size(s)));
    cnn_ = pack_feature_cnn<T>(s, {at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)},
                               packed_.data());
  }
  CnnArguments(const CnnArguments&) = delete;
  CnnArguments& operator=(const CnnArguments&) = delete;

  const FeatureCnn<T>& cnn() const { return cnn_; }

 private:
  std::vector<Tensor> weights_;
  std::vector<T> packed_;
  FeatureCnn<T> cnn_{};
};

}  // namespace nnmf_cuda
