// The slow and safe ways, a block a row: Lawson & Hanson for the rows that block principal pivoting
// has marked, and the gradients of rows whose free variables depend on each other; cpu/row_by_row.h
// step by step.
#pragma once

#include <algorithm>
#include <cstdint>

#include "active_set.cuh"

namespace nnmf_cuda {

// Doubles of a block's two matrices.
NNMF_CUDA_INLINE int64_t row_matrices(int64_t k) {
  return 2 * k * k;
}

// Blocks: enough for speed while their matrices stay in cache.
inline int64_t row_blocks(const RowsShape& shape) {
  const int64_t fit = (int64_t{1} << 21) / (shape.k * shape.k);
  return std::min(shape.batch * shape.n, std::clamp(fit, int64_t{8}, int64_t{2048}));
}

// Calls f(row) with all threads of the block for each of its rows that is marked. A barrier lies
// between two calls.
template <class F>
__device__ void for_marked_rows(const uint8_t* marked, int64_t rows, const F& f) {
  for (int64_t first = int64_t{blockIdx.x} * blockDim.x; first < rows;
       first += int64_t{gridDim.x} * blockDim.x) {
    const int64_t own = first + threadIdx.x;
    bool waits = own < rows && marked[own] != 0;
    for (;;) {
      const Tally left = tally_over_block(waits);
      if (left.count == 0) break;
      if (static_cast<int>(threadIdx.x) == left.first) waits = false;
      f(first + left.first);
    }
  }
}

// A lower triangular matrix with entry (i, j) at [j * stride + i].
struct LowerFactor {
  double* entries;
  int64_t stride;

  __device__ double& operator()(int64_t i, int64_t j) const { return entries[j * stride + i]; }
};

// y = L^-1 b and x = L^-T y, an entry for each of the first `size` threads; `told` [size] is
// shared.
__device__ inline double solve_lower(const LowerFactor& l, int size, double b, double* told) {
  const int own = threadIdx.x;
  for (int i = 0; i < size; ++i) {
    if (own == i) told[i] = b = b / l(i, i);
    __syncthreads();
    if (own > i && own < size) b -= l(own, i) * told[i];
  }
  return b;
}

__device__ inline double solve_lower_transposed(const LowerFactor& l, int size, double y,
                                                double* told) {
  const int own = threadIdx.x;
  for (int i = size - 1; i >= 0; --i) {
    if (own == i) told[i] = y = y / l(i, i);
    __syncthreads();
    if (own < i) y -= l(i, own) * told[i];
  }
  return y;
}

// Lawson & Hanson, a row for each block. Thread j has variable j, or the free variable at position
// j.
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

  __device__ double largest(double value) const { return largest_of_block(value); }

  // The own variable of the minimiser; `cross` is the own entry of the scaled row, and its gradient
  // may be `allowed` below zero.
  __device__ double solve(double cross, double allowed) {
    if (owns()) {
      cross_[thread()] = cross;
      x_[thread()] = 0;
      free_[thread()] = 0;
    }
    count_ = 0;
    bool blocked = false;
    // A bound against rounding only: about one step a variable is usual.
    for (int step = 0; step < 30 * k_; ++step) {
      const int entering = steepest(blocked, allowed);
      if (entering < 0) break;
      const bool stays = append(entering, /*force=*/false) && stays_at_optimum(entering);
      // One that depends on the free ones, or is thrown out at once by rounding, does not enter
      // again before some progress.
      blocked = stays ? false : blocked || thread() == entering;
    }
    return owns() ? x_[thread()] : 0;
  }

  __device__ bool is_free() const { return owns() && free_[thread()] != 0; }
  __device__ int64_t pivots() const { return pivots_; }

 private:
  __device__ int thread() const { return threadIdx.x; }
  __device__ bool owns() const { return thread() < k_; }

  // The variable along which the objective falls fastest; -1 at the optimum.
  __device__ int steepest(bool blocked, double allowed) const {
    const double sum = sum_over_block(owns() ? fabs(x_[thread()]) : 0);
    double descent = 0;
    if (owns() && !blocked && free_[thread()] == 0) {
      const double cross = cross_[thread()], size = fabs(cross);
      double left = cross;
      for (int a = 0; a < count_; ++a)
        left -= gram_.values[int64_t{order_[a]} * k_ + thread()] * x_[order_[a]];
      const double noise = gradient_tolerance(k_) * (size > sum ? size : sum);
      descent = left > noise && left > allowed ? left : 0;
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
    pivots_ += !force;
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
    pivots_ += count_ - left.count;
    count_ = 0;
    __syncthreads();
    for (int a = 0; a < left.count; ++a) append(kept_[a], /*force=*/true);
  }

  const DeviceGram gram_;
  const int k_;
  int count_ = 0;  // of the free variables
  int64_t pivots_ = 0;
  const LowerFactor factor_;
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
    const double slack = rows.slack(solver, j < k ? cross / scale : 0);
    const double x = solver.solve(cross, slack * scale);
    if (j < k) {
      rows.h[row * k + j] = static_cast<To>(x * scale);
      rows.sets.free[row * k + j] = solver.is_free();
    }
    if (j == 0) rows.sets.pivots[row] += solver.pivots();
  });
}

