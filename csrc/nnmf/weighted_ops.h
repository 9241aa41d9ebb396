// nnmf_weighted_mu, nnmf_weighted_hals and nnmf_weighted_divergence, once for both devices: like
// ops.h, for X whose entries have weights or a mask.
//
//   nnmf_weighted_mu(Tensor X, Tensor W, Tensor H, Tensor weights, Tensor? active=None, *,
//                    float beta_loss, int n_iter, bool update_H=True, float l1_reg_W=0.,
//                    float l1_reg_H=0., float l2_reg_W=0., float l2_reg_H=0.,
//                    bool compute_divergence=False, float floor=1.1920928955078125e-07,
//                    int n_fixed=0) -> (Tensor, Tensor, Tensor)
//   nnmf_weighted_hals(Tensor X, Tensor W, Tensor H, Tensor weights, *, int n_iter, int n_inner=1,
//                      bool update_H=True, float l1_reg_W=0., float l1_reg_H=0.,
//                      float l2_reg_W=0., float l2_reg_H=0., bool compute_divergence=False,
//                      int n_fixed=0) -> (Tensor, Tensor, Tensor)
//   nnmf_weighted_divergence(Tensor X, Tensor W, Tensor H, Tensor weights, *, float beta_loss,
//                            float floor=1.1920928955078125e-07) -> Tensor
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>

#include "ops.h"
#include "weights.h"

namespace nnmf_cuda {

// Weights as contiguous memory: [n_samples, n_features] or [B, n_samples, n_features] numbers, or
// bytes of bits, ceil(n_features / 8) in place of n_features.
class WeightArguments {
 public:
  WeightArguments(const Tensor& weights, const Tensor& W, const Shape& shape)
      : is_bits_(weights.scalar_type() == ScalarType::Byte),
        width_(is_bits_ ? (shape.n_features + 7) / 8 : shape.n_features),
        stride_(weights.dim() == 2 ? 0 : shape.n_samples * width_),
        tensor_(adjacent(weights)) {
    const Argument argument{"weights", weights}, as{"W", W};
    if (!is_bits_) check_same_dtype(argument, as);
    check_same_device(argument, as);
    const bool shared = weights.dim() == 2;
    if (!shared) {
      check_dim(argument, 3);
      check_size(argument, 0, shape.batch, "batch of W");
    }
    check_size(argument, shared ? 0 : 1, shape.n_samples, "n_samples of W");
    check_size(argument, shared ? 1 : 2, width_,
               is_bits_ ? "n_features of H in bytes of bits" : "n_features of H");
  }

  template <class T>
  Weights<T> get() const {
    if (is_bits_) return {tensor_.const_data_ptr<uint8_t>(), nullptr, width_, stride_};
    return {nullptr, tensor_.const_data_ptr<T>(), width_, stride_};
  }

 private:
  bool is_bits_;
  int64_t width_, stride_;
  Tensor tensor_;
};

// Implementation: as for nnmf_divergence, with Weights after the FactorParams.
template <class Implementation>
Tensor nnmf_weighted_divergence(const Tensor& X, const Tensor& W, const Tensor& H,
                                const Tensor& weights, double beta_loss, double floor) {
  const FactorArguments a(X, W, H);
  const WeightArguments w(weights, W, a.shape);
  const TermRule<double> rule = checked_rule(beta_loss, floor, W);
  Implementation device(W);
  Tensor result = torch::stable::new_empty(W, {a.shape.batch}, ScalarType::Double);
  with_params(a, nullptr, [&]<class T, class Data>(const FactorParams<T, Data>& problem) {
    dispatch_loss(beta_loss, [&]<Loss loss>(LossType<loss>) {
      device.template divergence<loss>(problem, w.get<T>(), rule,
                                       result.mutable_data_ptr<double>());
    });
  });
  return result;
}

Tensor nnmf_weighted_divergence_cpu(const Tensor& X, const Tensor& W, const Tensor& H,
                                    const Tensor& weights, double beta_loss, double floor);
Tensor nnmf_weighted_divergence_cuda(const Tensor& X, const Tensor& W, const Tensor& H,
                                     const Tensor& weights, double beta_loss, double floor);

// Implementation: as for FactorUpdates, with Weights after the FactorParams.
template <class Implementation>
class WeightedUpdates {
 public:
  WeightedUpdates(const Tensor& X, const Tensor& W, const Tensor& H, const Tensor& weights,
                  const std::optional<Tensor>& active)
      : a_(X, W, H),
        given_(weights),
        weights_(weights, W, a_.shape),
        active_(active, W),
        device_(W) {
    W_ = torch::stable::empty_like(a_.W);
    H_ = torch::stable::empty_like(a_.H);
  }

