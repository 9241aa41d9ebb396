// purify, feature_cnn, defended_logits and their gradients on the device; schemas as in
// defence_cpu.cpp.
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/device_memory.h"
#include "../common/dispatch.h"
#include "defence_launches.cuh"

namespace nnmf_cuda {
namespace {

using Tensors = std::vector<Tensor>;

struct Draws {
  const std::optional<Tensor>& noise;
  const Tensor &timesteps, &alphas_cumprod;
  double eta;
  int64_t seed, n_draws;
};

// Everything that an op was given but gradients; either list of weights may be missing.
struct Given {
  const Tensor& x;
  const Draws* draws;
  const Tensors *denoiser, *classifier;
};

// Tensors as kernels read them. Its launches go to the device of x.
class Prepared {
 public:
  explicit Prepared(const Given& given)
      : device(given.x.get_device_index()),
        guard_(device),
        x(contiguous(given.x)),
        size(device_size(device)),
        memory(x),
        chain_(given.draws) {
    const Argument argument{"x", x};
    check_floating(argument);
    check_dim(argument, 2);
    if (chain_ != nullptr) {
      timesteps_ = contiguous(chain_->timesteps);
      alphas_cumprod_ = contiguous(chain_->alphas_cumprod);
      check_type("timesteps", *timesteps_, ScalarType::Long);
      check_type("alphas_cumprod", *alphas_cumprod_, ScalarType::Double);
      check_same_device({"timesteps", *timesteps_}, argument);
      check_same_device({"alphas_cumprod", *alphas_cumprod_}, argument);
      if (chain_->noise.has_value()) noise_ = contiguous(like_x("noise", *chain_->noise));
      denoiser_ = contiguous(*given.denoiser, "denoiser");
      STD_TORCH_CHECK(denoiser_.size() / 2 <= kMostLayers, "the denoiser's weights are those of ",
                      denoiser_.size() / 2, " layers, but CUDA kernels take at most ", kMostLayers,
                      ": move all tensors to the CPU or make it shallower");
    }
    if (given.classifier != nullptr) {
      classifier_ = contiguous(*given.classifier, "classifier");
      STD_TORCH_CHECK(classifier_.size() == 8, "the classifier's weights must be 8 tensors, got ",
                      classifier_.size());
    }
  }

  template <class T>
  DefenceInputs<T> inputs() const {
    DefenceInputs<T> in{};
    in.x = x.const_data_ptr<T>();
    in.n_samples = x.size(0);
    in.n_features = x.size(1);
    in.n_draws = 1;
    if (chain_ != nullptr) {
      in.n_draws = noise_.has_value() ? noise_->size(2) : chain_->n_draws;
      in.noise = noise_.has_value() ? noise_->const_data_ptr<T>() : nullptr;
      in.seed = chain_->seed;
      in.timesteps = timesteps_->const_data_ptr<int64_t>();
      in.n_steps = timesteps_->size(0);
      in.alphas_cumprod = alphas_cumprod_->const_data_ptr<double>();
      in.n_alphas = alphas_cumprod_->size(0);
      in.eta = chain_->eta;
      in.denoiser = layers<T>(denoiser_);
    }
    in.classifier = layers<T>(classifier_);
    return in;
  }

  cudaStream_t stream() const { return current_stream(device); }
  const std::optional<Tensor>& noise() const { return noise_; }
  const Tensor& like_x(const char* name, const Tensor& tensor) const {
    check_same_dtype({name, tensor}, {"x", x});
    check_same_device({name, tensor}, {"x", x});
    return tensor;
  }

  int32_t device;

 private:
  torch::stable::accelerator::DeviceGuard guard_;  // before anything is copied or allocated

 public:
  Tensor x;
  DeviceSize size;
  DeviceMemory memory;