// Gradients of rows whose free variables depend on each other. Thread a has the free variable at
// position a.

// Writes M [size, rank], column by column, with A = M M^T, by Cholesky's method with the largest
// pivot first; A is overwritten, each column of it by one thread. Returns the rank. `told` [size]
// is shared.
__device__ inline int rank_factor(double* A, int size, double* M, double* told) {
  const int own = threadIdx.x;
  const bool in = own < size;
  double largest = 0;
  for (int rank = 0; rank < size; ++rank) {
    const double candidate = in ? A[int64_t{own} * size + own] : 0;
    const double pivot = largest_of_block(candidate);
    if (rank == 0) largest = pivot;
    if (!(pivot > kRankTolerance * largest)) return rank;
    const int best = tally_over_block(in && candidate == pivot).first;
    const double entry = in ? A[int64_t{best} * size + own] / sqrt(pivot) : 0;
    if (in) M[int64_t{rank} * size + own] = told[own] = entry;
    __syncthreads();
    if (in) {
      for (int i = 0; i < size; ++i) A[int64_t{i} * size + own] -= told[i] * entry;
      if (own == best) A[int64_t{own} * size + own] = 0;
    }
    __syncthreads();
  }
  return size;
}

// L with L L^T = M^T M for M [size, rank].
__device__ inline void factorise_gram(const double* M, int size, int rank, const LowerFactor& L) {
  const int own = threadIdx.x;
  for (int j = 0; j < rank; ++j) {
    double sum = 0;
    if (own >= j && own < rank) {
      for (int i = 0; i < size; ++i) sum += M[int64_t{own} * size + i] * M[int64_t{j} * size + i];
      for (int p = 0; p < j; ++p) sum -= L(own, p) * L(j, p);
    }
    if (own == j) L(j, j) = sqrt(sum);
    __syncthreads();
    if (own > j && own < rank) L(own, j) = sum / L(j, j);
    __syncthreads();
  }
}

// The own entry of pinv(A) b = M (M^T M)^-2 M^T b for `size` threads. A is overwritten; scratch
// [size, size]; `told` [size] is shared.
__device__ inline double solve_minimum_norm(double* A, int size, double b, double* scratch,
                                            double* told) {
  const int own = threadIdx.x;
  double* M = scratch;
  const int rank = rank_factor(A, size, M, told);
  if (own < size) told[own] = b;
  __syncthreads();
  double reduced = 0;
  if (own < rank) {
    for (int i = 0; i < size; ++i) reduced += M[int64_t{own} * size + i] * told[i];
  }
  const LowerFactor L{A, rank};
  factorise_gram(M, size, rank, L);
  for (int twice = 0; twice < 2; ++twice) {
    reduced = solve_lower(L, rank, reduced, told);
    reduced = solve_lower_transposed(L, rank, reduced, told);
  }
  double solved = 0;
  if (own < size) {
    for (int p = 0; p < rank; ++p) solved += M[int64_t{p} * size + own] * told[p];
  }
  return solved;
}

template <class T>
__global__ void __launch_bounds__(kMostThreads, 1)
    minimum_norm_kernel(BackwardRows<T> rows, DeviceGrams grams, double* matrices) {
  NNMF_CUDA_DYNAMIC_SHARED(double, told);
  const int64_t k = rows.shape.k;
  int* order = reinterpret_cast<int*>(told + k);
  double *A = matrices + blockIdx.x * row_matrices(k), *M = A + k * k;
  for_marked_rows(rows.unsolved, rows.shape.batch * rows.shape.n, [&](int64_t row) {
    const DeviceGram gram = grams[row / rows.shape.n];
    const int own = threadIdx.x;
    const bool free = own < k && rows.h[row * k + own] > 0;
    const Tally position = tally_over_block(free);
    const int size = position.count;
    if (free) order[position.before] = own;
    __syncthreads();
    const int j = own < size ? order[own] : 0;
    if (own < size) {
      for (int a = 0; a < size; ++a)
        A[int64_t{a} * size + own] =
            gram.values[order[a] * k + j] / (gram.scale[order[a]] * gram.scale[j]);
    }
    const double b = own < size ? static_cast<double>(rows.grad[row * k + j]) : 0;
    const double u = solve_minimum_norm(A, size, b, M, told);
    if (own < size) rows.u[row * k + j] = u;
  });
}

inline size_t minimum_norm_bytes(int64_t k) {
  return static_cast<size_t>(k) * (sizeof(double) + sizeof(int));
}

}  // namespace nnmf_cuda
