// The slow and safe ways, one row at a time: what active_set.h calls for the few rows that rounding
// or dependent variables keep from ending there.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "gram.h"

namespace nnmf_cuda {

// Lawson & Hanson (1974), chapter 23, on a Gram matrix (Bro & De Jong 1997): variables enter one at
// a time, every accepted step lowers the objective, and one that depends on the free ones is
// refused, so that no singular system is ever solved.
class LawsonHanson {
 public:
  LawsonHanson(const Gram& gram, const double* cross, double slack)
      : gram_(gram),
        cross_(cross),
        slack_(slack),
        x_(size(gram.size)),
        goal_(size(gram.size)),
        factor_(size(gram.size * gram.size)),
        blocked_(size(gram.size)) {
    free_.reserve(size(gram.size));
  }

  int64_t pivots() const { return pivots_; }
  bool is_free(int64_t j) const { return std::find(free_.begin(), free_.end(), j) != free_.end(); }

  std::vector<double> solve() {
    // A bound against rounding only: about one step a variable is usual.
    for (int64_t step = 0; step < 30 * gram_.size; ++step) {
      const int64_t entering = steepest();
      if (entering < 0) break;
      if (!append(entering, /*force=*/false)) {
        blocked_[size(entering)] = 1;
        continue;
      }
      ++pivots_;
      move_to_optimum();
      if (is_free(entering))
        std::fill(blocked_.begin(), blocked_.end(), 0);
      else
        blocked_[size(entering)] = 1;  // thrown out at once by rounding: not before some progress
    }
    return x_;
  }

 private:
  static std::size_t size(int64_t value) { return static_cast<std::size_t>(value); }

  double& factor(std::size_t i, std::size_t j) { return factor_[i * size(gram_.size) + j]; }

  // The variable along which the objective falls fastest; -1 at the optimum.
  int64_t steepest() const {
    double sum = 0;
    for (const double x : x_) sum += std::abs(x);
    int64_t best = -1;
    double fastest = 0;
    for (int64_t j = 0; j < gram_.size; ++j) {
      if (blocked_[size(j)] || is_free(j)) continue;
      double descent = cross_[j];
      for (const int64_t i : free_) descent -= gram_.value(j, i) * x_[size(i)];
      const double noise = gradient_tolerance(gram_.size) * std::max(std::abs(cross_[j]), sum);
      const double allowed = slack_ * gram_.scale[j];
      if (descent > std::max(noise, allowed) && descent > fastest) {
        best = j;
        fastest = descent;
      }
    }
    return best;
  }

  // Adds a row to the Cholesky factor of the free variables.
  bool append(int64_t j, bool force) {
    const std::size_t at = free_.size();
    double pivot = gram_.diagonal[j];
    for (std::size_t a = 0; a < at; ++a) {
      double sum = gram_.value(j, free_[a]);
      for (std::size_t b = 0; b < a; ++b) sum -= factor(at, b) * factor(a, b);
      factor(at, a) = sum / factor(a, a);
      pivot -= factor(at, a) * factor(at, a);
    }
    const double least = dependent_pivot(gram_.size);
    if (!(pivot > least) && !force) return false;
    factor(at, at) = std::sqrt(std::max(pivot, least));
    free_.push_back(j);
    return true;
  }

  void solve_free() {
    const std::size_t count = free_.size();
    for (std::size_t a = 0; a < count; ++a) {
      double sum = cross_[free_[a]];
      for (std::size_t b = 0; b < a; ++b) sum -= factor(a, b) * goal_[b];
      goal_[a] = sum / factor(a, a);
    }
    for (std::size_t a = count; a-- > 0;) {
      goal_[a] /= factor(a, a);
      for (std::size_t b = 0; b < a; ++b) goal_[b] -= factor(a, b) * goal_[a];
    }
  }

  // Goes to the optimum of the free variables, freeing it of those that would become negative.
  void move_to_optimum() {
    while (!free_.empty()) {
      solve_free();
      double step = 2;
      for (std::size_t a = 0; a < free_.size(); ++a) {
        const double here = x_[size(free_[a])];
        if (!(goal_[a] > 0)) step = std::min(step, here > goal_[a] ? here / (here - goal_[a]) : 0.);
      }
      if (step > 1) {
        for (std::size_t a = 0; a < free_.size(); ++a) x_[size(free_[a])] = goal_[a];
        return;
      }
      drop_after(step);
    }
  }

  void drop_after(double step) {
    std::vector<int64_t> kept;
    for (std::size_t a = 0; a < free_.size(); ++a) {
      double& x = x_[size(free_[a])];
      const bool limits = !(goal_[a] > 0) && (x > goal_[a] ? x / (x - goal_[a]) : 0.) <= step;
      x += step * (goal_[a] - x);
      if (limits || !(x > 0))
        x = 0;
      else
        kept.push_back(free_[a]);
    }
    pivots_ += static_cast<int64_t>(free_.size() - kept.size());
    free_.clear();
    for (const int64_t j : kept) append(j, /*force=*/true);
  }

