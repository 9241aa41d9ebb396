// A factorisation as the kernels of both devices see it: its sizes, how its factors are updated,
// and the beta-divergence entry by entry, as scikit-learn 1.9 defines it
// (sklearn/decomposition/_nmf.py). Free of torch.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/inline.h"

namespace nnmf_cuda {

struct Shape {
  int64_t batch;
  int64_t n_samples;
  int64_t n_features;
  int64_t n_components;
  int64_t x_stride;      // elements from one problem's X to the next: 0 where they share it
  int64_t x_row_stride;  // elements from one row of X to the next
};

// One problem, or many of one shape.
template <class T, class Data>
struct FactorParams {
  const Data* X;  // rows of adjacent entries, anywhere
  const T* W;     // [B, n_samples, n_components], contiguous
  const T* H;     // [B, n_components, n_features], contiguous
  Shape shape;
  const bool* active;  // [B]: problems that are not stay as they are; nullptr: all are
};

// The divergences that have a formula of their own; kGeneral is any other beta_loss.
enum class Loss { kFrobenius, kKullbackLeibler, kItakuraSaito, kGeneral };

inline Loss loss_of(double beta_loss) {
  if (beta_loss == 2) return Loss::kFrobenius;
  if (beta_loss == 1) return Loss::kKullbackLeibler;
  if (beta_loss == 0) return Loss::kItakuraSaito;
  return Loss::kGeneral;
}

// A Loss as a type, so that it becomes a template parameter.
template <Loss value>
struct LossType {
  static constexpr Loss kLoss = value;
};

template <class F>
void dispatch_loss(double beta_loss, const F& f) {
  switch (loss_of(beta_loss)) {
    case Loss::kFrobenius:
      return f(LossType<Loss::kFrobenius>{});
    case Loss::kKullbackLeibler:
      return f(LossType<Loss::kKullbackLeibler>{});
    case Loss::kItakuraSaito:
      return f(LossType<Loss::kItakuraSaito>{});
    case Loss::kGeneral:
      return f(LossType<Loss::kGeneral>{});
  }
}

constexpr double kEpsilon =
    1.1920928955078125e-07;  // float32's: what stands for a denominator of 0
constexpr double kClampBelow = 2.2204460492503131e-16;  // float64's: smaller factors become zero

// What the terms of an entry depend on besides X and W H.
template <class T>
struct TermRule {
  T beta_loss;
  T floor;  // of W H where it divides; entries of X up to it count as zeros in the divergence

