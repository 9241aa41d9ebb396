#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "../common/dispatch.h"
#include "../nnmf/beta_loss.h"
#include "../nnmf/factors.h"
#include "arguments.h"
#include "nnls.h"

namespace nnmf_cuda {
namespace {

constexpr int64_t kProjectRows = 64;  // rows of X that one task projects
static_assert(kProjectRows <= kNnlsRows);

}  // namespace
}  // namespace nnmf_cuda

#define NNMF_CUDA_ISA_SOURCE "../nnls/project_tiles.h"
#include "../common/foreach_isa.h"

namespace nnmf_cuda {
namespace {

std::vector<PreparedGram> grams_of(const Tensor& H, const Shape& s) {
  const Tensor wide = torch::stable::to(H, std::make_optional(ScalarType::Double));
  std::vector<double> gram(static_cast<std::size_t>(s.batch * s.n_components * s.n_components));
  NNMF_CUDA_CHOOSE(gram_matrices)(wide.const_data_ptr<double>(), s, gram.data());
  return prepare_grams(gram.data(), s.batch, s.n_components);
}

Tensor project_cpu(const Tensor& X, const Tensor& H) {
  Shape s = check_project(X, H);
  const Tensor x = rows_contiguous(X, s), components = torch::stable::contiguous(H);
  const Tensor out = torch::stable::new_empty(components, {s.batch, s.n_samples, s.n_components});
  if (s.batch * s.n_samples * s.n_components == 0) return out;
  const std::vector<PreparedGram> grams = grams_of(components, s);
  dispatch_floating(H.scalar_type(), [&]<class T>(Type<T>) {
    dispatch_data<T>(X.scalar_type(), [&]<class Data>(Type<Data>) {
      NNMF_CUDA_CHOOSE(project_rows<T, Data>)
      (x.const_data_ptr<Data>(), components.const_data_ptr<T>(), s, scale_of(X), grams.data(),
       out.mutable_data_ptr<T>());
    });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CPU, m) {
  m.impl("project", TORCH_BOX(&project_cpu));
}

}  // namespace nnmf_cuda
