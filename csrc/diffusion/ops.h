// purify, feature_cnn, defended_logits, their gradients, and philox_normal, once for both devices:
// one defence, of which purification alone and the network alone are cases. What an op is given
// becomes DefenceArguments, which are checked, then DefenceParams, from which an Implementation
// computes.
//
//   purify(Tensor x, Tensor? noise, Tensor timesteps, Tensor alphas_cumprod, Tensor[] weights, *,
//     float eta=0., int seed=0, int n_draws=1, bool keep_signs=False, bool prepares=False)
//     -> (Tensor, Tensor)
//   feature_cnn(Tensor x, Tensor[] weights, *, bool keep_signs=False, bool prepares=False)
//     -> (Tensor, Tensor)
//   defended_logits(Tensor x, Tensor? noise, Tensor timesteps, Tensor alphas_cumprod,
//     Tensor[] denoiser, Tensor[] classifier, *, float eta=0., int seed=0, int n_draws=1,
//     bool keep_signs=False, bool prepares=False) -> (Tensor, Tensor)
//   purify_backward(Tensor grad, ..., Tensor[] weights, Tensor signs, *, float eta, int seed,
//     int n_draws, bool noise_needs_grad, bool weights_need_grad) -> (Tensor, Tensor, Tensor)
//   feature_cnn_backward(Tensor grad, Tensor x, Tensor[] weights, Tensor signs, *,
//     bool weights_need_grad) -> (Tensor, Tensor)
//   defended_logits_backward(Tensor grad, ..., Tensor[] denoiser, Tensor[] classifier,
//     Tensor signs, *, float eta, int seed, int n_draws, bool noise_needs_grad,
//     bool weights_need_grad) -> (Tensor, Tensor, Tensor, Tensor)
//   philox_normal(Tensor like, *, int seed, int n_steps, int n_rows, int n_draws, int n_features)
//     -> Tensor
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../common/arguments.h"
#include "params.h"
#include "philox.h"

namespace nnmf_cuda {

using Tensors = std::vector<Tensor>;

// Everything that an op is given but gradients; the chain or the classifier may be missing.
class DefenceArguments {
 public:
  explicit DefenceArguments(const Tensor& x_) : x(adjacent(x_)) {
    check_floating({"x", x});
    check_dim({"x", x}, 2);
  }

  DefenceArguments& with_chain(const std::optional<Tensor>& noise_, const Tensor& timesteps,
                               const Tensor& alphas_cumprod, const Tensors& denoiser, double eta,
                               int64_t seed, int64_t n_draws) {
    STD_TORCH_CHECK(timesteps.scalar_type() == ScalarType::Long, "timesteps must be int64, got ",
                    dtype_name(timesteps.scalar_type()));
    STD_TORCH_CHECK(alphas_cumprod.scalar_type() == ScalarType::Double,
                    "alphas_cumprod must be float64, got ",
                    dtype_name(alphas_cumprod.scalar_type()));
    check_same_device({"timesteps", timesteps}, {"x", x});
    check_same_device({"alphas_cumprod", alphas_cumprod}, {"x", x});
    timesteps_ = adjacent(timesteps);
    alphas_cumprod_ = adjacent(alphas_cumprod);
    if (noise_.has_value()) noise = like_x("noise", *noise_);
    denoiser_ = like_x("denoiser", denoiser);
    const int64_t n_layers = static_cast<int64_t>(denoiser.size()) / 2;
    STD_TORCH_CHECK(n_layers >= 1 && n_layers <= kMostLayers, "denoiser must have 1 to ",
                    kMostLayers, " layers for the compiled kernels, got ", n_layers);
    eta_ = eta;
    seed_ = seed;
    n_draws_ = noise_.has_value() ? noise_->size(2) : n_draws;
    return *this;
  }

  DefenceArguments& with_classifier(const Tensors& classifier) {
    STD_TORCH_CHECK(classifier.size() == 8, "classifier must be 8 tensors, got ",
                    classifier.size());
    classifier_ = like_x("classifier", classifier);
    return *this;
  }

