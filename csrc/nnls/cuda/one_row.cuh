// Least squares of more variables than a block has threads, a block a row: cpu/one_row.h step by
// step, with the factor of free_factor.cuh. Block principal pivoting; where it stops making
// progress, Lawson & Hanson go on from its free variables.
//
// A row takes k^2 doubles of memory besides: as many are solved at one time as kWideRowBytes hold.
#pragma once

#include <algorithm>
#include <cstdint>

#include "free_factor.cuh"

namespace nnmf_cuda {

constexpr int64_t kWideRowBytes = int64_t{1} << 30;  // of the factors of rows under way

// A factor is brought up to date for so many variables that come or go, where it has this many
// columns for each; anew is faster for more of them.
constexpr int kColumnsPerUpdate = 128;

// Of a combination of free variables, parts up to this share of the largest are rounding.
constexpr double kLeastPart = 1e-8;

// Doubles that a row needs beside its factor: seven vectors, and one for the order of its free
// variables and for three of bytes.
NNMF_CUDA_INLINE int64_t vectors_of_row(int64_t k) {
  return 8 * k;
}

// Rows that are under way at one time, `matrices` of k^2 doubles for each.
inline int64_t wide_row_blocks(const RowsShape& s, int64_t matrices) {
  const int64_t bytes = (matrices * s.k * s.k + vectors_of_row(s.k)) * int64_t{sizeof(double)};
  return std::min(s.batch * s.n, std::clamp(kWideRowBytes / bytes, int64_t{8}, int64_t{1024}));
}

class OneRow {
 public:
  // memory: [k * k + vectors_of_row(k)]
  __device__ OneRow(const DeviceGram& gram, int64_t k, double* memory)
      : g_(gram),
        k_(k),
        cross_(memory + k * k),
        x_(cross_ + k),
        goal_(x_ + k),
        gradient_(goal_ + k),
        factor_{gram,
                k,
                {memory, gradient_ + k, k},
                gradient_ + 2 * k,
                gradient_ + 3 * k,
                reinterpret_cast<int*>(gradient_ + 4 * k)},
        free_(reinterpret_cast<uint8_t*>(factor_.order + k)),
        wrong_(free_ + k),
        blocked_(wrong_ + k) {}

  // h = the minimiser for one row of the unscaled problem.
  template <class From, class To>
  __device__ void solve(const From* cross, To* h, const ActiveSets& sets) {
    bool finite = g_.finite;
    double largest = 0;
    for_own(0, k_, [&](int64_t j) {
      const double value = static_cast<double>(cross[j]);
      finite = finite && value * 0 == 0;
      largest = fmax(largest, fabs(value));
      cross_[j] = value * g_.scale[j];
    });
    if (tally_over_block(!finite).count > 0) return store_not_finite(h, sets);
    slack_ = sets.tol > 0 ? sets.tol * largest_of_block(largest) : 0;
    const bool cold = sets.start == nullptr;
    if (cold) {
      start_from_all();
    } else {
      for_own(0, k_, [&](int64_t j) { free_[j] = sets.start[j]; });
      factorise_free();
    }
    if (!pivot_in_blocks(cold)) pivot_one_by_one();
    for_own(0, k_, [&](int64_t j) {
      h[j] = static_cast<To>((x_[j] + 0.0) * g_.scale[j]);  // no negative zero
      sets.free[j] = free_[j] != 0;
    });
    if (threadIdx.x == 0) *sets.pivots = pivots_;
  }

  // u = G_FF^-1 grad_F for F = {h > 0}, zero elsewhere; false where G_FF is singular.
  template <class T>
  __device__ bool solve_free(const T* h, const T* grad, double* u) {
    for_own(0, k_, [&](int64_t j) {
      free_[j] = h[j] > 0;
      cross_[j] = static_cast<double>(grad[j]) * g_.scale[j];
    });
    const int wanted = order_free(free_, k_, factor_.order);
    factor_.begin(cross_, free_, kRankTolerance);
    if (factor_.count < wanted) return false;
    take_goal();
    for_own(0, k_, [&](int64_t j) { u[j] = x_[j] * g_.scale[j]; });
    return true;
  }

