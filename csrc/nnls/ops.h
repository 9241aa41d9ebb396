// nnls, nnls_backward and project, once for both devices: what they are given is checked here and
// their results are allocated; an Implementation, constructed from a tensor of the device, computes
// them where there is anything to compute.
//
//   nnls(Tensor gram, Tensor cross) -> Tensor
//   nnls_backward(Tensor gram, Tensor h, Tensor grad) -> Tensor
//   project(Tensor X, Tensor H) -> Tensor
#pragma once

#include <cstdint>
#include <optional>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../common/arguments.h"
#include "../nnmf/ops.h"
#include "rows.h"

namespace nnmf_cuda {

// gram [B, k, k], rows [B, n, k]
inline RowsShape check_rows(const Argument& gram, const Argument& rows) {
  check_floating(gram);
  check_floating(rows);
  check_same_device(gram, rows);
  check_dim(gram, 3);
  check_dim(rows, 3);
  check_size(gram, 0, rows.tensor.size(0), "batch");
  check_size(gram, 1, rows.tensor.size(2), "n_components");
  check_size(gram, 2, rows.tensor.size(2), "n_components");
  return {rows.tensor.size(0), rows.tensor.size(1), rows.tensor.size(2)};
}

// Implementation: check(n_components, tensors); solve(gram, cross, h, shape).
template <class Implementation>
Tensor nnls(const Tensor& gram, const Tensor& cross) {
  const RowsShape shape = check_rows({"gram", gram}, {"cross", cross});
  Implementation device(cross);
  device.check(shape.k, "gram and cross");
  const Tensor values = torch::stable::contiguous(gram), rows = torch::stable::contiguous(cross);
  const Tensor h = torch::stable::empty_like(rows);
  if (h.numel() == 0) return h;
  dispatch_floating(values.scalar_type(), [&]<class G>(Type<G>) {
    dispatch_floating(rows.scalar_type(), [&]<class T>(Type<T>) {
      device.solve(values.const_data_ptr<G>(), rows.const_data_ptr<T>(), h.mutable_data_ptr<T>(),
                   shape);
    });
  });
  return h;
}

// Implementation: solve_backward(gram, h, grad, u, shape).
template <class Implementation>
Tensor nnls_backward(const Tensor& gram, const Tensor& h, const Tensor& grad) {
  const RowsShape shape = check_rows({"gram", gram}, {"grad", grad});
  check_same_dtype({"h", h}, {"grad", grad});
  check_same_device({"h", h}, {"grad", grad});
  check_dim({"h", h}, 3);
  for (int64_t d = 0; d < 3; ++d) check_size({"h", h}, d, grad.size(d), "as grad");
  Implementation device(grad);
  device.check(shape.k, "gram and cross");
  const Tensor values = torch::stable::contiguous(gram), answers = torch::stable::contiguous(h),
               grads = torch::stable::contiguous(grad);
  const Tensor u = torch::stable::new_empty(grads, {shape.batch, shape.n, shape.k},
                                            std::make_optional(ScalarType::Double));
  if (u.numel() == 0) return u;
  dispatch_floating(values.scalar_type(), [&]<class G>(Type<G>) {
    dispatch_floating(grads.scalar_type(), [&]<class T>(Type<T>) {
      device.solve_backward(values.const_data_ptr<G>(), answers.const_data_ptr<T>(),
                            grads.const_data_ptr<T>(), u.mutable_data_ptr<double>(), shape);
    });
  });
  return u;
}

// X [n, n_features] or [B, n, n_features], H [B, k, n_features]
inline Shape check_project(const Tensor& X, const Tensor& H) {
  const Argument x{"X", X}, h{"H", H};
  check_floating(h);
  if (X.scalar_type() != ScalarType::Byte) check_same_dtype(x, h);
  check_same_device(x, h);
  check_dim(h, 3);
  const int64_t rows = X.dim() == 2 ? 0 : 1;
  if (X.dim() != 2) {
    check_dim(x, 3);
    check_size(x, 0, H.size(0), "batch of H");
  }
  check_size(x, rows + 1, H.size(2), "n_features of H");
  return {H.size(0), X.size(rows), H.size(2), H.size(1), 0, 0};
}

// Implementation: project(FactorParams without W, scale of X, h).
template <class Implementation>
Tensor project(const Tensor& X, const Tensor& H) {
  Shape s = check_project(X, H);
  Implementation device(H);
  device.check(s.n_components, "X and H");
  const Tensor x = rows_contiguous(X, s), components = torch::stable::contiguous(H);
  const Tensor h = torch::stable::new_empty(components, {s.batch, s.n_samples, s.n_components});
  if (h.numel() == 0) return h;
  dispatch_floating(H.scalar_type(), [&]<class T>(Type<T>) {
    dispatch_data<T>(X.scalar_type(), [&]<class Data>(Type<Data>) {
      const FactorParams<T, Data> params{x.const_data_ptr<Data>(), nullptr,
                                         components.const_data_ptr<T>(), s, nullptr};
      device.project(params, scale_of(X), h.mutable_data_ptr<T>());
    });
  });
  return h;
}

}  // namespace nnmf_cuda
