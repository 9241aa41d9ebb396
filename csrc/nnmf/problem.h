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

constexpr double kEpsilon = 1.1920928955078125e-07;     // float32's: the floor of W H
constexpr double kClampBelow = 2.2204460492503131e-16;  // float64's: smaller factors become zero

template <class T>
NNMF_CUDA_INLINE T floored(T wh) {
  return at_least(static_cast<T>(kEpsilon), wh);
}

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
NNMF_CUDA_INLINE T numerator_term(T x, T wh, T beta_loss) {
  if constexpr (loss == Loss::kFrobenius) {
    return x;
  } else if constexpr (loss == Loss::kKullbackLeibler) {
    return quotient(x, floored(wh));
  } else if constexpr (loss == Loss::kItakuraSaito) {
    const T inverse = quotient(T{1}, floored(wh));
    return x * (inverse * inverse);
  } else {
    return x * std::pow(beta_loss < 2 ? floored(wh) : wh, beta_loss - 2);
  }
}

// (W H)^(beta_loss - 1): what the denominator sums.
template <Loss loss, class T>
NNMF_CUDA_INLINE T denominator_term(T wh, T beta_loss) {
  if constexpr (loss == Loss::kFrobenius) {
    return wh;
  } else if constexpr (loss == Loss::kKullbackLeibler) {
    return T{1};
  } else if constexpr (loss == Loss::kItakuraSaito) {
    return quotient(T{1}, floored(wh));
  } else {
    return std::pow(beta_loss < 1 ? floored(wh) : wh, beta_loss - 1);
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
  double beta_loss;
  double scale;     // of the numerators: 1 / 255 for pixels, which are summed as bytes
  double zero_sum;  // what stands for a sum of zero in the denominator of Kullback-Leibler
  int64_t n_inner;  // sweeps of coordinate descent; 0 for multiplicative updates
};

inline double mm_exponent(double beta_loss) {
  if (beta_loss < 1) return 1 / (2 - beta_loss);
  if (beta_loss > 2) return 1 / (beta_loss - 1);
  return 1;
}

// Multiplicative updates of W, and of H.
inline Update update_of_W(double beta_loss, double l1_reg, double l2_reg, double scale) {
  return {{l1_reg, l2_reg, mm_exponent(beta_loss), beta_loss < 1},
          beta_loss,
          scale,
          /*zero_sum=*/0,
          /*n_inner=*/0};
}

inline Update update_of_H(double beta_loss, double l1_reg, double l2_reg, double scale) {
  return {{l1_reg, l2_reg, mm_exponent(beta_loss), beta_loss <= 1},
          beta_loss,
          scale,
          /*zero_sum=*/1,
          /*n_inner=*/0};
}

// Coordinate descent, of either factor.
inline Update descent_of(double l1_reg, double l2_reg, double scale, int64_t n_inner) {
  return {{l1_reg, l2_reg, /*gamma=*/1, /*clamp=*/false},
          /*beta_loss=*/2,
          scale,
          /*zero_sum=*/0,
          n_inner};
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

// What one element adds to the divergence; entries of X up to kEpsilon count as zeros.
template <Loss loss>
NNMF_CUDA_INLINE double divergence_term(double x, double wh, double beta_loss) {
  if constexpr (loss == Loss::kFrobenius) {
    return 0.5 * (x - wh) * (x - wh);
  } else if constexpr (loss == Loss::kKullbackLeibler) {
    return x > kEpsilon ? x * std::log(x / floored(wh)) - x + wh : wh;
  } else if constexpr (loss == Loss::kItakuraSaito) {
    if (!(x > kEpsilon)) return -1;
    const double ratio = x / floored(wh);
    return ratio - std::log(ratio) - 1;
  } else {
    double term = (beta_loss - 1) * std::pow(wh, beta_loss);
    if (x > kEpsilon)
      term += std::pow(x, beta_loss) - beta_loss * x * std::pow(floored(wh), beta_loss - 1);
    return term / (beta_loss * (beta_loss - 1));
  }
}

}  // namespace nnmf_cuda
