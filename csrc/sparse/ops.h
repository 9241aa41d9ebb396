// nnmf_sparse_mu, nnmf_sparse_hals and nnmf_sparse_divergence, once for both devices: what they are
// given is checked here and their results are allocated; an Implementation computes them. X comes
// as the three tensors of torch's CSR.
//
//   nnmf_sparse_mu(Tensor crow, Tensor col, Tensor values, Tensor W, Tensor H,
//                  Tensor? active=None, *, float beta_loss, int n_iter, bool update_H=True,
//                  float l1_reg_W=0., float l1_reg_H=0., float l2_reg_W=0., float l2_reg_H=0.,
//                  bool compute_divergence=False, float floor=1.1920928955078125e-07,
//                  int n_fixed=0) -> (Tensor, Tensor, Tensor)
//   nnmf_sparse_hals(Tensor crow, Tensor col, Tensor values, Tensor W, Tensor H, *, int n_iter,
//                    int n_inner=1, bool update_H=True, float l1_reg_W=0., float l1_reg_H=0.,
//                    float l2_reg_W=0., float l2_reg_H=0., bool compute_divergence=False,
//                    int n_fixed=0) -> (Tensor, Tensor, Tensor)
//   nnmf_sparse_divergence(Tensor crow, Tensor col, Tensor values, Tensor W, Tensor H, *,
//                          float beta_loss, float floor=1.1920928955078125e-07) -> Tensor
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>

#include "../nnmf/ops.h"
#include "problem.h"

namespace nnmf_cuda {

// The tensors of a call as kernels read them.
struct SparseArguments {
  SparseArguments(const Tensor& crow_,    // [n_samples + 1], int32 or int64
                  const Tensor& col_,     // [n_nonzeros], the same
                  const Tensor& values_,  // [n_nonzeros]
                  const Tensor& W_,       // [B, n_samples, n_components]
                  const Tensor& H_)       // [B, n_components, n_features]
      : shape(checked(crow_, col_, values_, W_, H_)),
        crow(adjacent(crow_)),
        col(adjacent(col_)),
        values(adjacent(values_)),
        W(adjacent(W_)),
        H(adjacent(H_)) {}

  template <class T, class Index>
  SparseParams<T, Index> params(const bool* active = nullptr) const {
    return {crow.const_data_ptr<Index>(),
            col.const_data_ptr<Index>(),
            values.const_data_ptr<T>(),
            W.const_data_ptr<T>(),
            H.const_data_ptr<T>(),
            shape,
            active};
  }

  SparseShape shape;
  Tensor crow, col, values, W, H;

 private:
  static SparseShape checked(const Tensor& crow_, const Tensor& col_, const Tensor& values_,
                             const Tensor& W_, const Tensor& H_) {
    const Argument rows{"crow", crow_}, columns{"col", col_}, x{"values", values_}, w{"W", W_},
        h{"H", H_};
    check_floating(w);
    check_same_dtype(h, w);
    check_same_dtype(x, w);
    const ScalarType index = crow_.scalar_type();
    STD_TORCH_CHECK(index == ScalarType::Int || index == ScalarType::Long,
                    "crow must be int32 or int64, got ", dtype_name(index));
    check_same_dtype(columns, rows);
    for (const Argument& a : {rows, columns, x, h}) check_same_device(a, w);
    for (const Argument& a : {rows, columns, x}) check_dim(a, 1);
    check_dim(w, 3);
    check_dim(h, 3);
    check_size(rows, 0, W_.size(1) + 1, "n_samples of W and one");
    check_size(columns, 0, values_.size(0), "that of values");
    check_size(h, 0, W_.size(0), "batch of W");
    check_size(h, 1, W_.size(2), "n_components of W");
    return {W_.size(0), W_.size(1), H_.size(2), W_.size(2), values_.size(0)};
  }
};

// Calls f(SparseParams<T, Index>) for the dtypes of the tensors.
template <class F>
void with_sparse_params(const SparseArguments& a, const bool* active, const F& f) {
  dispatch_floating(a.W.scalar_type(), [&]<class T>(Type<T>) {
    if (a.crow.scalar_type() == ScalarType::Int)
      f(a.params<T, int32_t>(active));
    else
      f(a.params<T, int64_t>(active));
  });
}

// Implementation: constructed from a tensor of the device; divergence<loss>(SparseParams,
// TermRule, to) writes a number for each problem.
template <class Implementation>
Tensor nnmf_sparse_divergence(const Tensor& crow, const Tensor& col, const Tensor& values,
                              const Tensor& W, const Tensor& H, double beta_loss, double floor) {
  const SparseArguments a(crow, col, values, W, H);
  const TermRule<double> rule = checked_rule(beta_loss, floor, W);
  Implementation device(W);
  Tensor result = torch::stable::new_empty(W, {a.shape.batch}, ScalarType::Double);
  with_sparse_params(a, nullptr, [&](const auto& problem) {
    dispatch_loss(beta_loss, [&]<Loss loss>(LossType<loss>) {
      device.template divergence<loss>(problem, rule, result.mutable_data_ptr<double>());
    });
  });
  return result;
}

Tensor nnmf_sparse_divergence_cpu(const Tensor& crow, const Tensor& col, const Tensor& values,
                                  const Tensor& W, const Tensor& H, double beta_loss, double floor);
Tensor nnmf_sparse_divergence_cuda(const Tensor& crow, const Tensor& col, const Tensor& values,
                                   const Tensor& W, const Tensor& H, double beta_loss,
                                   double floor);

// Implementation: iterate<loss>(SparseParams, update of W, update of H, n_iter, updates_H, W, H)
// writes updated factors to W and H; divergence is nnmf_sparse_divergence on its device.
template <class Implementation>
class SparseUpdates {
 public:
  SparseUpdates(const Tensor& crow, const Tensor& col, const Tensor& values, const Tensor& W,
                const Tensor& H, const std::optional<Tensor>& active, int64_t n_fixed)
      : a_(crow, col, values, W, H), active_(active, W), device_(W) {
    STD_TORCH_CHECK(n_fixed >= 0 && n_fixed <= a_.shape.n_components,
                    "n_fixed must be from 0 to n_components (", a_.shape.n_components, "), got ",
                    n_fixed);
    W_ = torch::stable::empty_like(a_.W);
    H_ = torch::stable::empty_like(a_.H);
  }

