// nnmf_mu, nnmf_hals and nnmf_divergence, once for both devices: what they are given is checked
// here and their results are allocated; an Implementation computes them.
//
//   nnmf_mu(Tensor X, Tensor W, Tensor H, Tensor? active=None, *, float beta_loss, int n_iter,
//           bool update_H=True, float l1_reg_W=0., float l1_reg_H=0., float l2_reg_W=0.,
//           float l2_reg_H=0., bool compute_divergence=False,
//           float floor=1.1920928955078125e-07, int n_fixed=0) -> (Tensor, Tensor, Tensor)
//   nnmf_hals(Tensor X, Tensor W, Tensor H, *, int n_iter, int n_inner=1, bool update_H=True,
//             float l1_reg_W=0., float l1_reg_H=0., float l2_reg_W=0., float l2_reg_H=0.,
//             bool compute_divergence=False, int n_fixed=0) -> (Tensor, Tensor, Tensor)
//   nnmf_divergence(Tensor X, Tensor W, Tensor H, *, float beta_loss,
//                   float floor=1.1920928955078125e-07) -> Tensor
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../common/arguments.h"
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

// X as the kernels read it: rows may lie anywhere, the entries of a row side by side. Only where
// they do not is X copied.
inline Tensor rows_contiguous(const Tensor& X, Shape& shape) {
  const bool side_by_side = X.size(X.dim() - 1) <= 1 || X.strides()[X.dim() - 1] == 1;
  const Tensor x = side_by_side ? X : torch::stable::contiguous(X);
  shape.x_row_stride = x.strides()[x.dim() - 2];
  shape.x_stride = x.dim() == 2 ? 0 : x.strides()[0];
  return x;
}

