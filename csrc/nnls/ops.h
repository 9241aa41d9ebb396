// nnls, nnls_backward and project, once for both devices: what they are given is checked here and
// their results are allocated; an Implementation, constructed from a tensor of the device, computes
// them where there is anything to compute.
//
//   nnls(Tensor gram, Tensor cross, Tensor? passive=None, *, float tol=0.)
//       -> (Tensor, Tensor, Tensor)
//   nnls_backward(Tensor gram, Tensor h, Tensor grad) -> Tensor
//   project(Tensor X, Tensor H, Tensor? passive=None, *, float tol=0.) -> (Tensor, Tensor, Tensor)
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>

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

// The free variables to start from, and what is given back of all rows.
class RowTensors {
 public:
  // passive [B, n, k]; everything else is new, like `like` and of its dtype
  RowTensors(const Tensor& like, const std::optional<Tensor>& passive, double tol,
             const RowsShape& s)
      : tol_(tol),
        h_(torch::stable::new_empty(like, {s.batch, s.n, s.k})),
        free_(torch::stable::new_empty(like, {s.batch, s.n, s.k}, ScalarType::Bool)),
        pivots_(torch::stable::new_empty(like, {s.batch, s.n}, ScalarType::Long)) {
    STD_TORCH_CHECK(tol >= 0, "tol must be >= 0, got ", tol);
    if (!passive.has_value()) return;
    const Argument given{"passive", *passive};
    STD_TORCH_CHECK(passive->scalar_type() == ScalarType::Bool, "passive must be bool, got ",
                    dtype_name(passive->scalar_type()));
    check_same_device(given, {"h", h_});
    check_dim(given, 3);
    check_size(given, 0, s.batch, "batch");
    check_size(given, 1, s.n, "rows");
    check_size(given, 2, s.k, "n_components");
    start_ = torch::stable::contiguous(*passive);
  }

  // Whether there is nothing to solve; then no row has pivots.
  bool empty() {
    if (h_.numel() > 0) return false;
    torch::stable::zero_(pivots_);
    return true;
  }

  template <class T>
  T* h() {
    return h_.mutable_data_ptr<T>();
  }

  ActiveSets sets() {
    return {start_.has_value() ? start_->const_data_ptr<bool>() : nullptr, tol_,
            free_.mutable_data_ptr<bool>(), pivots_.mutable_data_ptr<int64_t>()};
  }

  std::tuple<Tensor, Tensor, Tensor> results() const { return {h_, free_, pivots_}; }

 private:
  double tol_;
  std::optional<Tensor> start_;
  Tensor h_, free_, pivots_;
};

// Implementation: solve(gram, cross, h, sets, shape).
template <class Implementation>
std::tuple<Tensor, Tensor, Tensor> nnls(const Tensor& gram, const Tensor& cross,
                                        const std::optional<Tensor>& passive, double tol) {
  const RowsShape shape = check_rows({"gram", gram}, {"cross", cross});
  const Tensor values = torch::stable::contiguous(gram), rows = torch::stable::contiguous(cross);
  RowTensors of_rows(rows, passive, tol, shape);
  Implementation device(cross);
  if (of_rows.empty()) return of_rows.results();
  dispatch_floating(values.scalar_type(), [&]<class G>(Type<G>) {
    dispatch_floating(rows.scalar_type(), [&]<class T>(Type<T>) {
      device.solve(values.const_data_ptr<G>(), rows.const_data_ptr<T>(), of_rows.h<T>(),
                   of_rows.sets(), shape);
    });
  });
  return of_rows.results();
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

// Implementation: project(FactorParams without W, scale of X, h, sets).
template <class Implementation>
std::tuple<Tensor, Tensor, Tensor> project(const Tensor& X, const Tensor& H,
                                           const std::optional<Tensor>& passive, double tol) {
  Shape s = check_project(X, H);
  const Tensor x = rows_contiguous(X, s), components = torch::stable::contiguous(H);
  RowTensors of_rows(components, passive, tol, {s.batch, s.n_samples, s.n_components});
  Implementation device(H);
  if (of_rows.empty()) return of_rows.results();
  dispatch_floating(H.scalar_type(), [&]<class T>(Type<T>) {
    dispatch_data<T>(X.scalar_type(), [&]<class Data>(Type<Data>) {
      const FactorParams<T, Data> params{x.const_data_ptr<Data>(), nullptr,
                                         components.const_data_ptr<T>(), s, nullptr};
      device.project(params, scale_of(X), of_rows.h<T>(), of_rows.sets());
    });
  });
  return of_rows.results();
}

}  // namespace nnmf_cuda