  template <class To>
  NNMF_CUDA_INLINE TermRule<To> as() const {
    return {static_cast<To>(beta_loss), static_cast<To>(floor)};
  }
};

// X as a number: pixels are x / 255.
template <class T, class Data>
NNMF_CUDA_INLINE T value_of(Data x) {
  if constexpr (sizeof(Data) == 1)
    return static_cast<T>(x) / T{255};
  else
    return x;
}

// X (W H)^(beta_loss - 2): what the numerator of an update sums.
template <Loss loss, class T>
NNMF_CUDA_INLINE T numerator_term(T x, T wh, const TermRule<T>& rule) {
  if constexpr (loss == Loss::kFrobenius) {
    return x;
  } else if constexpr (loss == Loss::kKullbackLeibler) {
    return quotient(x, at_least(rule.floor, wh));
  } else if constexpr (loss == Loss::kItakuraSaito) {
    const T inverse = quotient(T{1}, at_least(rule.floor, wh));
    return x * inverse * inverse;  // its square alone may be infinite
  } else {
    const T safe = rule.beta_loss < 2 ? at_least(rule.floor, wh) : wh;
    return x * std::pow(safe, rule.beta_loss - 2);
  }
}

// (W H)^(beta_loss - 1): what the denominator sums.
template <Loss loss, class T>
NNMF_CUDA_INLINE T denominator_term(T wh, const TermRule<T>& rule) {
  if constexpr (loss == Loss::kFrobenius) {
    return wh;
  } else if constexpr (loss == Loss::kKullbackLeibler) {
    return T{1};
  } else if constexpr (loss == Loss::kItakuraSaito) {
    return quotient(T{1}, at_least(rule.floor, wh));
  } else {
    const T safe = rule.beta_loss < 1 ? at_least(rule.floor, wh) : wh;
    return std::pow(safe, rule.beta_loss - 1);
  }
}

// How one factor is updated from its numerator and denominator.
struct UpdateRule {
  double l1_reg;
  double l2_reg;
  double gamma;  // the exponent that makes the update monotone (Fevotte & Idier 2011, table 2)
  bool clamp;    // values below kClampBelow become exact zeros
};

// How one factor is updated from sums over X.
struct Update {
  UpdateRule rule;
  TermRule<double> terms;
  double scale;     // of the numerators: 1 / 255 for pixels, which are summed as bytes
  double zero_sum;  // what stands for a sum of zero in the denominator of Kullback-Leibler
  int64_t n_inner;  // sweeps of coordinate descent; 0 for multiplicative updates
  int64_t n_fixed;  // components that stay as they are, the first ones
  bool tensor_cores = false;  // sums in TF32 thrice, on devices that have kernels for it
};

inline double mm_exponent(double beta_loss) {
  if (beta_loss < 1) return 1 / (2 - beta_loss);
  if (beta_loss > 2) return 1 / (beta_loss - 1);
  return 1;
}

// Multiplicative updates of W, and of H.
inline Update update_of_W(const TermRule<double>& terms, double l1_reg, double l2_reg,
                          double scale) {
  return {{l1_reg, l2_reg, mm_exponent(terms.beta_loss), terms.beta_loss < 1},
          terms,
          scale,
          /*zero_sum=*/0,
          /*n_inner=*/0,
          /*n_fixed=*/0};
}

inline Update update_of_H(const TermRule<double>& terms, double l1_reg, double l2_reg, double scale,
                          int64_t n_fixed) {
  return {{l1_reg, l2_reg, mm_exponent(terms.beta_loss), terms.beta_loss <= 1},
          terms,
          scale,
          /*zero_sum=*/1,
          /*n_inner=*/0,
          n_fixed};
}

// Coordinate descent, of either factor.
inline Update descent_of(double l1_reg, double l2_reg, double scale, int64_t n_inner,
                         int64_t n_fixed) {
  return {{l1_reg, l2_reg, /*gamma=*/1, /*clamp=*/false},
          {/*beta_loss=*/2, /*floor=*/kEpsilon},
          scale,
          /*zero_sum=*/0,
          n_inner,
          n_fixed};
}

template <class T>
NNMF_CUDA_INLINE T updated(T value, T numerator, T denominator, const UpdateRule& rule) {
  if (rule.l1_reg > 0) denominator += static_cast<T>(rule.l1_reg);
  if (rule.l2_reg > 0) denominator += static_cast<T>(rule.l2_reg) * value;
  if (denominator == 0) denominator = static_cast<T>(kEpsilon);
  T ratio = numerator / denominator;
  if (rule.gamma != 1) ratio = std::pow(ratio, static_cast<T>(rule.gamma));
  value *= ratio;
  return rule.clamp && value < static_cast<T>(kClampBelow) ? T{0} : value;
}

// What one element adds to a divergence without a formula of its own.
NNMF_CUDA_INLINE double general_divergence_term(double x, double wh, const TermRule<double>& rule) {
  const double beta_loss = rule.beta_loss;
  const double base = at_least(beta_loss < 0 ? rule.floor : 0.0, wh);
  double term = (beta_loss - 1) * std::pow(base, beta_loss);
  if (x > rule.floor) {
    const double safe = at_least(rule.floor, wh);
    term += std::pow(x, beta_loss) - beta_loss * x * std::pow(safe, beta_loss - 1);
  }
  return term / (beta_loss * (beta_loss - 1));
}

}  // namespace nnmf_cuda
