// The CUDA kernels of purify, feature_cnn and defended_logits: forwards, then backwards.
#include <string>
#include <vector>

#include "call.h"
#include "diffusion/cuda/launches.cuh"

namespace {

using namespace nnmf_cuda;

struct Memory {
  template <class T>
  T* get(int64_t size) {
    return call.scratch<T>(size);
  }
  cuda_on_cpu::Call& call;
};

template <class T>
std::vector<LayerParams<T>> layers_of(cuda_on_cpu::Call& call, const std::string& name, int64_t n) {
  std::vector<LayerParams<T>> layers;
  for (int64_t l = 0; l < n; ++l) {
    const std::string weight = name + "_weight" + std::to_string(l),
                      bias = name + "_bias" + std::to_string(l);
    layers.push_back({call.tensor<T>(weight.c_str()), call.tensor<T>(bias.c_str()),
                      call.size(weight.c_str(), 0), call.size(weight.c_str(), 1)});
  }
  return layers;
}

template <class T>
DefenceParams<T> params_of(cuda_on_cpu::Call& call) {
  DefenceParams<T> p{};
  p.x = call.tensor<T>("x");
  p.n_samples = call.size("x", 0);
  p.n_features = call.size("x", 1);
  p.n_draws = call.integer("n_draws");
  p.denoiser = layers_of<T>(call, "denoiser", call.integer("n_denoiser"));
  p.classifier = layers_of<T>(call, "classifier", call.integer("n_classifier"));
  if (p.denoiser.empty()) return p;
  p.noise = call.integer("has_noise") != 0 ? call.tensor<T>("noise") : nullptr;
  p.seed = *call.tensor<int64_t>("seed");
  p.timesteps = call.tensor<int64_t>("timesteps");
  p.n_steps = call.size("timesteps", 0);
  p.alphas_cumprod = call.tensor<double>("alphas_cumprod");
  p.n_alphas = call.size("alphas_cumprod", 0);
  p.eta = call.number("eta");
  return p;
}

template <class T>
void run(cuda_on_cpu::Call& call) {
  const DefenceParams<T> p = params_of<T>(call);
  Memory memory{call};
  const DeviceSize size{call.integer("multiprocessors"), call.integer("shared_bytes")};
  T* out = p.classifier.empty() ? call.result<T>("out", {p.n_samples, p.n_draws, p.n_features})
                                : call.result<T>("out", {p.n_samples, p.n_outputs()});
  auto* signs = reinterpret_cast<uint32_t*>(
      call.result<int32_t>("signs", {n_blocks(p.n_rows()), p.n_words()}));
  if (call.integer("without_signs") != 0) {
    launch_defence_forward<T>(p, out, nullptr, nullptr, size, memory, nullptr);
    return;
  }
  T* const prepared =
      call.integer("prepares") != 0 ? memory.get<T>(backward_preparation_size(p)) : nullptr;
  launch_defence_forward(p, out, signs, prepared, size, memory, nullptr);
  T* of_noise =
      p.noise == nullptr
          ? nullptr
          : call.result<T>("of_noise", {p.n_noised(), p.n_samples, p.n_draws, p.n_features});
  const T* grad = call.tensor<T>("grad");
  launch_defence_backward<T>(p, grad, signs, prepared,
                             call.result<T>("of_x", {p.n_samples, p.n_features}), of_noise, size,
                             memory, nullptr);
  launch_defence_weights(p, grad, signs,
                         call.result<T>("of_denoiser", {DefenceParams<T>::count(p.denoiser)}),
                         call.result<T>("of_classifier", {DefenceParams<T>::count(p.classifier)}),
                         size, memory, nullptr, call.integer("most_groups"));
}

}  // namespace

CUDA_ON_CPU_CALL(defence) {
#if !defined(FEW_KERNELS)
  if (call.is<float>("x")) return run<float>(call);
#endif
  run<double>(call);
}

CUDA_ON_CPU_CALL(kept_rows) {
  const auto rows = [&]<class T>(T) {
    const DefenceParams<T> p = params_of<T>(call);
    return KeptShape<T>(p, backward_preparation_size(p)).rows();
  };
  *call.result<int64_t>("rows", {1}) = call.is<float>("x") ? rows(float{}) : rows(double{});
}

CUDA_ON_CPU_CALL(rows_of_blocks) {
  const int64_t n = call.size("n_rows", 0);
  const int64_t *n_rows = call.tensor<int64_t>("n_rows"),
                *multiprocessors = call.tensor<int64_t>("multiprocessors");
  int64_t* rows = call.result<int64_t>("rows", {n});
  for (int64_t i = 0; i < n; ++i)
    rows[i] = has_half_blocks(n_rows[i], {multiprocessors[i], 0}) ? kHalfRows : kBlockRows;
}