  template <class T>
  DefenceParams<T> params() const {
    DefenceParams<T> p{};
    p.x = x.const_data_ptr<T>();
    p.n_samples = x.size(0);
    p.n_features = x.size(1);
    p.n_draws = n_draws_;
    if (!denoiser_.empty()) {
      p.noise = noise.has_value() ? noise->const_data_ptr<T>() : nullptr;
      p.seed = seed_;
      p.timesteps = timesteps_->const_data_ptr<int64_t>();
      p.n_steps = timesteps_->size(0);
      p.alphas_cumprod = alphas_cumprod_->const_data_ptr<double>();
      p.n_alphas = alphas_cumprod_->size(0);
      p.eta = eta_;
      p.denoiser = layers<T>(denoiser_);
    }
    p.classifier = layers<T>(classifier_);
    return p;
  }

  // With x's dtype and on its device, as contiguous memory.
  Tensor like_x(const char* name, const Tensor& tensor) const {
    check_same_dtype({name, tensor}, {"x", x});
    check_same_device({name, tensor}, {"x", x});
    return adjacent(tensor);
  }

  Tensor x;
  std::optional<Tensor> noise;

 private:
  Tensors like_x(const char* name, const Tensors& tensors) const {
    Tensors result;
    result.reserve(tensors.size());
    for (const Tensor& tensor : tensors) result.push_back(like_x(name, tensor));
    return result;
  }

  template <class T>
  static std::vector<LayerParams<T>> layers(const Tensors& weights) {
    std::vector<LayerParams<T>> result;
    for (std::size_t i = 0; i + 1 < weights.size(); i += 2) {
      const Tensor& weight = weights[i];
      const int64_t inputs = weight.dim() == 2 ? weight.size(1) : weight.size(1) * weight.size(2);
      result.push_back(
          {weight.const_data_ptr<T>(), weights[i + 1].const_data_ptr<T>(), weight.size(0), inputs});
    }
    return result;
  }

