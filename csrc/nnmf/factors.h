// The arguments that nnmf_mu and nnmf_divergence have in common.
//
//   nnmf_mu(Tensor X, Tensor W, Tensor H, Tensor? active=None, *, float beta_loss, int n_iter, bool
//   update_H=True,
//           float l1_reg_W=0., float l1_reg_H=0., float l2_reg_W=0., float l2_reg_H=0.,
//           bool compute_divergence=False) -> (Tensor, Tensor, Tensor)
//   nnmf_divergence(Tensor X, Tensor W, Tensor H, *, float beta_loss) -> Tensor
#pragma once

#include <cstdint>
#include <optional>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../common/checks.h"
#include "problem.h"

namespace nnmf_cuda {

inline Shape check_factors(
    const Tensor& X,    // [n_samples, n_features] or [B, n_samples, n_features]
    const Tensor& W,    // [B, n_samples, n_components]
    const Tensor& H) {  // [B, n_components, n_features]
  const Argument x{"X", X}, w{"W", W}, h{"H", H};
  check_floating(w);
  check_same_dtype(h, w);
  if (X.scalar_type() != ScalarType::Byte) check_same_dtype(x, w);
  check_same_device(x, w);
  check_same_device(h, w);
  check_dim(w, 3);
  check_dim(h, 3);
  const bool shared = X.dim() == 2;
  if (!shared) check_dim(x, 3);
  const Shape shape{W.size(0), W.size(1), H.size(2), W.size(2), shared ? 0 : W.size(1) * H.size(2),
                    H.size(2)};
  check_size(h, 0, shape.batch, "batch of W");
  check_size(h, 1, shape.n_components, "n_components of W");
  if (!shared) check_size(x, 0, shape.batch, "batch of W");
  check_size(x, shared ? 0 : 1, shape.n_samples, "n_samples of W");
  check_size(x, shared ? 1 : 2, shape.n_features, "n_features of H");
  return shape;
}

// Which problems of a batch are to be updated, as contiguous memory.
class ActiveProblems {
 public:
  ActiveProblems(const std::optional<Tensor>& active, const Tensor& W) {
    if (!active.has_value()) return;
    const Argument argument{"active", *active};
    STD_TORCH_CHECK(active->scalar_type() == ScalarType::Bool, "active must be bool, got ",
                    dtype_name(active->scalar_type()));
    check_dim(argument, 1);
    check_size(argument, 0, W.size(0), "batch of W");
    check_same_device(argument, {"W", W});
    tensor_ = torch::stable::contiguous(*active);
  }

  const bool* data() const {
    return tensor_.has_value() ? tensor_->const_data_ptr<bool>() : nullptr;
  }

 private:
  std::optional<Tensor> tensor_;
};

inline double scale_of(const Tensor& X) {
  return X.scalar_type() == ScalarType::Byte ? 1.0 / 255 : 1.0;
}

// X as the kernels read it: rows may lie anywhere, the entries of a row side by side. Only where
// they do not is X copied.
inline Tensor rows_contiguous(const Tensor& X, Shape& shape) {
  const bool adjacent = X.size(X.dim() - 1) <= 1 || X.strides()[X.dim() - 1] == 1;
  const Tensor x = adjacent ? X : torch::stable::contiguous(X);
  shape.x_row_stride = x.strides()[x.dim() - 2];
  shape.x_stride = x.dim() == 2 ? 0 : x.strides()[0];
  return x;
}

// A contiguous tensor with the same values that shares no memory with the argument.
inline Tensor contiguous_copy(const Tensor& tensor) {
  Tensor copy = torch::stable::contiguous(tensor);
  return copy.data_ptr() == tensor.data_ptr() ? torch::stable::clone(copy) : copy;
}

}  // namespace nnmf_cuda
