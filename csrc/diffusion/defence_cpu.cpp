// purify, feature_cnn, defended_logits and their gradients on the CPU: one defence on blocks of 32
// rows, of which purification alone and the network alone are cases.
//
//   purify(Tensor x, Tensor? noise, Tensor timesteps, Tensor alphas_cumprod, Tensor[] weights, *,
//     float eta=0., int seed=0, int n_draws=1, bool keep_signs=False) -> (Tensor, Tensor)
//   feature_cnn(Tensor x, Tensor[] weights, *, bool keep_signs=False) -> (Tensor, Tensor)
//   defended_logits(Tensor x, Tensor? noise, Tensor timesteps, Tensor alphas_cumprod,
//     Tensor[] denoiser, Tensor[] classifier, *, float eta=0., int seed=0, int n_draws=1,
//     bool keep_signs=False) -> (Tensor, Tensor)
//   purify_backward(Tensor grad, ..., Tensor[] weights, Tensor signs, *, float eta, int seed,
//     int n_draws, bool noise_needs_grad, bool weights_need_grad) -> (Tensor, Tensor, Tensor)
//   feature_cnn_backward(Tensor grad, Tensor x, Tensor[] weights, Tensor signs, *,
//     bool weights_need_grad) -> (Tensor, Tensor)
//   defended_logits_backward(Tensor grad, ..., Tensor[] denoiser, Tensor[] classifier,
//     Tensor signs, *, float eta, int seed, int n_draws, bool noise_needs_grad,
//     bool weights_need_grad) -> (Tensor, Tensor, Tensor, Tensor)
#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "../common/dispatch.h"
#include "../common/parallel.h"
#include "../common/scratch.h"
#include "defence_arguments.h"
#include "philox.h"

#define NNMF_CUDA_ISA_SOURCE "../diffusion/defence_blocks.h"
#include "../common/foreach_isa.h"
#include "defence_sums.h"

namespace nnmf_cuda {
namespace {

struct Draws {
  const std::optional<Tensor>& noise;
  const Tensor &timesteps, &alphas_cumprod;
  double eta;
  int64_t seed, n_draws;

  int64_t count() const { return noise.has_value() ? noise->size(2) : n_draws; }
};

// Everything that an op was given but gradients; either list of weights may be missing.
struct Inputs {
  const Tensor& x;
  const Draws* draws;
  const std::vector<Tensor>*denoiser, *classifier;

