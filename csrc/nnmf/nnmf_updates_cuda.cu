#include <optional>
#include <tuple>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "../common/device_memory.h"
#include "../common/dispatch.h"
#include "iterations.cuh"
#include "nnmf_divergence.h"

namespace nnmf_cuda {
namespace {

struct Factors {
  Tensor W, H;
};

// Calls f(Iterations, W, H) with iterations of `loss` for these tensors, and where they go.
template <Loss loss, class F>
Factors with_iterations(const Tensor& X, const Tensor& W, const Tensor& H, const bool* active,
                        const F& f) {
  Shape s = check_factors(X, W, H);
  check_components(s.n_components, "X, W and H");
  const int32_t device = W.get_device_index();
  const Tensor x = rows_contiguous(X, s), w = torch::stable::contiguous(W),
               h = torch::stable::contiguous(H);
  const Factors result{torch::stable::empty_like(w), torch::stable::empty_like(h)};
  DeviceMemory memory(w);
  dispatch_floating(W.scalar_type(), [&]<class T>(Type<T>) {
    dispatch_data<T>(X.scalar_type(), [&]<class Data>(Type<Data>) {
      const DeviceProblem<T, Data> problem{
          x.const_data_ptr<Data>(), w.const_data_ptr<T>(), h.const_data_ptr<T>(), s, active,
          device_size(device)};
      dispatch_tiling<loss, T, Data>(s.n_components, [&]<class Tiling>(Tiling, int group) {
        f(Iterations<Tiling>(problem, group, memory), result.W.mutable_data_ptr<T>(),
          result.H.mutable_data_ptr<T>(), current_stream(device));
      });
    });
  });
  return result;
}

std::tuple<Tensor, Tensor, Tensor> with_divergence(const Tensor& X, const Factors& factors,
                                                   double beta_loss, bool compute_divergence) {
  return {factors.W, factors.H,
          compute_divergence ? nnmf_divergence_cuda(X, factors.W, factors.H, beta_loss)
                             : no_divergence(factors.W)};
}

std::tuple<Tensor, Tensor, Tensor> nnmf_mu_cuda(const Tensor& X, const Tensor& W, const Tensor& H,
                                                std::optional<Tensor> active, double beta_loss,
                                                int64_t n_iter, bool update_H, double l1_reg_W,
                                                double l1_reg_H, double l2_reg_W, double l2_reg_H,
                                                bool compute_divergence) {
  const torch::stable::accelerator::DeviceGuard guard(W.get_device_index());
  const ActiveProblems chosen(active, W);
  const MuOptions options{beta_loss, n_iter, update_H, l1_reg_W, l1_reg_H, l2_reg_W, l2_reg_H};
  const Update rule_W = update_of_W(options, scale_of(X)),
               rule_H = update_of_H(options, scale_of(X));
  Factors factors;
  dispatch_loss(beta_loss, [&]<Loss loss>(LossType<loss>) {
    factors = with_iterations<loss>(
        X, W, H, chosen.data(), [&](const auto& iterations, auto* w, auto* h, cudaStream_t stream) {
          iterations.run(rule_W, rule_H, n_iter, update_H, w, h, stream);
        });
  });
  return with_divergence(X, factors, beta_loss, compute_divergence);
}

std::tuple<Tensor, Tensor, Tensor> nnmf_hals_cuda(const Tensor& X, const Tensor& W, const Tensor& H,
                                                  int64_t n_iter, int64_t n_inner, bool update_H,
                                                  double l1_reg_W, double l1_reg_H, double l2_reg_W,
                                                  double l2_reg_H, bool compute_divergence) {
  const torch::stable::accelerator::DeviceGuard guard(W.get_device_index());
  const Update rule_W = descent_of(l1_reg_W, l2_reg_W, scale_of(X), n_inner),
               rule_H = descent_of(l1_reg_H, l2_reg_H, scale_of(X), n_inner);
  const Factors factors = with_iterations<Loss::kFrobenius>(
      X, W, H, nullptr, [&](const auto& iterations, auto* w, auto* h, cudaStream_t stream) {
        iterations.run(rule_W, rule_H, n_iter, update_H, w, h, stream);
      });
  return with_divergence(X, factors, 2, compute_divergence);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CUDA, m) {
  m.impl("nnmf_mu", TORCH_BOX(&nnmf_mu_cuda));
  m.impl("nnmf_hals", TORCH_BOX(&nnmf_hals_cuda));
}

}  // namespace nnmf_cuda
