// nnls, nnls_backward, prepare_components and project, once for both devices: what they are given
// is checked here and their results are allocated; an Implementation, constructed from a tensor of
// the device, computes them where there is anything to compute.
//
//   nnls(Tensor gram, Tensor cross, Tensor? passive=None, *, float tol=0.)
//       -> (Tensor, Tensor, Tensor)
//   nnls_backward(Tensor gram, Tensor h, Tensor grad) -> Tensor
//   prepare_components(Tensor H) -> (Tensor, Tensor)
//   project(Tensor X, Tensor H, Tensor? passive=None, Tensor? packed=None, Tensor? grams=None, *,
//           float tol=0.) -> (Tensor, Tensor, Tensor)
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

// Components of a lane's or a team's room: H is packed with as many, zeros behind the last one.
inline int64_t packed_width(int64_t k) {
  int64_t width = 8;
  while (width < k) width *= 2;
  return width;
}

// What project needs of H alone, opaque to its user. Implementation: packed_rows(shape), how many
// rows of H it packs (all features, or none); prepare(FactorParams of H alone, packed, grams).
template <class Implementation>
std::tuple<Tensor, Tensor> prepare_components(const Tensor& H) {
  const Argument h{"H", H};
  check_floating(h);
  check_dim(h, 3);
  const Shape s{H.size(0), 0, H.size(2), H.size(1), 0, 0};
  const Tensor components = torch::stable::contiguous(H);
  Implementation device(H);
  Tensor packed = torch::stable::new_empty(
      H, {s.batch, Implementation::packed_rows(s), packed_width(s.n_components)});
  Tensor grams = torch::stable::new_empty(H, {s.batch, doubles_of_prepared(s.n_components)},
                                          ScalarType::Double);
  torch::stable::zero_(grams);  // not all of the room is used
  if (s.batch > 0 && s.n_components > 0)
    dispatch_floating(H.scalar_type(), [&]<class T>(Type<T>) {
      const FactorParams<T, T> params{nullptr, nullptr, components.const_data_ptr<T>(), s, nullptr};
      device.prepare(params, packed.mutable_data_ptr<T>(), grams.mutable_data_ptr<double>());
    });
  return {packed, grams};
}

// What prepare_components has given, or nothing.
class PreparedTensors {
 public:
  PreparedTensors(const std::optional<Tensor>& packed, const std::optional<Tensor>& grams,
                  const Tensor& H, const Shape& s, int64_t packed_rows) {
    STD_TORCH_CHECK(packed.has_value() == grams.has_value(),
                    "packed and grams must be given together, as prepare_components gives them");
    if (!grams.has_value()) return;
    const Argument h{"H", H}, p{"packed", *packed}, g{"grams", *grams};
    check_same_dtype(p, h);
    STD_TORCH_CHECK(grams->scalar_type() == ScalarType::Double, "grams must be float64, got ",
                    dtype_name(grams->scalar_type()));
    for (const Argument& a : {p, g}) check_same_device(a, h);
    check_dim(p, 3);
    check_dim(g, 2);
    for (const Argument& a : {p, g}) check_size(a, 0, s.batch, "batch of H");
    check_size(p, 1, packed_rows, "as prepare_components gives them");
    check_size(p, 2, packed_width(s.n_components), "n_components of H, padded");
    check_size(g, 1, doubles_of_prepared(s.n_components), "as prepare_components gives them");
    packed_ = torch::stable::contiguous(*packed);
    grams_ = torch::stable::contiguous(*grams);
  }

  template <class T>
  PreparedComponents<T> get() const {
    if (!grams_.has_value()) return {nullptr, nullptr};
    return {packed_->numel() == 0 ? nullptr : packed_->const_data_ptr<T>(),
            grams_->const_data_ptr<double>()};
  }

 private:
  std::optional<Tensor> packed_, grams_;
};

// Implementation: packed_rows as above; project(FactorParams without W, scale of X, h, sets,
// PreparedComponents).
template <class Implementation>
std::tuple<Tensor, Tensor, Tensor> project(const Tensor& X, const Tensor& H,
                                           const std::optional<Tensor>& passive,
                                           const std::optional<Tensor>& packed,
                                           const std::optional<Tensor>& grams, double tol) {
  Shape s = check_project(X, H);
  const PreparedTensors prepared(packed, grams, H, s, Implementation::packed_rows(s));
  const Tensor x = rows_contiguous(X, s), components = torch::stable::contiguous(H);
  RowTensors of_rows(components, passive, tol, {s.batch, s.n_samples, s.n_components});
  Implementation device(H);
  if (of_rows.empty()) return of_rows.results();
  dispatch_floating(H.scalar_type(), [&]<class T>(Type<T>) {
    dispatch_data<T>(X.scalar_type(), [&]<class Data>(Type<Data>) {
      const FactorParams<T, Data> params{x.const_data_ptr<Data>(), nullptr,
                                         components.const_data_ptr<T>(), s, nullptr};
      device.project(params, scale_of(X), of_rows.h<T>(), of_rows.sets(), prepared.get<T>());
    });
  });
  return of_rows.results();
}

}  // namespace nnmf_cuda
