// ISA source (see isa.h): one row at a time, with a factor that follows its free variables. For
// systems that are too large to have several side by side, and for the few rows that rounding or
// dependent variables keep from ending in active_set.h.
//
// Block principal pivoting as there. Where it stops making progress, Lawson & Hanson (1974, chapter
// 23) on a Gram matrix (Bro & De Jong 1997) go on from its free variables: variables enter one at a
// time, every accepted step lowers the objective, and one that depends on the free ones takes the
// place of one of them, so that no singular system is ever solved.
//
// Needs free_factor.h.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

// A factor is brought up to date for so many variables that come or go, where it has this many
// columns for each; anew is faster for more of them.
constexpr int64_t kColumnsPerUpdate = 48;

// Of a combination of free variables, parts up to this share of the largest are rounding.
constexpr double kLeastPart = 1e-8;

int64_t one_row_doubles(int64_t k) {
  return FreeFactor::doubles(k) + 4 * factor_stride(k);
}

int64_t one_row_integers(int64_t k) {
  return FreeFactor::integers(k) + (3 * k + 7) / 8;
}

double largest_of(const double* values, int64_t size) {
  double largest = 0;
  for (int64_t j = 0; j < size; ++j) {
    const double magnitude = values[j] < 0 ? -values[j] : values[j];
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

void store_not_finite(int64_t k, double* h, const ActiveSets& sets) {
  sets.pivots[0] = 0;
  for (int64_t j = 0; j < k; ++j) {
    h[j] = __builtin_nan("");
    sets.free[j] = false;
  }
}

class OneRow {
 public:
  // Takes its memory from the beginning of the workspace.
  OneRow(const Gram& g, Workspace& space)
      : g_(g), k_(g.size), factor_(k_, space.doubles, space.integers) {
    const int64_t stride = factor_stride(k_);
    cross_ = space.doubles + FreeFactor::doubles(k_);
    x_ = cross_ + stride;
    goal_ = x_ + stride;
    gradient_ = goal_ + stride;
    free_ = reinterpret_cast<uint8_t*>(space.integers + FreeFactor::integers(k_));
    wrong_ = free_ + k_;
    blocked_ = wrong_ + k_;
    space.doubles += one_row_doubles(k_);
    space.integers += one_row_integers(k_);
  }

  // h = the minimiser for a row, in the units of the unscaled problem; NaN where it is not finite.
  void solve(const double* cross, double* h, const ActiveSets& sets) {
    double not_finite = 0;
    for (int64_t j = 0; j < k_; ++j) {
      cross_[j] = cross[j] * g_.scale[j];
      not_finite += cross_[j] * 0;
    }
    if (not_finite != 0) return store_not_finite(k_, h, sets);
    slack_ = sets.tol * largest_of(cross, k_);
    pivots_ = 0;
    if (sets.start == nullptr) {
      start_from_all();
    } else {
      for (int64_t j = 0; j < k_; ++j) free_[j] = sets.start[j];
      factorise();
    }
    if (!pivot_in_blocks(sets.start == nullptr)) pivot_one_by_one();
    store(h, sets);
  }

  // The same for a row that is scaled and finite, one variable at a time from the free variables
  // sets.free, which have been found with sets.pivots exchanges.
  void solve_safely(const double* scaled, double slack, double* h, const ActiveSets& sets) {
    for (int64_t j = 0; j < k_; ++j) {
      cross_[j] = scaled[j];
      free_[j] = sets.free[j];
    }
    slack_ = slack;
    pivots_ = sets.pivots[0];
    factorise();
    pivot_one_by_one();
    store(h, sets);
  }

  // u = G_FF^-1 grad_F for F = {h > 0}, zero elsewhere; false, and nothing, where G_FF is singular.
  bool solve_free(const double* h, const double* grad, double* u) {
    int64_t count = 0;
    for (int64_t j = 0; j < k_; ++j) {
      free_[j] = h[j] > 0;
      count += free_[j];
      cross_[j] = grad[j] * g_.scale[j];
    }
    factor_.begin(g_, cross_, free_, kRankTolerance);
    if (factor_.count < count) return false;
    take_goal();
    for (int64_t j = 0; j < k_; ++j) u[j] = x_[j] * g_.scale[j];
    return true;
  }

 private:
  double least() const { return dependent_pivot(k_); }

  void factorise() { factor_.begin(g_, cross_, free_, least()); }

  void store(double* h, const ActiveSets& sets) const {
    for (int64_t j = 0; j < k_; ++j) {
      h[j] = x_[j] * g_.scale[j];
      sets.free[j] = free_[j] != 0;
    }
    sets.pivots[0] = pivots_;
  }

  // The unconstrained minimum, with the factor that all rows share.
  void start_from_all() {
    const Triangle all{const_cast<double*>(g_.factor), const_cast<double*>(g_.inverse_pivot),
                       factor_stride(k_)};
    for (int64_t j = 0; j < k_; ++j) {
      x_[j] = cross_[j];
      free_[j] = g_.inverse_pivot[j] != 0;
    }
    solve_lower(all, k_, x_);
    solve_lower_transposed(all, k_, x_);
  }

  // x = the solution for the free variables.
  void take_goal() {
    for (int64_t j = 0; j < k_; ++j) x_[j] = 0;
    factor_.solve(goal_);
    for (int64_t a = 0; a < factor_.count; ++a) x_[factor_.order[a]] = goal_[a];
  }

  // The gradient, and what is rounding in it up to the size of a variable's cross product.
  void compute_gradient() {
    sum_ = 0;
    for (int64_t j = 0; j < k_; ++j) {
      gradient_[j] = -cross_[j];
      sum_ += x_[j] < 0 ? -x_[j] : x_[j];
    }
    const double* rows[4];
    double minus[4];
    int64_t waiting = 0;
    for (int64_t j = 0; j < k_; ++j) {
      if (x_[j] == 0) continue;
      rows[waiting] = g_.values + j * (k_ + 1);
      minus[waiting++] = -x_[j];
      if (waiting < 4) continue;
      subtract_four(gradient_, rows, minus, k_);
      waiting = 0;
    }
    for (int64_t r = 0; r < waiting; ++r) subtract_one(gradient_, rows[r], minus[r], k_);
  }

  double rounding(int64_t j) const {
    const double size = cross_[j] < 0 ? -cross_[j] : cross_[j];
    return gradient_tolerance(k_) * (size > sum_ ? size : sum_);
  }

  double least_gradient(int64_t j) const {
    const double noise = rounding(j), allowed = slack_ * g_.scale[j];
    return -(noise > allowed ? noise : allowed);
  }

  // Whether the gradient of the free variables is zero, as it should be.
  bool is_exact() const {
    for (int64_t j = 0; j < k_; ++j) {
      const double size = gradient_[j] < 0 ? -gradient_[j] : gradient_[j];
      if (free_[j] && !(size <= 10 * rounding(j))) return false;
    }
    return true;
  }

  // Marks the variables on the wrong side; returns how many there are.
  int64_t find_wrong() {
    int64_t count = 0;
    for (int64_t j = 0; j < k_; ++j) {
      wrong_[j] = free_[j] ? x_[j] < 0 : gradient_[j] < least_gradient(j);
      count += wrong_[j];
    }
    return count;
  }

  // Exchanges all variables on the wrong side while that makes progress; returns whether there are
  // none at the end. x is that of the free variables.
  bool pivot_in_blocks(bool cold) {
    int64_t fewest = k_ + 1, patience = 3;
    if (!cold) take_goal();
    for (bool fresh = cold;; fresh = false) {
      compute_gradient();
      const int64_t wrong = find_wrong();
      if (wrong == 0) {
        if (is_exact()) return true;
        if (!fresh && factor_.updates == 0) return false;
        factorise();
        take_goal();
        continue;
      }
      if (!fresh) {
        if (wrong < fewest) {
          fewest = wrong;
          patience = 3;
        } else if (patience-- == 0) {
          return false;
        }
      }
      pivots_ += wrong;
      exchange(wrong, /*anew=*/fresh);
      take_goal();
    }
  }

  // The variables on the wrong side change sides.
  void exchange(int64_t wrong, bool anew) {
    for (int64_t j = 0; j < k_; ++j) free_[j] ^= wrong_[j];
    if (anew || wrong * kColumnsPerUpdate > factor_.count) return factorise();
    for (int64_t a = factor_.count; a-- > 0;)
      if (!free_[factor_.order[a]]) factor_.remove(a);
    for (int64_t j = 0; j < k_; ++j)
      if (wrong_[j] && free_[j] && !factor_.append(g_, cross_, j, least())) free_[j] = 0;
  }

  void pivot_one_by_one() {
    keep_positive();
    for (int64_t j = 0; j < k_; ++j) blocked_[j] = 0;
    // A bound against rounding only: about one step a variable is usual.
    for (int64_t step = 0; step < 30 * k_; ++step) {
      compute_gradient();
      const int64_t entering = steepest();
      if (entering < 0) {
        if (factor_.updates == 0 || is_exact()) return;
        factorise();
        for (int64_t j = 0; j < k_; ++j)
          if (!free_[j]) x_[j] = 0;
        move_to_optimum();
        continue;
      }
      bool stays = factor_.append(g_, cross_, entering, least());
      if (!stays) stays = replace_one(entering);
      if (stays) {
        free_[entering] = 1;
        ++pivots_;
        move_to_optimum();
        stays = free_[entering] != 0;
      }
      // One that has found no place, or is thrown out at once by rounding, does not enter again
      // before some progress.
      if (stays)
        for (int64_t j = 0; j < k_; ++j) blocked_[j] = 0;
      else
        blocked_[entering] = 1;
    }
  }

  // Goes along the direction in which a variable, G_Fj = G_FF w, takes the part of the free ones:
  // x_j = t and x_F - t w. There is no curvature, so the objective falls until a free variable is
  // zero. Puts the entering one in its place; false where that cannot be.
  bool replace_one(int64_t entering) {
    const double curvature = factor_.pivot;
    const double* w = factor_.combination();
    double largest = 0, until = 0;
    for (int64_t a = 0; a < factor_.count; ++a) largest = w[a] > largest ? w[a] : largest;
    int64_t leaving = -1;
    for (int64_t a = 0; a < factor_.count; ++a) {
      if (!(w[a] > kLeastPart * largest)) continue;
      const double here = x_[factor_.order[a]] / w[a];
      if (leaving >= 0 && here >= until) continue;
      leaving = a;
      until = here;
    }
    if (leaving < 0 || !(until > 0) || curvature * until > -gradient_[entering]) return false;
    for (int64_t a = 0; a < factor_.count; ++a) {
      double& x = x_[factor_.order[a]];
      x -= until * w[a];
      x = x > 0 ? x : 0;
    }
    const int64_t gone = factor_.order[leaving];
    x_[gone] = 0;
    free_[gone] = 0;
    ++pivots_;
    factor_.remove(leaving);
    if (!factor_.append(g_, cross_, entering, least())) return false;
    x_[entering] = until;
    return true;
  }

  // Takes away the free variables that are not positive at their optimum until none is left there.
  void keep_positive() {
    for (;;) {
      take_goal();
      int64_t leaving = 0;
      for (int64_t j = 0; j < k_; ++j) {
        wrong_[j] = free_[j] && !(x_[j] > 0);
        leaving += wrong_[j];
      }
      if (leaving == 0) return;
      pivots_ += leaving;
      exchange(leaving, /*anew=*/false);
    }
  }

  // The variable along which the objective falls fastest; -1 at the optimum.
  int64_t steepest() const {
    int64_t best = -1;
    double fastest = 0;
    for (int64_t j = 0; j < k_; ++j) {
      if (blocked_[j] || free_[j] || !(gradient_[j] < fastest)) continue;
      if (!(gradient_[j] < least_gradient(j))) continue;
      best = j;
      fastest = gradient_[j];
    }
    return best;
  }

  // Goes to the optimum of the free variables, freeing it of those that would become negative.
  void move_to_optimum() {
    while (factor_.count > 0) {
      factor_.solve(goal_);
      double step = 2;
      for (int64_t a = 0; a < factor_.count; ++a) {
        const double here = x_[factor_.order[a]];
        if (goal_[a] > 0) continue;
        const double until = here > goal_[a] ? here / (here - goal_[a]) : 0;
        step = until < step ? until : step;
      }
      if (step > 1) {
        for (int64_t a = 0; a < factor_.count; ++a) x_[factor_.order[a]] = goal_[a];
        return;
      }
      drop_after(step);
    }
  }

  void drop_after(double step) {
    for (int64_t a = factor_.count; a-- > 0;) {
      const int64_t j = factor_.order[a];
      const double here = x_[j];
      const bool limits =
          !(goal_[a] > 0) && (here > goal_[a] ? here / (here - goal_[a]) : 0) <= step;
      x_[j] = here + step * (goal_[a] - here);
      if (!limits && x_[j] > 0) continue;
      x_[j] = 0;
      free_[j] = 0;
      ++pivots_;
      factor_.remove(a);
    }
  }

  const Gram& g_;
  const int64_t k_;
  FreeFactor factor_;
  double* cross_;     // [k], scaled
  double* x_;         // [k]
  double* goal_;      // [k]: of the free variables, in the order of the factor
  double* gradient_;  // [k]
  uint8_t* free_;     // [k]
  uint8_t* wrong_;    // [k]: variables on the wrong side
  uint8_t* blocked_;  // [k]: variables that may not enter before some progress
  double slack_ = 0;  // how far below zero the gradient may be, in unscaled variables
  double sum_ = 0;    // of |x|
  int64_t pivots_ = 0;
};

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
