// The slow and safe ways, one row at a time: what active_set.h calls for the few rows that rounding
// or dependent variables keep from ending there.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "gram.h"

namespace nnmf_cuda {

// Lawson & Hanson (1974), chapter 23, on a Gram matrix (Bro & De Jong 1997): variables enter one at
// a time, every accepted step lowers the objective, and one that depends on the free ones is
// refused, so that no singular system is ever solved.
class LawsonHanson {
 public:
  LawsonHanson(const Gram& gram, const double* cross)
      : gram_(gram),
        cross_(cross),
        x_(size(gram.size)),
        goal_(size(gram.size)),
        factor_(size(gram.size * gram.size)),
        blocked_(size(gram.size)) {
    free_.reserve(size(gram.size));
  }

  std::vector<double> solve() {
    // A bound against rounding only: about one step a variable is usual.
    for (int64_t step = 0; step < 30 * gram_.size; ++step) {
      const int64_t entering = steepest();
      if (entering < 0) break;
      if (!append(entering, /*force=*/false)) {
        blocked_[size(entering)] = 1;
        continue;
      }
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

  bool is_free(int64_t j) const { return std::find(free_.begin(), free_.end(), j) != free_.end(); }

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
      if (descent > noise && descent > fastest) {
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
    free_.clear();
    for (const int64_t j : kept) append(j, /*force=*/true);
  }

  const Gram& gram_;
  const double* cross_;           // [size], scaled
  std::vector<double> x_, goal_;  // goal: of the free variables, in their order
  std::vector<double> factor_;
  std::vector<int64_t> free_;
  std::vector<char> blocked_;
};

// x = the minimiser for one scaled row. Never inlined: callers are compiled for other instruction
// sets.
__attribute__((noinline)) inline void solve_row_safely(const Gram& gram, const double* cross,
                                                       double* x) {
  const std::vector<double> solved = LawsonHanson(gram, cross).solve();
  std::copy(solved.begin(), solved.end(), x);
}

}  // namespace nnmf_cuda
