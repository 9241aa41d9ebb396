// The CUDA kernels of purify, feature_cnn and defended_logits: forwards, then backwards.
#include <string>
#include <vector>

#include "call.h"
#include "diffusion/defence_launches.cuh"

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
std::vector<LayerInput<T>> layers_of(cuda_on_cpu::Call& call, const std::string& name, int64_t n) {
  std::vector<LayerInput<T>> layers;
  for (int64_t l = 0; l < n; ++l) {
    const std::string weight = name + "_weight" + std::to_string(l),
                      bias = name + "_bias" + std::to_string(l);
    layers.push_back({call.tensor<T>(weight.c_str()), call.tensor<T>(bias.c_str()),
                      call.size(weight.c_str(), 0), call.size(weight.c_str(), 1)});
  }
  return layers;
}

template <class T>
DefenceInputs<T> inputs_of(cuda_on_cpu::Call& call) {
  DefenceInputs<T> in{};
  in.x = call.tensor<T>("x");
  in.n_samples = call.size("x", 0);
  in.n_features = call.size("x", 1);
  in.n_draws = call.integer("n_draws");
  in.denoiser = layers_of<T>(call, "denoiser", call.integer("n_denoiser"));
  in.classifier = layers_of<T>(call, "classifier", call.integer("n_classifier"));
  if (in.denoiser.empty()) return in;
  in.noise = call.integer("has_noise") != 0 ? call.tensor<T>("noise") : nullptr;
  in.seed = *call.tensor<int64_t>("seed");
  in.timesteps = call.tensor<int64_t>("timesteps");
  in.n_steps = call.size("timesteps", 0);
  in.alphas_cumprod = call.tensor<double>("alphas_cumprod");
  in.n_alphas = call.size("alphas_cumprod", 0);
  in.eta = call.number("eta");
  return in;
}

template <class T>
void run(cuda_on_cpu::Call& call) {
  const DefenceInputs<T> in = inputs_of<T>(call);
  Memory memory{call};
  const DeviceSize size{call.integer("multiprocessors"), call.integer("shared_bytes")};
  const int64_t n_noised = in.eta > 0 ? in.n_steps : 1;
  T* out = in.classifier.empty() ? call.result<T>("out", {in.n_samples, in.n_draws, in.n_features})
                                 : call.result<T>("out", {in.n_samples, in.n_outputs()});
  auto* signs = reinterpret_cast<uint32_t*>(
      call.result<int32_t>("signs", {n_blocks(in.n_rows()), in.n_words()}));
  if (call.integer("without_signs") != 0) {
    launch_defence_forward<T>(in, out, nullptr, size, memory, nullptr);
    return;
  }
  launch_defence_forward(in, out, signs, size, memory, nullptr);
  T* of_noise =
      in.noise == nullptr
          ? nullptr
          : call.result<T>("of_noise", {n_noised, in.n_samples, in.n_draws, in.n_features});
  const T* grad = call.tensor<T>("grad");
  launch_defence_backward(in, grad, signs, call.result<T>("of_x", {in.n_samples, in.n_features}),
                          of_noise, size, memory, nullptr);
  launch_defence_weights(in, grad, signs,
                         call.result<T>("of_denoiser", {DefenceInputs<T>::count(in.denoiser)}),
                         call.result<T>("of_classifier", {DefenceInputs<T>::count(in.classifier)}),
                         size, memory, nullptr, call.integer("most_groups"));
}

}  // namespace

CUDA_ON_CPU_CALL(defence) {
#if !defined(FEW_KERNELS)
  if (call.is<float>("x")) return run<float>(call);
#endif
  run<double>(call);
}