  int64_t n_draws() const { return draws == nullptr ? 1 : draws->count(); }
};

// Calls f(Defence<T>, chain arguments or null) with tensors made ready.
template <class F>
void with_defence(const Inputs& in, const F& f) {
  const Argument argument{"x", in.x};
  check_floating(argument);
  check_dim(argument, 2);
  const Tensor x = adjacent(in.x);
  dispatch_floating(x.scalar_type(), [&]<class T>(Type<T>) {
    std::optional<ChainArguments<T>> chain;
    std::optional<CnnArguments<T>> cnn;
    if (in.draws != nullptr)
      chain.emplace(argument, in.draws->noise, in.draws->timesteps, in.draws->alphas_cumprod,
                    *in.denoiser, in.draws->eta, in.draws->seed);
    if (in.classifier != nullptr) cnn.emplace(argument, *in.classifier);
    f(Defence<T>{x.const_data_ptr<T>(), x.size(0), in.n_draws(), x.size(1),
                 chain ? &chain->chain() : nullptr, cnn ? &cnn->cnn() : nullptr},
      chain ? &*chain : nullptr);
  });
}

template <class T>
void forward_rows(const Defence<T>& d, T* out, uint32_t* signs) {
  const auto block = NNMF_CUDA_CHOOSE(forward_block<T>);
  const int64_t size = NNMF_CUDA_CHOOSE(forward_memory<T>)(d, 1);
  parallel_for_each(n_blocks(d.n_rows()), [&](int64_t b) {
    const Scratch<T> memory(size);
    block(d, b, memory.data(), out, signs);
  });
}

// to[sample] = factor * the sum of its rows, [n_samples][n_draws][n].
template <class T>
void sum_draws(const T* rows, const Defence<T>& d, int64_t n, T factor, T* to) {
  for (int64_t sample = 0; sample < d.n_samples; ++sample, to += n) {
    std::fill_n(to, n, T{0});
    for (int64_t draw = 0; draw < d.n_draws; ++draw, rows += n)
      for (int64_t i = 0; i < n; ++i) to[i] += rows[i];
    for (int64_t i = 0; i < n; ++i) to[i] *= factor;
  }
}

// The result of every sample, or of every draw where there is no network; and the signs.
std::tuple<Tensor, Tensor> forward_pass(const Inputs& in, bool keep_signs) {
  std::optional<Tensor> out, signs;
  with_defence(in, [&]<class T>(const Defence<T>& d, const ChainArguments<T>*) {
    const int64_t n = d.n_outputs();
    signs = keep_signs ? torch::stable::new_empty(in.x, {n_blocks(d.n_rows()), d.n_words()},
                                                  ScalarType::Int)
                       : torch::stable::new_empty(in.x, {0}, ScalarType::Int);
    uint32_t* bits =
        keep_signs ? reinterpret_cast<uint32_t*>(signs->mutable_data_ptr<int32_t>()) : nullptr;
    if (d.cnn == nullptr) {
      out = torch::stable::new_empty(in.x, {d.n_samples, d.n_draws, n});
      forward_rows(d, out->mutable_data_ptr<T>(), bits);
    } else {
      out = torch::stable::new_empty(in.x, {d.n_samples, n});
      const Scratch<T> rows(d.n_rows() * n);
      forward_rows(d, rows.data(), bits);
      sum_draws(rows.data(), d, n, T{1} / static_cast<T>(d.n_draws), out->mutable_data_ptr<T>());
    }
  });
  return {*out, *signs};
}

struct Asked {
  const Tensor &grad, &signs;
  bool noise, weights;
};

struct Answers {
  Tensor x, noise, denoiser, classifier;
};

template <class T>
void backward_rows(const Defence<T>& d, const Gradients<T>& gradients) {
  const auto block = NNMF_CUDA_CHOOSE(backward_block<T>);
  const int64_t size = NNMF_CUDA_CHOOSE(backward_memory<T>)(d);
  parallel_for_each(n_blocks(d.n_rows()), [&](int64_t b) {
    const Scratch<T> memory(size);
    block(d, b, memory.data(), gradients);
  });
}

Answers backward_pass(const Inputs& in, const Asked& asked) {
  const Tensor grad = adjacent(asked.grad), signs = adjacent(asked.signs);
  check_same_dtype({"grad", grad}, {"x", in.x});
  const auto nothing = [&] { return torch::stable::new_empty(in.x, {0}); };
  Answers answers{torch::stable::new_empty(in.x, {in.x.size(0), in.x.size(1)}), nothing(),
                  nothing(), nothing()};
  with_defence(in, [&]<class T>(const Defence<T>& d, const ChainArguments<T>* chain) {
    const Scratch<T> of_rows(d.n_rows() * d.n_features);
    Gradients<T> gradients{grad.const_data_ptr<T>(), nullptr, of_rows.data(), nullptr};
    if (asked.noise && in.draws != nullptr && in.draws->noise.has_value()) {
      const Tensor& noise = *in.draws->noise;
      answers.noise = torch::stable::new_empty(
          noise, {noise.size(0), noise.size(1), noise.size(2), noise.size(3)});
      gradients.of_noise = answers.noise.mutable_data_ptr<T>();
    }
    if (asked.weights) {
      sum_weights(d, chain, gradients, answers.denoiser, answers.classifier);
    } else {
      STD_TORCH_CHECK(
          signs.dim() == 2 && signs.size(0) == n_blocks(d.n_rows()) && signs.size(1) == d.n_words(),
          "signs must be those of the forward pass, of shape (", n_blocks(d.n_rows()), ", ",
          d.n_words(), "), got ", shape_of(signs));
      gradients.signs = reinterpret_cast<const uint32_t*>(signs.const_data_ptr<int32_t>());
      backward_rows(d, gradients);
    }
    sum_draws(of_rows.data(), d, d.n_features, d.chain == nullptr ? T{1} : d.chain->keep,
              answers.x.mutable_data_ptr<T>());
  });
  return answers;
}

std::tuple<Tensor, Tensor> purify_cpu(const Tensor& x, std::optional<Tensor> noise,
                                      const Tensor& timesteps, const Tensor& alphas_cumprod,
                                      std::vector<Tensor> weights, double eta, int64_t seed,
                                      int64_t n_draws, bool keep_signs) {
  const Draws draws{noise, timesteps, alphas_cumprod, eta, seed, n_draws};
  return forward_pass({x, &draws, &weights, nullptr}, keep_signs);
}

std::tuple<Tensor, Tensor> feature_cnn_cpu(const Tensor& x, std::vector<Tensor> weights,
                                           bool keep_signs) {
  return forward_pass({x, nullptr, nullptr, &weights}, keep_signs);
}

std::tuple<Tensor, Tensor> defended_logits_cpu(const Tensor& x, std::optional<Tensor> noise,
                                               const Tensor& timesteps,
                                               const Tensor& alphas_cumprod,
                                               std::vector<Tensor> denoiser,
                                               std::vector<Tensor> classifier, double eta,
                                               int64_t seed, int64_t n_draws, bool keep_signs) {
  const Draws draws{noise, timesteps, alphas_cumprod, eta, seed, n_draws};
  return forward_pass({x, &draws, &denoiser, &classifier}, keep_signs);
}

std::tuple<Tensor, Tensor, Tensor> purify_backward_cpu(
    const Tensor& grad, const Tensor& x, std::optional<Tensor> noise, const Tensor& timesteps,
    const Tensor& alphas_cumprod, std::vector<Tensor> weights, const Tensor& signs, double eta,
    int64_t seed, int64_t n_draws, bool noise_needs_grad, bool weights_need_grad) {
  const Draws draws{noise, timesteps, alphas_cumprod, eta, seed, n_draws};
  const Answers a = backward_pass({x, &draws, &weights, nullptr},
                                  {grad, signs, noise_needs_grad, weights_need_grad});
  return {a.x, a.noise, a.denoiser};
}

std::tuple<Tensor, Tensor> feature_cnn_backward_cpu(const Tensor& grad, const Tensor& x,
                                                    std::vector<Tensor> weights,
                                                    const Tensor& signs, bool weights_need_grad) {
  const Answers a =
      backward_pass({x, nullptr, nullptr, &weights}, {grad, signs, false, weights_need_grad});
  return {a.x, a.classifier};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> defended_logits_backward_cpu(
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

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CPU, m) {
  m.impl("purify", TORCH_BOX(&purify_cpu));
  m.impl("purify_backward", TORCH_BOX(&purify_backward_cpu));
  m.impl("feature_cnn", TORCH_BOX(&feature_cnn_cpu));
  m.impl("feature_cnn_backward", TORCH_BOX(&feature_cnn_backward_cpu));
  m.impl("defended_logits", TORCH_BOX(&defended_logits_cpu));
  m.impl("defended_logits_backward", TORCH_BOX(&defended_logits_backward_cpu));
}

}  // namespace nnmf_cuda