 private:
  template <class To>
  __device__ void store_not_finite(To* h, const ActiveSets& sets) const {
    for_own(0, k_, [&](int64_t j) {
      h[j] = static_cast<To>(NAN);
      sets.free[j] = false;
    });
    if (threadIdx.x == 0) *sets.pivots = 0;
  }

  __device__ double least() const { return dependent_pivot(k_); }

  __device__ void factorise_free() { factor_.begin(cross_, free_, least()); }

  // The sum of whole numbers over the block.
  static __device__ int count_over_block(int own) {
    return static_cast<int>(sum_over_block(static_cast<double>(own)));
  }

  // The unconstrained minimum, with the factor that all rows share.
  __device__ void start_from_all() {
    for_own(0, k_, [&](int64_t j) {
      x_[j] = cross_[j];
      free_[j] = g_.inverse_pivot[j] != 0;
    });
    __syncthreads();
    const Triangle all = triangle_of(g_, k_);
    solve_lower(all, k_, x_);
    solve_lower_transposed(all, k_, x_);
  }

  // x = the solution for the free variables.
  __device__ void take_goal() {
    for_own(0, k_, [&](int64_t j) { x_[j] = 0; });
    factor_.solve(goal_);
    for_own(0, factor_.count, [&](int64_t a) { x_[factor_.order[a]] = goal_[a]; });
    __syncthreads();
  }

  // The gradient, each thread's own turns of it, and what is rounding in it up to the size of a
  // variable's cross product.
  __device__ void compute_gradient() {
    double sum = 0;
    for_own(0, k_, [&](int64_t j) { sum += fabs(x_[j]); });
    sum_ = sum_over_block(sum);
    for_own(0, k_, [&](int64_t j) {
      double gradient = -cross_[j];
#pragma unroll 4
      for (int64_t i = 0; i < k_; ++i) gradient += g_.values[i * k_ + j] * x_[i];
      gradient_[j] = gradient;
    });
  }

  __device__ double rounding(int64_t j) const {
    return gradient_tolerance(k_) * fmax(fabs(cross_[j]), sum_);
  }

  __device__ double least_gradient(int64_t j) const {
    return -fmax(rounding(j), slack_ * g_.scale[j]);
  }

  // Whether the gradient of the free variables is zero, as it should be.
  __device__ bool is_exact() const {
    bool exact = true;
    for_own(0, k_, [&](int64_t j) {
      if (free_[j] != 0 && !(fabs(gradient_[j]) <= 10 * rounding(j))) exact = false;
    });
    return tally_over_block(!exact).count == 0;
  }

  // Marks the variables on the wrong side; returns how many there are.
  __device__ int find_wrong() {
    int count = 0;
    for_own(0, k_, [&](int64_t j) {
      wrong_[j] = free_[j] != 0 ? x_[j] < 0 : gradient_[j] < least_gradient(j);
      count += wrong_[j];
    });
    return count_over_block(count);
  }

