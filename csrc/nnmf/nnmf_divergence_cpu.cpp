#include <algorithm>
#include <cstdint>
#include <numeric>
#include <type_traits>
#include <utility>

#include <torch/csrc/stable/library.h>

#include "../common/dispatch.h"
#include "../common/parallel.h"
#include "../common/scratch.h"
#include "beta_loss.h"
#include "factors.h"
#include "nnmf_divergence.h"

#define NNMF_CUDA_ISA_SOURCE "../nnmf/nnmf_divergence_tiles.h"
#include "../common/foreach_isa.h"

namespace nnmf_cuda {

Tensor nnmf_divergence_cpu(const Tensor& X, const Tensor& W, const Tensor& H, double beta_loss) {
  Shape s = check_factors(X, W, H);
  const Tensor x = rows_contiguous(X, s), w = torch::stable::contiguous(W),
               h = torch::stable::contiguous(H);
  Tensor result = torch::stable::new_empty(W, {s.batch}, ScalarType::Double);
  dispatch_floating(W.scalar_type(), [&]<class T>(Type<T>) {
    dispatch_data<T>(X.scalar_type(), [&]<class Data>(Type<Data>) {
      dispatch_loss(beta_loss, [&]<Loss loss>(LossType<loss>) {
        NNMF_CUDA_CHOOSE(divergences<loss, T, Data>)
        (x.const_data_ptr<Data>(), w.const_data_ptr<T>(), h.const_data_ptr<T>(), s, beta_loss,
         result.mutable_data_ptr<double>());
      });
    });
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CPU, m) {
  m.impl("nnmf_divergence", TORCH_BOX(&nnmf_divergence_cpu));
}

}  // namespace nnmf_cuda