  template <Loss loss>
  void run(const Update& update_W, const Update& update_H, int64_t n_iter, bool updates_H) {
    with_sparse_params(
        a_, active_.data(), [&]<class T, class Index>(const SparseParams<T, Index>& problem) {
          device_.template iterate<loss>(problem, update_W, update_H, n_iter, updates_H,
                                         W_.mutable_data_ptr<T>(), H_.mutable_data_ptr<T>());
        });
  }

  // The updated factors, and their divergence or, where that was not asked for, [B] NaN.
  std::tuple<Tensor, Tensor, Tensor> results(bool compute_divergence,
                                             const TermRule<double>& rule) const {
    if (compute_divergence)
      return {W_, H_,
              Implementation::divergence(a_.crow, a_.col, a_.values, W_, H_, rule.beta_loss,
                                         rule.floor)};
    Tensor nothing = torch::stable::new_empty(W_, {W_.size(0)}, ScalarType::Double);
    return {W_, H_, torch::stable::fill_(nothing, std::numeric_limits<double>::quiet_NaN())};
  }

 private:
  SparseArguments a_;
  ActiveProblems active_;
  Implementation device_;
  Tensor W_, H_;
};

template <class Implementation>
std::tuple<Tensor, Tensor, Tensor> nnmf_sparse_mu(const Tensor& crow, const Tensor& col,
                                                  const Tensor& values, const Tensor& W,
                                                  const Tensor& H, std::optional<Tensor> active,
                                                  double beta_loss, int64_t n_iter, bool update_H,
                                                  double l1_reg_W, double l1_reg_H, double l2_reg_W,
                                                  double l2_reg_H, bool compute_divergence,
                                                  double floor, int64_t n_fixed) {
  SparseUpdates<Implementation> updates(crow, col, values, W, H, active, n_fixed);
  const TermRule<double> rule = checked_rule(beta_loss, floor, W);
  const Update of_W = update_of_W(rule, l1_reg_W, l2_reg_W, /*scale=*/1);
  const Update of_H = update_of_H(rule, l1_reg_H, l2_reg_H, /*scale=*/1, n_fixed);
  dispatch_loss(beta_loss, [&]<Loss loss>(LossType<loss>) {
    updates.template run<loss>(of_W, of_H, n_iter, update_H);
  });
  return updates.results(compute_divergence, rule);
}

template <class Implementation>
std::tuple<Tensor, Tensor, Tensor> nnmf_sparse_hals(
    const Tensor& crow, const Tensor& col, const Tensor& values, const Tensor& W, const Tensor& H,
    int64_t n_iter, int64_t n_inner, bool update_H, double l1_reg_W, double l1_reg_H,
    double l2_reg_W, double l2_reg_H, bool compute_divergence, int64_t n_fixed) {
  SparseUpdates<Implementation> updates(crow, col, values, W, H, std::nullopt, n_fixed);
  const Update of_W = descent_of(l1_reg_W, l2_reg_W, /*scale=*/1, n_inner, /*n_fixed=*/0);
  const Update of_H = descent_of(l1_reg_H, l2_reg_H, /*scale=*/1, n_inner, n_fixed);
  updates.template run<Loss::kFrobenius>(of_W, of_H, n_iter, update_H);
  return updates.results(compute_divergence, of_H.terms);
}

}  // namespace nnmf_cuda
