#include <optional>
#include <tuple>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "../common/device_memory.h"
#include "../common/dispatch.h"
#include "nnmf_divergence.h"
#include "nnmf_mu_kernels.cuh"

namespace nnmf_cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> nnmf_mu_cuda(const Tensor& X, const Tensor& W, const Tensor& H,
                                                std::optional<Tensor> active, double beta_loss,
                                                int64_t n_iter, bool update_H, double l1_reg_W,
                                                double l1_reg_H, double l2_reg_W, double l2_reg_H,
                                                bool compute_divergence) {
  Shape s = check_factors(X, W, H);
  const ActiveProblems chosen(active, s.batch);
  check_components(s.n_components);
  const int32_t device = W.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const MuOptions options{beta_loss, n_iter, update_H, l1_reg_W, l1_reg_H, l2_reg_W, l2_reg_H};
  const Tensor x = rows_contiguous(X, s), w = torch::stable::contiguous(W),
               h = torch::stable::contiguous(H);
  const Tensor new_w = torch::stable::empty_like(w), new_h = torch::stable::empty_like(h);
  DeviceMemory memory(w);
  dispatch_floating(W.scalar_type(), [&]<class T>(Type<T>) {
    dispatch_data<T>(X.scalar_type(), [&]<class Data>(Type<Data>) {
      const DeviceProblem<T, Data> problem{
          x.const_data_ptr<Data>(), w.const_data_ptr<T>(), h.const_data_ptr<T>(), s, chosen.data(),
          multiprocessors(device)};
      dispatch_loss(beta_loss, [&]<Loss loss>(LossType<loss>) {
        dispatch_tiling<loss, T, Data>(s.n_components, [&]<class Tiling>(Tiling, int group) {
          const MuLaunches<Tiling> launches(problem, group, memory);
          launch_nnmf_mu(launches, options, scale_of(X),
                         {new_w.mutable_data_ptr<T>(), new_h.mutable_data_ptr<T>()},
                         current_stream(device));
        });
      });
    });
  });
  return {
      new_w, new_h,
      compute_divergence ? nnmf_divergence_cuda(x, new_w, new_h, beta_loss) : no_divergence(new_w)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CUDA, m) {
  m.impl("nnmf_mu", TORCH_BOX(&nnmf_mu_cuda));
}

}  // namespace nnmf_cuda