// What numbers of X are to be multiplied with: pixels are x / 255.
inline double scale_of(const Tensor& X) {
  return X.scalar_type() == ScalarType::Byte ? 1.0 / 255 : 1.0;
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

// The tensors of a call as kernels read them.
struct FactorArguments {
  FactorArguments(const Tensor& X_, const Tensor& W_, const Tensor& H_)
      : shape(check_factors(X_, W_, H_)),
        X(rows_contiguous(X_, shape)),
        W(torch::stable::contiguous(W_)),
        H(torch::stable::contiguous(H_)) {}

  template <class T, class Data>
  FactorParams<T, Data> params(const bool* active = nullptr) const {
    return {X.const_data_ptr<Data>(), W.const_data_ptr<T>(), H.const_data_ptr<T>(), shape, active};
  }

  Shape shape;
  Tensor X, W, H;
};

// Calls f(FactorParams<T, Data>) for the dtypes of the tensors.
template <class F>
void with_params(const FactorArguments& a, const bool* active, const F& f) {
  dispatch_floating(a.W.scalar_type(), [&]<class T>(Type<T>) {
    dispatch_data<T>(a.X.scalar_type(),
                     [&]<class Data>(Type<Data>) { f(a.params<T, Data>(active)); });
  });
}

// The rule behind beta_loss and floor, for factors like W. Denormals are zeros to the kernels.
inline TermRule<double> checked_rule(double beta_loss, double floor, const Tensor& W) {
  const double smallest = W.scalar_type() == ScalarType::Float
                              ? double{std::numeric_limits<float>::min()}
                              : std::numeric_limits<double>::min();
  STD_TORCH_CHECK(floor >= smallest && floor <= std::numeric_limits<float>::max(),
                  "floor must be a number from ", smallest, " on, got ", floor);
  return {beta_loss, floor};
}

// Implementation: constructed from a tensor of the device; divergence<loss>(FactorParams,
// TermRule, to) writes a number for each problem.
template <class Implementation>
Tensor nnmf_divergence(const Tensor& X, const Tensor& W, const Tensor& H, double beta_loss,
                       double floor) {
  const FactorArguments a(X, W, H);
  const TermRule<double> rule = checked_rule(beta_loss, floor, W);
  Implementation device(W);
  Tensor result = torch::stable::new_empty(W, {a.shape.batch}, ScalarType::Double);
  with_params(a, nullptr, [&](const auto& problem) {
    dispatch_loss(beta_loss, [&]<Loss loss>(LossType<loss>) {
      device.template divergence<loss>(problem, rule, result.mutable_data_ptr<double>());
    });
  });
  return result;
}

Tensor nnmf_divergence_cpu(const Tensor& X, const Tensor& W, const Tensor& H, double beta_loss,
                           double floor);
Tensor nnmf_divergence_cuda(const Tensor& X, const Tensor& W, const Tensor& H, double beta_loss,
                            double floor);

// Implementation: iterate<loss>(FactorParams, update of W, update of H, n_iter, updates_H, W, H)
// writes updated factors to W and H; divergence is nnmf_divergence on its device.
template <class Implementation>
class FactorUpdates {
 public:
  FactorUpdates(const Tensor& X, const Tensor& W, const Tensor& H,
                const std::optional<Tensor>& active)
      : a_(X, W, H), active_(active, W), device_(W) {
    W_ = torch::stable::empty_like(a_.W);
    H_ = torch::stable::empty_like(a_.H);
  }

  template <Loss loss>
  void run(const Update& update_W, const Update& update_H, int64_t n_iter, bool updates_H) {
    with_params(a_, active_.data(), [&]<class T, class Data>(const FactorParams<T, Data>& problem) {
      device_.template iterate<loss>(problem, update_W, update_H, n_iter, updates_H,
                                     W_.mutable_data_ptr<T>(), H_.mutable_data_ptr<T>());
    });
  }

  // The updated factors, and their divergence or, where that was not asked for, [B] NaN.
  std::tuple<Tensor, Tensor, Tensor> results(bool compute_divergence,
                                             const TermRule<double>& rule) const {
    if (compute_divergence)
      return {W_, H_, Implementation::divergence(a_.X, W_, H_, rule.beta_loss, rule.floor)};
    Tensor nothing = torch::stable::new_empty(W_, {W_.size(0)}, ScalarType::Double);
    return {W_, H_, torch::stable::fill_(nothing, std::numeric_limits<double>::quiet_NaN())};
  }

  double scale() const { return scale_of(a_.X); }

  // How many components of H stay as they are, the first ones.
  int64_t checked_fixed(int64_t n_fixed) const {
    STD_TORCH_CHECK(n_fixed >= 0 && n_fixed <= a_.shape.n_components,
                    "n_fixed must be from 0 to n_components (", a_.shape.n_components, "), got ",
                    n_fixed);
    return n_fixed;
  }

 private:
  FactorArguments a_;
  ActiveProblems active_;
  Implementation device_;
  Tensor W_, H_;
};

template <class Implementation>
std::tuple<Tensor, Tensor, Tensor> nnmf_mu(const Tensor& X, const Tensor& W, const Tensor& H,
                                           std::optional<Tensor> active, double beta_loss,
                                           int64_t n_iter, bool update_H, double l1_reg_W,
                                           double l1_reg_H, double l2_reg_W, double l2_reg_H,
                                           bool compute_divergence, double floor, int64_t n_fixed) {
  FactorUpdates<Implementation> updates(X, W, H, active);
  const TermRule<double> rule = checked_rule(beta_loss, floor, W);
  const Update of_W = update_of_W(rule, l1_reg_W, l2_reg_W, updates.scale());
  const Update of_H =
      update_of_H(rule, l1_reg_H, l2_reg_H, updates.scale(), updates.checked_fixed(n_fixed));
  dispatch_loss(beta_loss, [&]<Loss loss>(LossType<loss>) {
    updates.template run<loss>(of_W, of_H, n_iter, update_H);
  });
  return updates.results(compute_divergence, rule);
}

template <class Implementation>
std::tuple<Tensor, Tensor, Tensor> nnmf_hals(const Tensor& X, const Tensor& W, const Tensor& H,
                                             int64_t n_iter, int64_t n_inner, bool update_H,
                                             double l1_reg_W, double l1_reg_H, double l2_reg_W,
                                             double l2_reg_H, bool compute_divergence,
                                             int64_t n_fixed) {
  FactorUpdates<Implementation> updates(X, W, H, std::nullopt);
  const Update of_W = descent_of(l1_reg_W, l2_reg_W, updates.scale(), n_inner, /*n_fixed=*/0);
  const Update of_H =
      descent_of(l1_reg_H, l2_reg_H, updates.scale(), n_inner, updates.checked_fixed(n_fixed));
  updates.template run<Loss::kFrobenius>(of_W, of_H, n_iter, update_H);
  return updates.results(compute_divergence, of_H.terms);
}

}  // namespace nnmf_cuda
