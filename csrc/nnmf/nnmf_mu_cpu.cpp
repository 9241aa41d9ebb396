#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "../common/dispatch.h"
#include "../common/parallel.h"
#include "../common/scratch.h"
#include "beta_loss.h"
#include "factors.h"
#include "nnmf_divergence.h"

#define NNMF_CUDA_ISA_SOURCE "../nnmf/nnmf_mu_tiles.h"
#include "../common/foreach_isa.h"

namespace nnmf_cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> nnmf_mu_cpu(const Tensor& X, const Tensor& W, const Tensor& H,
                                               std::optional<Tensor> active, double beta_loss,
                                               int64_t n_iter, bool update_H, double l1_reg_W,
                                               double l1_reg_H, double l2_reg_W, double l2_reg_H,
                                               bool compute_divergence) {
  Shape s = check_factors(X, W, H);
  const Tensor x = rows_contiguous(X, s), w = contiguous_copy(W), h = contiguous_copy(H);
  const MuOptions options{beta_loss, n_iter, update_H, l1_reg_W, l1_reg_H, l2_reg_W, l2_reg_H};
  const ActiveProblems chosen(active, W);
  dispatch_floating(W.scalar_type(), [&]<class T>(Type<T>) {
    dispatch_data<T>(X.scalar_type(), [&]<class Data>(Type<Data>) {
      dispatch_loss(beta_loss, [&]<Loss loss>(LossType<loss>) {
        NNMF_CUDA_CHOOSE(iterate<loss, T, Data>)
        (x.const_data_ptr<Data>(), w.mutable_data_ptr<T>(), h.mutable_data_ptr<T>(), s,
         update_of_W(options, scale_of(X)), update_of_H(options, scale_of(X)), n_iter, update_H,
         chosen.data());
      });
    });
  });
  return {w, h, compute_divergence ? nnmf_divergence_cpu(x, w, h, beta_loss) : no_divergence(w)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CPU, m) {
  m.impl("nnmf_mu", TORCH_BOX(&nnmf_mu_cpu));
}

}  // namespace nnmf_cuda
