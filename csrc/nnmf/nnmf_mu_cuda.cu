#include <tuple>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "../common/dispatch.h"
#include "nnmf_divergence.h"
#include "nnmf_mu_kernels.cuh"

namespace nnmf_cuda {
namespace {

Tensor new_sums(const Tensor& like, int64_t size) {
  return torch::stable::new_empty(like, {size}, ScalarType::Double);
}

std::tuple<Tensor, Tensor, Tensor> nnmf_mu_cuda(const Tensor& X, const Tensor& W, const Tensor& H,
                                                double beta_loss, int64_t n_iter, bool update_H,
                                                double l1_reg_W, double l1_reg_H, double l2_reg_W,
                                                double l2_reg_H, bool compute_divergence) {
  const Shape s = check_factors(X, W, H);
  const torch::stable::accelerator::DeviceGuard guard(W.get_device_index());
  const MuOptions options{beta_loss, n_iter, update_H, l1_reg_W, l1_reg_H, l2_reg_W, l2_reg_H};
  const Tensor x = torch::stable::contiguous(X), w = contiguous_copy(W), h = contiguous_copy(H);
  const bool sums_denominator = loss_of(beta_loss) != Loss::kKullbackLeibler;
  const Tensor numerator = new_sums(W, sums_size(s)),
               denominator = new_sums(W, sums_denominator ? sums_size(s) : 0),
               components = new_sums(W, sums_denominator ? 0 : s.batch * s.n_components);
  const Sums sums{numerator.mutable_data_ptr<double>(), denominator.mutable_data_ptr<double>(),
                  components.mutable_data_ptr<double>()};
  dispatch_floating(W.scalar_type(), [&]<class T>(Type<T>) {
    dispatch_data<T>(X.scalar_type(), [&]<class Data>(Type<Data>) {
      dispatch_loss(beta_loss, [&]<Loss loss>(LossType<loss>) {
        const DeviceBatch<T, Data> batch{x.const_data_ptr<Data>(), w.mutable_data_ptr<T>(),
                                         h.mutable_data_ptr<T>(), s, beta_loss};
        launch_nnmf_mu<loss>(batch, sums, options, current_stream(W.get_device_index()));
      });
    });
  });
  return {w, h, compute_divergence ? nnmf_divergence_cuda(x, w, h, beta_loss) : no_divergence(w)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CUDA, m) {
  m.impl("nnmf_mu", TORCH_BOX(&nnmf_mu_cuda));
}

}  // namespace nnmf_cuda