  std::optional<Tensor> timesteps_, alphas_cumprod_;
  Tensors denoiser_, classifier_;
  double eta_ = 0;
  int64_t seed_ = 0, n_draws_ = 1;
};

// Where in a tensor of what is kept lies what the device has prepared of the weights; null:
// nowhere.
template <class Word, class T>
auto* prepared_in(const Tensor& kept, Word* words, const KeptShape<T>& shape) {
  using Numbers = std::conditional_t<std::is_const_v<Word>, const T, T>;
  const bool aligned = reinterpret_cast<std::uintptr_t>(words) % kPreparedBytes == 0;
  const bool is_there = shape.more > 0 && kept.size(0) == shape.rows() && aligned;
  return is_there ? reinterpret_cast<Numbers*>(words + shape.prepared_at()) : nullptr;
}

// The result of every sample, or of every draw where there is no network; and what is kept: with
// `prepares` on some devices more than signs, of which not every word is written.
// Implementation, constructed from a tensor of the device: forward(params, out, signs or null,
// memory for what it prepares or null), prepared_size(params) of that.
template <class Implementation>
std::tuple<Tensor, Tensor> defence_forward(const DefenceArguments& a, bool keep_signs,
                                           bool prepares) {
  Implementation device(a.x);
  std::tuple<Tensor, Tensor> result;
  dispatch_floating(a.x.scalar_type(), [&]<class T>(Type<T>) {
    const DefenceParams<T> p = a.params<T>();
    // Shapes by name: nvcc loses a list in braces that is one side of a choice.
    std::vector<int64_t> shape{p.n_samples, p.n_outputs()}, shape_of_signs{0};
    if (p.classifier.empty()) shape.insert(shape.begin() + 1, p.n_draws);
    const KeptShape<T> kept(p, keep_signs && prepares ? Implementation::prepared_size(p) : 0);
    if (keep_signs) shape_of_signs = {kept.rows(), kept.n_words};
    Tensor out = torch::stable::new_empty(a.x, shape);
    Tensor signs = torch::stable::new_empty(a.x, shape_of_signs, ScalarType::Int);
    int32_t* const words = keep_signs ? signs.mutable_data_ptr<int32_t>() : nullptr;
    device.forward(p, out.mutable_data_ptr<T>(), reinterpret_cast<uint32_t*>(words),
                   keep_signs ? prepared_in(signs, words, kept) : nullptr);
    result = {out, signs};
  });
  return result;
}

// Gradients to everything that an op is given; empty where they were not asked for.
struct DefenceGradients {
  Tensor x, noise, denoiser, classifier;
};

// Implementation: backward(params, gradient to the outputs, signs, what the forward pass has
// prepared or null, to x, to the noise or null), and, where gradients of weights are asked for,
// backward_with_weights(..., to denoiser, to classifier), which needs signs where
// kWeightsNeedSigns.
template <class Implementation>
DefenceGradients defence_backward(const DefenceArguments& a, const Tensor& grad,
                                  const Tensor& signs, bool noise_needs_grad,
                                  bool weights_need_grad) {
  const Tensor of_outputs = a.like_x("grad", grad), words = adjacent(signs);
  check_same_device({"signs", signs}, {"x", a.x});
  Implementation device(a.x);
  const auto vector = [&](int64_t size) { return torch::stable::new_empty(a.x, {size}); };
  DefenceGradients result{torch::stable::empty_like(a.x), vector(0), vector(0), vector(0)};
  const bool to_noise = noise_needs_grad && a.noise.has_value();
  if (to_noise) result.noise = torch::stable::empty_like(*a.noise);
  dispatch_floating(a.x.scalar_type(), [&]<class T>(Type<T>) {
    const DefenceParams<T> p = a.params<T>();
    const bool reads_signs = !weights_need_grad || Implementation::kWeightsNeedSigns;
    const KeptShape<T> kept(p, reads_signs ? Implementation::prepared_size(p) : 0);
    STD_TORCH_CHECK(
        !reads_signs || (words.scalar_type() == ScalarType::Int && words.dim() == 2 &&
                         (words.size(0) == kept.n_blocks || words.size(0) == kept.rows()) &&
                         words.size(1) == kept.n_words),
        "signs must be those of the forward pass, int32 of shape (", kept.rows(), ", ",
        kept.n_words, "), got ", shape_of(words));
    const auto* const signs_at = reads_signs ? words.const_data_ptr<int32_t>() : nullptr;
    const auto* const bits = reinterpret_cast<const uint32_t*>(signs_at);
    const T* const prepared = reads_signs ? prepared_in(words, signs_at, kept) : nullptr;
    const T* from = of_outputs.const_data_ptr<T>();
    T *of_x = result.x.mutable_data_ptr<T>(),
      *of_noise = to_noise ? result.noise.mutable_data_ptr<T>() : nullptr;
    if (!weights_need_grad) return device.backward(p, from, bits, prepared, of_x, of_noise);
    result.denoiser = vector(p.count(p.denoiser));
    result.classifier = vector(p.count(p.classifier));
    device.backward_with_weights(p, from, bits, prepared, of_x, of_noise,
                                 result.denoiser.mutable_data_ptr<T>(),
                                 result.classifier.mutable_data_ptr<T>());
  });
  return result;
}

template <class Implementation>
std::tuple<Tensor, Tensor> purify(const Tensor& x, std::optional<Tensor> noise,
                                  const Tensor& timesteps, const Tensor& alphas_cumprod,
                                  Tensors weights, double eta, int64_t seed, int64_t n_draws,
                                  bool keep_signs, bool prepares) {
  return defence_forward<Implementation>(
      DefenceArguments(x).with_chain(noise, timesteps, alphas_cumprod, weights, eta, seed, n_draws),
      keep_signs, prepares);
}

template <class Implementation>
std::tuple<Tensor, Tensor> feature_cnn(const Tensor& x, Tensors weights, bool keep_signs,
                                       bool prepares) {
  return defence_forward<Implementation>(DefenceArguments(x).with_classifier(weights), keep_signs,
                                         prepares);
}

template <class Implementation>
std::tuple<Tensor, Tensor> defended_logits(const Tensor& x, std::optional<Tensor> noise,
                                           const Tensor& timesteps, const Tensor& alphas_cumprod,
                                           Tensors denoiser, Tensors classifier, double eta,
                                           int64_t seed, int64_t n_draws, bool keep_signs,
                                           bool prepares) {
  return defence_forward<Implementation>(
      DefenceArguments(x)
          .with_chain(noise, timesteps, alphas_cumprod, denoiser, eta, seed, n_draws)
          .with_classifier(classifier),
      keep_signs, prepares);
}

template <class Implementation>
std::tuple<Tensor, Tensor, Tensor> purify_backward(
    const Tensor& grad, const Tensor& x, std::optional<Tensor> noise, const Tensor& timesteps,
    const Tensor& alphas_cumprod, Tensors weights, const Tensor& signs, double eta, int64_t seed,
    int64_t n_draws, bool noise_needs_grad, bool weights_need_grad) {
  const DefenceGradients g = defence_backward<Implementation>(
      DefenceArguments(x).with_chain(noise, timesteps, alphas_cumprod, weights, eta, seed, n_draws),
      grad, signs, noise_needs_grad, weights_need_grad);
  return {g.x, g.noise, g.denoiser};
}

template <class Implementation>
std::tuple<Tensor, Tensor> feature_cnn_backward(const Tensor& grad, const Tensor& x,
                                                Tensors weights, const Tensor& signs,
                                                bool weights_need_grad) {
  const DefenceGradients g = defence_backward<Implementation>(
      DefenceArguments(x).with_classifier(weights), grad, signs, false, weights_need_grad);
  return {g.x, g.classifier};
}

template <class Implementation>
std::tuple<Tensor, Tensor, Tensor, Tensor> defended_logits_backward(
    const Tensor& grad, const Tensor& x, std::optional<Tensor> noise, const Tensor& timesteps,
    const Tensor& alphas_cumprod, Tensors denoiser, Tensors classifier, const Tensor& signs,
    double eta, int64_t seed, int64_t n_draws, bool noise_needs_grad, bool weights_need_grad) {
  const DefenceGradients g = defence_backward<Implementation>(
      DefenceArguments(x)
          .with_chain(noise, timesteps, alphas_cumprod, denoiser, eta, seed, n_draws)
          .with_classifier(classifier),
      grad, signs, noise_needs_grad, weights_need_grad);
  return {g.x, g.noise, g.denoiser, g.classifier};
}

// Implementation: draw_normals(out, shape, seed), which writes at least one number. The sizes are
// words of a counter.
template <class Implementation>
Tensor philox_normal(const Tensor& like, int64_t seed, int64_t n_steps, int64_t n_rows,
                     int64_t n_draws, int64_t n_features) {
  check_floating({"like", like});
  const struct {
    const char* name;
    int64_t size;
  } sizes[] = {
      {"n_steps", n_steps}, {"n_rows", n_rows}, {"n_draws", n_draws}, {"n_features", n_features}};
  for (const auto& [name, size] : sizes)
    STD_TORCH_CHECK(size >= 0 && size < int64_t{1} << 32, name, " must be in [0, 2**32), got ",
                    size);
  Implementation device(like);
  const Tensor draws = torch::stable::new_empty(like, {n_steps, n_rows, n_draws, n_features});
  if (draws.numel() == 0) return draws;
  dispatch_floating(like.scalar_type(), [&]<class T>(Type<T>) {
    device.draw_normals(draws.mutable_data_ptr<T>(),
                        DrawsShape{n_steps, n_rows, n_draws, n_features},
                        static_cast<uint64_t>(seed));
  });
  return draws;
}

template <class Implementation, class Library>
void implement_diffusion(Library& m) {
  m.impl("purify", TORCH_BOX(&purify<Implementation>));
  m.impl("purify_backward", TORCH_BOX(&purify_backward<Implementation>));
  m.impl("feature_cnn", TORCH_BOX(&feature_cnn<Implementation>));
  m.impl("feature_cnn_backward", TORCH_BOX(&feature_cnn_backward<Implementation>));
  m.impl("defended_logits", TORCH_BOX(&defended_logits<Implementation>));
  m.impl("defended_logits_backward", TORCH_BOX(&defended_logits_backward<Implementation>));
  m.impl("philox_normal", TORCH_BOX(&philox_normal<Implementation>));
}

}  // namespace nnmf_cuda