  const Gram& gram_;
  const double* cross_;  // [size], scaled
  const double slack_;   // how far below zero the gradient may be, in unscaled variables
  int64_t pivots_ = 0;
  std::vector<double> x_, goal_;  // goal: of the free variables, in their order
  std::vector<double> factor_;
  std::vector<int64_t> free_;
  std::vector<char> blocked_;
};

// x = the minimiser for one scaled row; its pivots are added. Never inlined: callers are compiled
// for other instruction sets.
__attribute__((noinline)) inline void solve_row_safely(const Gram& gram, const double* cross,
                                                       double slack, double* x,
                                                       const ActiveSets& sets) {
  LawsonHanson solver(gram, cross, slack);
  const std::vector<double> solved = solver.solve();
  std::copy(solved.begin(), solved.end(), x);
  for (int64_t j = 0; j < gram.size; ++j) sets.free[j] = solver.is_free(j);
  sets.pivots[0] += solver.pivots();
}

// The gradient of rows whose free variables depend on each other.

// A factor M [size, rank] of a positive semi-definite matrix A = M M^T, by Cholesky's method with
// the largest pivot first. A is overwritten.
class RankFactor {
 public:
  RankFactor(std::vector<double> a, std::size_t size) : size_(size) {
    double largest = 0;
    for (std::size_t step = 0; step < size; ++step) {
      std::size_t best = 0;
      for (std::size_t i = 1; i < size; ++i)
        if (a[i * size + i] > a[best * size + best]) best = i;
      const double pivot = a[best * size + best];
      if (step == 0) largest = pivot;
      if (!(pivot > kRankTolerance * largest)) return;
      const std::size_t at = columns_.size();
      for (std::size_t i = 0; i < size; ++i)
        columns_.push_back(a[i * size + best] / std::sqrt(pivot));
      for (std::size_t i = 0; i < size; ++i)
        for (std::size_t j = 0; j < size; ++j)
          a[i * size + j] -= columns_[at + i] * columns_[at + j];
      a[best * size + best] = 0;
    }
  }

  std::size_t rank() const { return columns_.size() / size_; }

  // pinv(A) b = M (M^T M)^-2 M^T b
  std::vector<double> solve(const std::vector<double>& b) const {
    const std::size_t r = rank();
    std::vector<double> reduced(r), gram(r * r), solved(size_);
    for (std::size_t p = 0; p < r; ++p) {
      reduced[p] = dot(column(p), b.data());
      for (std::size_t q = 0; q <= p; ++q) gram[p * r + q] = dot(column(p), column(q));
    }
    cholesky(gram, r);
    for (int twice = 0; twice < 2; ++twice) cholesky_solve(gram, r, reduced);
    for (std::size_t p = 0; p < r; ++p)
      for (std::size_t i = 0; i < size_; ++i) solved[i] += column(p)[i] * reduced[p];
    return solved;
  }

 private:
  const double* column(std::size_t p) const { return columns_.data() + p * size_; }

  double dot(const double* x, const double* y) const {
    double sum = 0;
    for (std::size_t i = 0; i < size_; ++i) sum += x[i] * y[i];
    return sum;
  }

  static void cholesky(std::vector<double>& a, std::size_t r) {
    for (std::size_t i = 0; i < r; ++i) {
      for (std::size_t j = 0; j <= i; ++j) {
        double sum = a[i * r + j];
        for (std::size_t p = 0; p < j; ++p) sum -= a[i * r + p] * a[j * r + p];
        a[i * r + j] = i == j ? std::sqrt(sum) : sum / a[j * r + j];
      }
    }
  }

  static void cholesky_solve(const std::vector<double>& l, std::size_t r, std::vector<double>& b) {
    for (std::size_t i = 0; i < r; ++i) {
      for (std::size_t j = 0; j < i; ++j) b[i] -= l[i * r + j] * b[j];
      b[i] /= l[i * r + i];
    }
    for (std::size_t i = r; i-- > 0;) {
      b[i] /= l[i * r + i];
      for (std::size_t j = 0; j < i; ++j) b[j] -= l[i * r + j] * b[i];
    }
  }

  std::size_t size_;
  std::vector<double> columns_;
};

// u = the solution of least norm of G_FF u = grad_F for the variables F that are free (free[j] !=
// 0), and zero elsewhere; all in the units of the unscaled problem. Never inlined: callers are
// compiled for other instruction sets.
__attribute__((noinline)) inline void solve_minimum_norm(const Gram& gram, const double* free,
                                                         const double* grad, double* u) {
  std::vector<int64_t> order;
  for (int64_t j = 0; j < gram.size; ++j) {
    u[j] = 0;
    if (free[j] != 0) order.push_back(j);
  }
  const std::size_t count = order.size();
  std::vector<double> block, rhs;
  for (const int64_t i : order) {
    rhs.push_back(grad[i]);
    for (const int64_t j : order)
      block.push_back(gram.value(i, j) / (gram.scale[i] * gram.scale[j]));
  }
  const std::vector<double> solved = RankFactor(std::move(block), count).solve(rhs);
  for (std::size_t a = 0; a < count; ++a) u[order[a]] = solved[a];
}

}  // namespace nnmf_cuda