  // Exchanges all variables on the wrong side while that makes progress; returns whether there are
  // none at the end. x is that of the free variables.
  __device__ bool pivot_in_blocks(bool cold) {
    int64_t fewest = k_ + 1, patience = 3;
    if (!cold) take_goal();
    for (bool fresh = cold;; fresh = false) {
      compute_gradient();
      const int wrong = find_wrong();
      if (wrong == 0) {
        if (is_exact()) return true;
        if (!fresh && factor_.updates == 0) return false;
        factorise_free();
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
  __device__ void exchange(int wrong, bool anew) {
    for_own(0, k_, [&](int64_t j) { free_[j] = free_[j] != wrong_[j]; });
    __syncthreads();
    if (anew || int64_t{wrong} * kColumnsPerUpdate > factor_.count) return factorise_free();
    remove_held();
    for (int64_t j = 0; j < k_; ++j)
      if (wrong_[j] != 0 && free_[j] != 0 && !factor_.append(cross_, j, least()) && owns(j))
        free_[j] = 0;
  }

  // Takes what is not free from the factor.
  __device__ void remove_held() {
    for (int a = factor_.count; a-- > 0;)
      if (free_[factor_.order[a]] == 0) factor_.remove(a);
  }

  __device__ void pivot_one_by_one() {
    keep_positive();
    unblock();
    // A bound against rounding only: about one step a variable is usual.
    for (int64_t step = 0; step < 30 * k_; ++step) {
      compute_gradient();
      const int64_t entering = steepest();
      if (entering < 0) {
        if (factor_.updates == 0 || is_exact()) return;
        factorise_free();
        for_own(0, k_, [&](int64_t j) {
          if (free_[j] == 0) x_[j] = 0;
        });
        move_to_optimum();
        continue;
      }
      bool stays = factor_.append(cross_, entering, least());
      if (!stays) stays = replace_one(entering);
      if (stays) {
        if (owns(entering)) free_[entering] = 1;
        ++pivots_;
        move_to_optimum();
        stays = free_[entering] != 0;
      }
      // One that has found no place, or is thrown out at once by rounding, does not enter again
      // before some progress.
      if (stays)
        unblock();
      else if (owns(entering))
        blocked_[entering] = 1;
    }
  }

  // Whether it is this thread's turn in for_own.
  static __device__ bool owns(int64_t j) { return j % kThreads == threadIdx.x; }

  __device__ void unblock() {
    for_own(0, k_, [&](int64_t j) { blocked_[j] = 0; });
  }

  // Goes along the direction in which a variable, G_Fj = G_FF w, takes the part of the free ones:
  // x_j = t and x_F - t w. There is no curvature, so the objective falls until a free variable is
  // zero. Puts the entering one in its place; false where that cannot be.
  __device__ bool replace_one(int64_t entering) {
    const double curvature = factor_.pivot, slope = gradient_[entering];
    const double* const w = factor_.combination();
    double largest = 0;
    for_own(0, factor_.count, [&](int64_t a) { largest = fmax(largest, w[a]); });
    largest = largest_of_block(largest);
    double until = -1;  // of this thread, and where: none yet
    int64_t own = factor_.count;
    for_own(0, factor_.count, [&](int64_t a) {
      if (!(w[a] > kLeastPart * largest)) return;
      const double here = x_[factor_.order[a]] / w[a];
      if (own < factor_.count && here >= until) return;
      until = here;
      own = a;
    });
    const bool any = own < factor_.count;
    if (tally_over_block(any).count == 0) return false;
    const double shortest = -largest_of_block(any ? -until : -INFINITY);
    const int leaving = first_of(any && until == shortest ? own : int64_t{factor_.count});
    if (!(shortest > 0) || curvature * shortest > -slope) return false;
    for_own(0, factor_.count, [&](int64_t a) {
      const int j = factor_.order[a];
      x_[j] = a == leaving ? 0 : fmax(x_[j] - shortest * w[a], 0.0);
      if (a == leaving) free_[j] = 0;
    });
    ++pivots_;
    factor_.remove(leaving);
    if (!factor_.append(cross_, entering, least())) return false;
    if (owns(entering)) x_[entering] = shortest;
    return true;
  }

  // The smallest position over the block.
  static __device__ int first_of(int64_t own) {
    return static_cast<int>(-largest_of_block(-static_cast<double>(own)));
  }

  // Takes away the free variables that are not positive at their optimum until none is left there.
  __device__ void keep_positive() {
    for (;;) {
      take_goal();
      int own = 0;
      for_own(0, k_, [&](int64_t j) {
        wrong_[j] = free_[j] != 0 && !(x_[j] > 0);
        own += wrong_[j];
      });
      const int leaving = count_over_block(own);
      if (leaving == 0) return;
      pivots_ += leaving;
      exchange(leaving, /*anew=*/false);
    }
  }

  // The variable along which the objective falls fastest; -1 at the optimum.
  __device__ int64_t steepest() const {
    double lowest = 0;
    int64_t best = k_;
    for_own(0, k_, [&](int64_t j) {
      if (blocked_[j] != 0 || free_[j] != 0 || !(gradient_[j] < lowest)) return;
      if (!(gradient_[j] < least_gradient(j))) return;
      lowest = gradient_[j];
      best = j;
    });
    const double fastest = largest_of_block(-lowest);
    const int first = first_of(best < k_ && -lowest == fastest ? best : k_);
    return first < k_ ? first : -1;
  }

  // Goes to the optimum of the free variables, freeing it of those that would become negative.
  __device__ void move_to_optimum() {
    while (factor_.count > 0) {
      factor_.solve(goal_);
      double shortest = 2;
      for_own(0, factor_.count, [&](int64_t a) {
        if (!(goal_[a] > 0)) shortest = fmin(shortest, way_of(a));
      });
      shortest = -largest_of_block(-shortest);
      if (shortest > 1) {
        for_own(0, factor_.count, [&](int64_t a) { x_[factor_.order[a]] = goal_[a]; });
        __syncthreads();
        return;
      }
      drop_after(shortest);
    }
  }

  // How much of its way a free variable may go until it is zero.
  __device__ double way_of(int64_t a) const {
    const double here = x_[factor_.order[a]];
    return here > goal_[a] ? here / (here - goal_[a]) : 0;
  }

  __device__ void drop_after(double step) {
    int own = 0;
    for_own(0, factor_.count, [&](int64_t a) {
      const int j = factor_.order[a];
      const bool limits = !(goal_[a] > 0) && way_of(a) <= step;
      const double moved = x_[j] + step * (goal_[a] - x_[j]);
      const bool stays = !limits && moved > 0;
      x_[j] = stays ? moved : 0;
      free_[j] = stays;
      own += !stays;
    });
    pivots_ += count_over_block(own);
    remove_held();
  }

  const DeviceGram g_;
  const int64_t k_;
  double* cross_;     // [k], scaled
  double* x_;         // [k]
  double* goal_;      // [k]: of the free variables, in the order of the factor
  double* gradient_;  // [k]
  FreeFactor factor_;
  uint8_t* free_;     // [k]
  uint8_t* wrong_;    // [k]: variables on the wrong side
  uint8_t* blocked_;  // [k]: variables that may not enter before some progress
  double slack_ = 0;  // how far below zero the gradient may be, in unscaled variables
  double sum_ = 0;    // of |x|
  int64_t pivots_ = 0;
};

template <class From, class To>
__global__ void __launch_bounds__(kThreads)
    one_row_kernel(NnlsRows<From, To> rows, DeviceGrams grams, double* memory) {
  const int64_t k = rows.shape.k;
  double* const own = memory + blockIdx.x * (k * k + vectors_of_row(k));
  for (int64_t row = blockIdx.x; row < rows.shape.batch * rows.shape.n; row += gridDim.x)
    OneRow(grams[row / rows.shape.n], k, own)
        .solve(rows.cross + row * k, rows.h + row * k, rows.sets.from(row, k));
}

// u = pinv(G_FF) grad_F for F = {h > 0}, zero elsewhere, all in the units of the unscaled problem:
// M (M^T M)^-2 M^T grad_F, where M M^T = G_FF by Cholesky's method with the largest pivot first.
class MinimumNorm {
 public:
  // memory: [2 * k * k + vectors_of_row(k)]
  __device__ MinimumNorm(const DeviceGram& gram, int64_t k, double* memory)
      : gram_(gram),
        k_(k),
        M_(memory),
        gram_of_M_{memory + k * k, memory + 2 * k * k, k},
        left_(gram_of_M_.inverse + k),
        reduced_(left_ + k),
        order_(reinterpret_cast<int*>(reduced_ + k)),
        free_(reinterpret_cast<uint8_t*>(order_ + k)) {}

  template <class T>
  __device__ void solve(const T* h, const T* grad, double* u) {
    for_own(0, k_, [&](int64_t j) {
      free_[j] = h[j] > 0;
      u[j] = 0;
    });
    const int size = order_free(free_, k_, order_), rank = factorise_free(size);
    reduce(rank, size, [&](int64_t a) { return static_cast<double>(grad[order_[a]]); });
    for (int64_t row = 0; row < rank; row += kWideTile)
      for (int64_t column = 0; column <= row; column += kWideTile)
        multiply_tile(row, column, rank, size);
    __syncthreads();
    factorise(gram_of_M_, rank, 0, [&](int64_t i, int64_t j) { return gram_of_M_.column(j)[i]; });
    for (int twice = 0; twice < 2; ++twice) {
      solve_lower(gram_of_M_, rank, reduced_);
      solve_lower_transposed(gram_of_M_, rank, reduced_);
    }
    for_own(0, size, [&](int64_t a) {
      double sum = 0;
#pragma unroll 4
      for (int r = 0; r < rank; ++r) sum += M_[r * k_ + a] * reduced_[r];
      u[order_[a]] = sum;
    });
  }

 private:
  __device__ double entry(int64_t a, int64_t b) const {
    const int i = order_[a], j = order_[b];
    return gram_.values[int64_t{i} * k_ + j] / (gram_.scale[i] * gram_.scale[j]);
  }

  // Writes M [rank, k], column by column; returns the rank.
  __device__ int factorise_free(int size) {
    for_own(0, size, [&](int64_t a) { left_[a] = entry(a, a); });
    double first = 0;
    for (int rank = 0; rank < size; ++rank) {
      double own = 0;
      int64_t at = size;
      for_own(0, size, [&](int64_t a) {
        if (!(left_[a] > own)) return;
        own = left_[a];
        at = a;
      });
      const double pivot = largest_of_block(own);
      if (rank == 0) first = pivot;
      if (!(pivot > kRankTolerance * first)) return rank;
      const double where = at < size && own == pivot ? static_cast<double>(-at) : -INFINITY;
      const int64_t best = static_cast<int64_t>(-largest_of_block(where));
      const double root = sqrt(pivot);
      double* const column = M_ + rank * k_;
      for_own(0, size, [&](int64_t a) {
        double sum = entry(best, a);
#pragma unroll 4
        for (int r = 0; r < rank; ++r) sum -= M_[r * k_ + a] * M_[r * k_ + best];
        column[a] = sum / root;
        left_[a] = a == best ? 0 : left_[a] - column[a] * column[a];
      });
      __syncthreads();
    }
    return size;
  }

  // reduced = M^T b, a warp an entry.
  template <class Right>
  __device__ void reduce(int rank, int size, const Right& b) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    for (int r = static_cast<int>(threadIdx.x) / kWarp; r < rank; r += kThreads / kWarp) {
      double sum = 0;
      for (int a = lane; a < size; a += kWarp) sum += M_[r * k_ + a] * b(a);
      sum = sum_over_lanes(sum, kWarp);
      if (lane == 0) reduced_[r] = sum;
    }
  }

  // A tile of M^T M, below its diagonal.
  __device__ void multiply_tile(int64_t row, int64_t column, int rank, int size) {
    const WideSum<double> sum = wide_tile_product<double, double>(
        M_ + column * k_, k_, 1, rank - column, M_ + row * k_, k_, 1, rank - row, size);
    for (int c = 0; c < kWideEach; ++c) {
      for (int r = 0; r < kWideEach; ++r) {
        const int64_t j = column + sum.row() + c, i = row + sum.column() + r;
        if (i < rank && j < rank && i >= j) gram_of_M_.column(j)[i] = sum.values[c][r];
      }
    }
  }

  const DeviceGram gram_;
  const int64_t k_;
  double* M_;           // [k, k]
  Triangle gram_of_M_;  // [k, k]
  double* left_;        // [k]: the diagonal of what M does not have yet
  double* reduced_;     // [k]
  int* order_;          // [k]
  uint8_t* free_;       // [k]
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    one_row_backward_kernel(BackwardRows<T> rows, DeviceGrams grams, double* memory) {
  const int64_t k = rows.shape.k;
  double* const own = memory + blockIdx.x * (2 * k * k + vectors_of_row(k));
  for (int64_t row = blockIdx.x; row < rows.shape.batch * rows.shape.n; row += gridDim.x) {
    const DeviceGram gram = grams[row / rows.shape.n];
    const T *const h = rows.h + row * k, *const grad = rows.grad + row * k;
    const bool regular = OneRow(gram, k, own).solve_free(h, grad, rows.u + row * k);
    if (!regular) MinimumNorm(gram, k, own).solve(h, grad, rows.u + row * k);
    if (threadIdx.x == 0) rows.unsolved[row] = !regular;
  }
}

}  // namespace nnmf_cuda