 private:
  static Tensor contiguous(const Tensor& tensor) {
    return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
  }
  Tensors contiguous(const Tensors& tensors, const char* name) const {
    Tensors result;
    for (const Tensor& tensor : tensors) result.push_back(contiguous(like_x(name, tensor)));
    return result;
  }
  static void check_type(const char* name, const Tensor& tensor, ScalarType type) {
    STD_TORCH_CHECK(tensor.scalar_type() == type, name, " must be ", dtype_name(type), ", got ",
                    dtype_name(tensor.scalar_type()));
  }

  template <class T>
  static std::vector<LayerInput<T>> layers(const Tensors& weights) {
    std::vector<LayerInput<T>> result;
    for (std::size_t i = 0; i + 1 < weights.size(); i += 2) {
      const Tensor& weight = weights[i];
      const int64_t outputs = weight.size(0);
      const int64_t inputs = weight.dim() == 2 ? weight.size(1) : weight.size(1) * weight.size(2);
      result.push_back(
          {weight.const_data_ptr<T>(), weights[i + 1].const_data_ptr<T>(), outputs, inputs});
    }
    return result;
  }

  const Draws* chain_;
  std::optional<Tensor> timesteps_, alphas_cumprod_, noise_;
  Tensors denoiser_, classifier_;
};

std::tuple<Tensor, Tensor> forward_pass(const Given& given, bool keep_signs) {
  Prepared p(given);
  std::tuple<Tensor, Tensor> result;
  dispatch_floating(p.x.scalar_type(), [&]<class T>(Type<T>) {
    const DefenceInputs<T> in = p.inputs<T>();
    // Shapes by name: nvcc loses a list in braces that is one side of a choice.
    std::vector<int64_t> shape{in.n_samples, in.n_outputs()}, shape_of_signs{0};
    if (in.classifier.empty()) shape.insert(shape.begin() + 1, in.n_draws);
    if (keep_signs) shape_of_signs = {n_blocks(in.n_rows()), in.n_words()};
    Tensor out = torch::stable::new_empty(p.x, shape);
    Tensor signs = torch::stable::new_empty(p.x, shape_of_signs, ScalarType::Int);
    auto* words =
        keep_signs ? reinterpret_cast<uint32_t*>(signs.mutable_data_ptr<int32_t>()) : nullptr;
    launch_defence_forward(in, out.mutable_data_ptr<T>(), words, p.size, p.memory, p.stream());
    result = {out, signs};
  });
  return result;
}

struct Asked {
  const Tensor &grad, &signs;
  bool noise, weights;
};

struct Answers {
  Tensor x, noise, denoiser, classifier;
};

Answers backward_pass(const Given& given, const Asked& asked) {
  Prepared p(given);
  const Tensor grad = torch::stable::contiguous(p.like_x("grad", asked.grad)),
               signs = torch::stable::contiguous(asked.signs);
  const auto vector = [&](int64_t size) { return torch::stable::new_empty(p.x, {size}); };
  Answers answers{torch::stable::empty_like(p.x), vector(0), vector(0), vector(0)};
  if (asked.noise && p.noise().has_value()) answers.noise = torch::stable::empty_like(*p.noise());
  dispatch_floating(p.x.scalar_type(), [&]<class T>(Type<T>) {
    const DefenceInputs<T> in = p.inputs<T>();
    STD_TORCH_CHECK(signs.scalar_type() == ScalarType::Int && signs.dim() == 2 &&
                        signs.size(0) == n_blocks(in.n_rows()) && signs.size(1) == in.n_words(),
                    "signs must be those of the forward pass, int32 of shape (",
                    n_blocks(in.n_rows()), ", ", in.n_words(), "), got ", shape_of(signs));
    const auto* words = reinterpret_cast<const uint32_t*>(signs.const_data_ptr<int32_t>());
    const T* of_outputs = grad.const_data_ptr<T>();
    T* of_noise = answers.noise.numel() > 0 ? answers.noise.mutable_data_ptr<T>() : nullptr;
    launch_defence_backward(in, of_outputs, words, answers.x.mutable_data_ptr<T>(), of_noise,
                            p.size, p.memory, p.stream());
    if (!asked.weights) return;
    answers.denoiser = vector(in.count(in.denoiser));
    answers.classifier = vector(in.count(in.classifier));
    launch_defence_weights(in, of_outputs, words, answers.denoiser.mutable_data_ptr<T>(),
                           answers.classifier.mutable_data_ptr<T>(), p.size, p.memory, p.stream());
  });
  return answers;
}

std::tuple<Tensor, Tensor> purify_cuda(const Tensor& x, std::optional<Tensor> noise,
                                       const Tensor& timesteps, const Tensor& alphas_cumprod,
                                       std::vector<Tensor> weights, double eta, int64_t seed,
                                       int64_t n_draws, bool keep_signs) {
  const Draws draws{noise, timesteps, alphas_cumprod, eta, seed, n_draws};
  return forward_pass({x, &draws, &weights, nullptr}, keep_signs);
}

std::tuple<Tensor, Tensor> feature_cnn_cuda(const Tensor& x, std::vector<Tensor> weights,
                                            bool keep_signs) {
  return forward_pass({x, nullptr, nullptr, &weights}, keep_signs);
}

std::tuple<Tensor, Tensor> defended_logits_cuda(const Tensor& x, std::optional<Tensor> noise,
                                                const Tensor& timesteps,
                                                const Tensor& alphas_cumprod,
                                                std::vector<Tensor> denoiser,
                                                std::vector<Tensor> classifier, double eta,
                                                int64_t seed, int64_t n_draws, bool keep_signs) {
  const Draws draws{noise, timesteps, alphas_cumprod, eta, seed, n_draws};
  return forward_pass({x, &draws, &denoiser, &classifier}, keep_signs);
}

std::tuple<Tensor, Tensor, Tensor> purify_backward_cuda(
    const Tensor& grad, const Tensor& x, std::optional<Tensor> noise, const Tensor& timesteps,
    const Tensor& alphas_cumprod, std::vector<Tensor> weights, const Tensor& signs, double eta,
    int64_t seed, int64_t n_draws, bool noise_needs_grad, bool weights_need_grad) {
  const Draws draws{noise, timesteps, alphas_cumprod, eta, seed, n_draws};
  const Answers a = backward_pass({x, &draws, &weights, nullptr},
                                  {grad, signs, noise_needs_grad, weights_need_grad});
  return {a.x, a.noise, a.denoiser};
}

std::tuple<Tensor, Tensor> feature_cnn_backward_cuda(const Tensor& grad, const Tensor& x,
                                                     std::vector<Tensor> weights,
                                                     const Tensor& signs, bool weights_need_grad) {
  const Answers a =
      backward_pass({x, nullptr, nullptr, &weights}, {grad, signs, false, weights_need_grad});
  return {a.x, a.classifier};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> defended_logits_backward_cuda(
    const Tensor& grad, const Tensor& x, std::optional<Tensor> noise, const Tensor& timesteps,
    const Tensor& alphas_cumprod, std::vector<Tensor> denoiser, std::vector<Tensor> classifier,
    const Tensor& signs, double eta, int64_t seed, int64_t n_draws, bool noise_needs_grad,
    bool weights_need_grad) {
  const Draws draws{noise, timesteps, alphas_cumprod, eta, seed, n_draws};
  const Answers a = backward_pass({x, &draws, &denoiser, &classifier},
                                  {grad, signs, noise_needs_grad, weights_need_grad});
  return {a.x, a.noise, a.denoiser, a.classifier};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CUDA, m) {
  m.impl("purify", TORCH_BOX(&purify_cuda));
  m.impl("purify_backward", TORCH_BOX(&purify_backward_cuda));
  m.impl("feature_cnn", TORCH_BOX(&feature_cnn_cuda));
  m.impl("feature_cnn_backward", TORCH_BOX(&feature_cnn_backward_cuda));
  m.impl("defended_logits", TORCH_BOX(&defended_logits_cuda));
  m.impl("defended_logits_backward", TORCH_BOX(&defended_logits_backward_cuda));
}

}  // namespace nnmf_cuda