  template <Loss loss>
  void run(const Update& update_W, const Update& update_H, int64_t n_iter, bool updates_H) {
    with_params(a_, active_.data(), [&]<class T, class Data>(const FactorParams<T, Data>& problem) {
      device_.template iterate<loss>(problem, weights_.get<T>(), update_W, update_H, n_iter,
                                     updates_H, W_.mutable_data_ptr<T>(), H_.mutable_data_ptr<T>());
    });
  }

  // The updated factors, and their divergence or, where that was not asked for, [B] NaN.
  std::tuple<Tensor, Tensor, Tensor> results(bool compute_divergence,
                                             const TermRule<double>& rule) const {
    if (compute_divergence)
      return {W_, H_, Implementation::divergence(a_.X, W_, H_, given_, rule.beta_loss, rule.floor)};
    Tensor nothing = torch::stable::new_empty(W_, {W_.size(0)}, ScalarType::Double);
    return {W_, H_, torch::stable::fill_(nothing, std::numeric_limits<double>::quiet_NaN())};
  }

  double scale() const { return scale_of(a_.X); }

  int64_t checked_fixed(int64_t n_fixed) const {
    STD_TORCH_CHECK(n_fixed >= 0 && n_fixed <= a_.shape.n_components,
                    "n_fixed must be from 0 to n_components (", a_.shape.n_components, "), got ",
                    n_fixed);
    return n_fixed;
  }

 private:
  FactorArguments a_;
  Tensor given_;
  WeightArguments weights_;
  ActiveProblems active_;
  Implementation device_;
  Tensor W_, H_;
};

template <class Implementation>
std::tuple<Tensor, Tensor, Tensor> nnmf_weighted_mu(const Tensor& X, const Tensor& W,
                                                    const Tensor& H, const Tensor& weights,
                                                    std::optional<Tensor> active, double beta_loss,
                                                    int64_t n_iter, bool update_H, double l1_reg_W,
                                                    double l1_reg_H, double l2_reg_W,
                                                    double l2_reg_H, bool compute_divergence,
                                                    double floor, int64_t n_fixed) {
  WeightedUpdates<Implementation> updates(X, W, H, weights, active);
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
std::tuple<Tensor, Tensor, Tensor> nnmf_weighted_hals(
    const Tensor& X, const Tensor& W, const Tensor& H, const Tensor& weights, int64_t n_iter,
    int64_t n_inner, bool update_H, double l1_reg_W, double l1_reg_H, double l2_reg_W,
    double l2_reg_H, bool compute_divergence, int64_t n_fixed) {
  WeightedUpdates<Implementation> updates(X, W, H, weights, std::nullopt);
  const Update of_W = descent_of(l1_reg_W, l2_reg_W, updates.scale(), n_inner, /*n_fixed=*/0);
  const Update of_H =
      descent_of(l1_reg_H, l2_reg_H, updates.scale(), n_inner, updates.checked_fixed(n_fixed));
  updates.template run<Loss::kFrobenius>(of_W, of_H, n_iter, update_H);
  return updates.results(compute_divergence, of_H.terms);
}

}  // namespace nnmf_cuda
