// Coordinate descent for Kullback-Leibler on sparse X: where one entry of a factor goes. Free of
// torch.
//
// With all else fixed, an entry t >= 0 of a row of W has the objective
//
//   f(t) = a t + l2 / 2 t^2 - sum over j of x_j log(wh_j + (t - w) h_j),
//
// j being the row's non-zeros, w the entry as it is and wh the row of W H. Its slope is
// a + l2 t - phi(t); phi, a sum of poles x / (c / h + t), falls and is convex, 1 / phi is concave.
//
// - The pole with phi's value S and slope -D at w is nowhere above phi. Where it meets a + l2 t the
//   slope is <= 0: never beyond the minimum on the way up, nor above it on the way down.
// - The slope is concave, so that from w down to t, f falls by at least
//   (w - t) (slope(t) + slope(w)) / 2: where that is not negative, the step stands. Otherwise pole
//   steps from t lead up to the minimum from below.
// - phi(t) is at most S + D w (w - t) / t below w, what a pole at 0 and a constant give, as
//   1 / (c / h + w) is at most 1 / w. With it some steps are known to stand without a look at t.
// - t phi(t) rises, so that the multiplicative point is between the minimum and w.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../common/inline.h"

namespace nnmf_cuda {

// How a factor goes down.
struct Descent {
  double l1_reg;
  double l2_reg;
  double floor;     // of W H where it divides
  int64_t n_inner;  // sweeps over a row before the next
  int64_t n_fixed;  // components that stay as they are, the first ones
};

constexpr int kTrials = 4;  // points below w before the multiplicative one is taken

// sum x h / wh and sum x (h / wh)^2 over the non-zeros of a row.
template <class Real>
struct PoleSums {
  Real S;
  Real D;
};

// What the objective of an entry has beside them, the same in all rows.
template <class Real>
struct Coordinate {
  Real a;  // the sum of the other factor's component, and l1
  Real l2;

  NNMF_CUDA_INLINE Real slope(Real t, Real S) const { return a + l2 * t - S; }
};

template <class Real>
struct PoleStep {
  Real t;
  bool is_known;  // not without a curvature that numbers can hold
  bool stands;    // if it leads down, f does not rise; false where that is not known
};

// Where a + l2 t meets the pole with value S and slope -D at w, or 0.
template <class Real>
NNMF_CUDA_INLINE PoleStep<Real> pole_step(const Coordinate<Real>& c, Real w,
                                          const PoleSums<Real>& at_w) {
  const Real S = at_w.S, u = S / at_w.D;
  Real root = c.a;
  if (c.l2 > 0) root = std::hypot(c.a + c.l2 * (w - u), 2 * std::sqrt(c.l2 * u * S));
  const Real step = 2 * u * (S - c.a - c.l2 * w) / (c.a + c.l2 * (w + u) + root);
  const Real t = w + step > 0 ? w + step : Real{0};
  return {t, std::isfinite(step), t * (c.a + c.l2 * w + root) >= S * w};
}

// Where a + l2 t meets w S / t; w itself where that is not a number.
template <class Real>
NNMF_CUDA_INLINE Real multiplicative_step(const Coordinate<Real>& c, Real w, Real S) {
  Real root = c.a;
  if (c.l2 > 0) root = std::hypot(c.a, 2 * std::sqrt(c.l2 * w * S));
  const Real t = 2 * w * S / (c.a + root);
  return std::isfinite(t) ? t : w;
}

// Where the entry w goes: its objective does not rise. sums_at(t) gives the sums with t in w's
// place, and is called for some steps down only.
template <class Real, class F>
NNMF_CUDA_INLINE Real descended(const Coordinate<Real>& c, Real w, const PoleSums<Real>& at_w,
                                const F& sums_at) {
  if (at_w.S == 0) return c.a > 0 || c.l2 > 0 ? Real{0} : w;
  const PoleStep<Real> step = pole_step(c, w, at_w);
  if (step.is_known && (step.t >= w || step.stands)) return step.t;
  const Real bound = multiplicative_step(c, w, at_w.S);
  if (!step.is_known) return bound;
  Real t = step.t;
  for (int trial = 0; trial < kTrials; ++trial) {
    const PoleSums<Real> at_t = sums_at(t);
    if (c.slope(t, at_t.S) + c.slope(w, at_w.S) >= 0) return t;
    const PoleStep<Real> up = pole_step(c, t, at_t);
    t = up.is_known && up.t < bound ? up.t : bound;
  }
  return bound;
}

}  // namespace nnmf_cuda
