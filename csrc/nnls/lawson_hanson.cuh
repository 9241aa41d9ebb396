// Lawson & Hanson on the device, a row for each block: lawson_hanson.h step by step, for the rows
// that block principal pivoting has marked. Thread j has variable j, or the free variable at
// position j.
#pragma once

#include <cstdint>

#include "active_set.cuh"
#include "row_by_row.cuh"

namespace nnmf_cuda {

class BlockLawsonHanson {
 public:
  // factor: scratch [k, k]; shared: see bytes().
  __device__ BlockLawsonHanson(const DeviceGram& gram, int k, double* factor, double* shared)
      : gram_(gram),
        k_(k),
        factor_{factor, k},
        cross_(shared),
        x_(shared + k),
        told_(shared + 2 * k),
        order_(reinterpret_cast<int*>(shared + 3 * k)),
        kept_(order_ + k),
        free_(kept_ + k) {}

  static size_t bytes(int64_t k) {
    return static_cast<size_t>(k) * (3 * sizeof(double) + 3 * sizeof(int));
  }

  // The own variable of the minimiser; `cross` is the own entry of the scaled row.
  __device__ double solve(double cross) {
    if (owns()) {
      cross_[thread()] = cross;
      x_[thread()] = 0;
      free_[thread()] = 0;
    }
    count_ = 0;
    bool blocked = false;
    // A bound against rounding only: about one step a variable is usual.
    for (int step = 0; step < 30 * k_; ++step) {
      const int entering = steepest(blocked);
      if (entering < 0) break;
      const bool stays = append(entering, /*force=*/false) && stays_at_optimum(entering);
      // One that depends on the free ones, or is thrown out at once by rounding, does not enter
      // again before some progress.
      blocked = stays ? false : blocked || thread() == entering;
    }
    return owns() ? x_[thread()] : 0;
  }

 private:
  __device__ int thread() const { return threadIdx.x; }
  __device__ bool owns() const { return thread() < k_; }

  // The variable along which the objective falls fastest; -1 at the optimum.
  __device__ int steepest(bool blocked) const {
    const double sum = sum_over_block(owns() ? fabs(x_[thread()]) : 0);
    double descent = 0;
    if (owns() && !blocked && free_[thread()] == 0) {
      const double cross = cross_[thread()], size = fabs(cross);
      double left = cross;
      for (int a = 0; a < count_; ++a)
        left -= gram_.values[int64_t{order_[a]} * k_ + thread()] * x_[order_[a]];
      const double noise = gradient_tolerance(k_) * (size > sum ? size : sum);
      descent = left > noise ? left : 0;
    }
    const double fastest = largest_of_block(descent);
    const Tally best = tally_over_block(descent > 0 && descent == fastest);
    return best.count > 0 ? best.first : -1;
  }

  // Adds a row to the Cholesky factor of the free variables.
  __device__ bool append(int j, bool force) {
    const bool known = thread() < count_;
    const double y = solve_lower(
        factor_, count_, known ? gram_.values[int64_t{j} * k_ + order_[thread()]] : 0, told_);
    const double pivot = gram_.values[int64_t{j} * k_ + j] - sum_over_block(known ? y * y : 0);
    const double least = dependent_pivot(k_);
    if (!(pivot > least) && !force) return false;
    if (known) factor_(count_, thread()) = y;
    if (thread() == 0) {
      factor_(count_, count_) = sqrt(pivot > least ? pivot : least);
      order_[count_] = j;
      free_[j] = 1;
    }
    ++count_;
    __syncthreads();
    return true;
  }

  // Goes to the optimum of the free variables, freeing it of those that would become negative;
  // returns whether the one that has entered is still free.
  __device__ bool stays_at_optimum(int entering) {
    while (count_ > 0) {
      const bool own = thread() < count_;
      const int j = own ? order_[thread()] : 0;
      const double y = solve_lower(factor_, count_, own ? cross_[j] : 0, told_);
      const double goal = solve_lower_transposed(factor_, count_, y, told_);
      const double here = own ? x_[j] : 0;
      const bool negative = own && !(goal > 0);
      const double step = !negative ? 2 : here > goal ? here / (here - goal) : 0;
      const double shortest = -largest_of_block(-step);
      if (shortest > 1) {
        if (own) x_[j] = goal;
        break;
      }
      const double moved = here + shortest * (goal - here);
      drop(j, own, !(negative && step <= shortest) && moved > 0, moved);
    }
    __syncthreads();
    return free_[entering] != 0;
  }

  // Moves each free variable j; keeps those for which `stays` holds.
  __device__ void drop(int j, bool own, bool stays, double moved) {
    const Tally left = tally_over_block(own && stays);
    if (own) {
      x_[j] = stays ? moved : 0;
      free_[j] = stays;
      if (stays) kept_[left.before] = j;
    }
    count_ = 0;
    __syncthreads();
    for (int a = 0; a < left.count; ++a) append(kept_[a], /*force=*/true);
  }

  const DeviceGram gram_;
  const int k_;
  int count_ = 0;  // of the free variables
  const Triangle factor_;
  double *cross_, *x_, *told_;
  int *order_, *kept_, *free_;
};

template <class From, class To>
__global__ void __launch_bounds__(kMostThreads, 1)
    lawson_hanson_kernel(NnlsRows<From, To> rows, DeviceGrams grams, double* matrices) {
  NNMF_CUDA_DYNAMIC_SHARED(double, shared);
  const int64_t k = rows.shape.k, j = threadIdx.x;
  for_marked_rows(rows.unsolved, rows.shape.batch * rows.shape.n, [&](int64_t row) {
    const DeviceGram gram = grams[row / rows.shape.n];
    BlockLawsonHanson solver(gram, static_cast<int>(k), matrices + blockIdx.x * row_matrices(k),
                             shared);
    const double scale = j < k ? gram.scale[j] : 0;
    const double cross = j < k ? static_cast<double>(rows.cross[row * k + j]) * scale : 0;
    const double x = solver.solve(cross);
    if (j < k) rows.h[row * k + j] = static_cast<To>(x * scale);
  });
}

}  // namespace nnmf_cuda
