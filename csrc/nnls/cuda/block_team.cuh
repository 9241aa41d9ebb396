// More than 32 variables: a block holds one row at a time, and each thread the row of the system
// that belongs to one free variable. The right-hand side is one more row below them.
#pragma once

#include <cstdint>

#include "row_by_row.cuh"

namespace nnmf_cuda {

constexpr int kPanel = 4;  // columns that are eliminated together

// The triangle of a larger system lies in memory of the device.
constexpr int64_t kMostShared = 128;

// Entries of the first rows of a lower triangle, where the next one begins: neighbours do so in
// different banks.
NNMF_CUDA_INLINE int64_t triangle_size(int64_t rows) {
  return rows * (rows + 1) / 2;
}

// One thread for each row, that of the right-hand side included.
inline unsigned block_team_threads(int64_t k) {
  return threads_up_to(k);
}

// What the threads tell each other, in shared memory.
struct BlockMemory {
  double* corner;  // [kPanel, kPanel]: rows of a panel, on the diagonal
  double* panel;   // [k, kPanel]: rows of L D, transposed
  double* pivot;   // [k]
  double* inverse_pivot;
  double* x;
  double* system;  // [triangle_size(k + 1)], where it is shared
  int* order;      // [k]: the free variables

  __device__ BlockMemory(double* shared, int64_t k)
      : corner(shared),
        panel(corner + kPanel * kPanel),
        pivot(panel + k * kPanel),
        inverse_pivot(pivot + k),
        x(inverse_pivot + k),
        system(x + k),
        order(reinterpret_cast<int*>(system + shared_system(k))) {}

  NNMF_CUDA_INLINE static int64_t shared_system(int64_t k) {
    return k <= kMostShared ? triangle_size(k + 1) : 0;
  }

  static size_t bytes(int64_t k) {
    const int64_t doubles = kPanel * kPanel + k * (kPanel + 3) + shared_system(k);
    return static_cast<size_t>(doubles) * sizeof(double) + static_cast<size_t>(k) * sizeof(int);
  }
};

class BlockTeam {
 public:
  __device__ BlockTeam(const DeviceGram& gram, int64_t k, const BlockMemory& memory, double* system)
      : gram_(gram), k_(static_cast<int>(k)), memory_(memory), system_(system) {}

  __device__ const DeviceGram& gram() const { return gram_; }
  __device__ int thread() const { return threadIdx.x; }
  __device__ bool any(bool vote) const { return vote; }  // all threads vote the same
  __device__ Tally tally(bool vote) const { return tally_over_block(vote); }
  __device__ double sum(double value) const { return sum_over_block(value); }
  __device__ double largest(double value) const { return largest_of_block(value); }

  // Solving the system tells which depend on others.
  __device__ bool may_be_free(int /*j*/) const { return true; }

  // G x, of which the others may read x until the next solve_free.
  __device__ double gram_times(double x) {
    if (thread() < k_) memory_.x[thread()] = x;
    __syncthreads();
    double sum = 0;
    if (thread() < k_) {
#pragma unroll 4
      for (int i = 0; i < k_; ++i) sum += gram_.values[int64_t{i} * k_ + thread()] * memory_.x[i];
    }
    return sum;
  }

  __device__ double solve(bool /*busy*/, bool /*fresh*/, bool& free, double cross, double least) {
    return solve_free(free, cross, least);
  }

  // As LaneTeam's.
  __device__ double solve_free(bool& free, double right, double least) {
    const Tally order = tally(free);
    const int size = order.count;
    if (free) {
      memory_.order[order.before] = thread();
      system_[triangle_size(size) + order.before] = right;
    }
    __syncthreads();
    gather(size);
    for (int column = 0; column < size; column += kPanel) eliminate(size, column, least);
    substitute(size);
    const double x = free ? memory_.x[order.before] : 0;
    free = free && memory_.inverse_pivot[order.before] != 0;
    __syncthreads();
    return x;
  }

 private:
  __device__ double* row(int i) const { return system_ + triangle_size(i); }

  // Each thread its own row, which the others read after the barriers of `eliminate`.
  __device__ void gather(int size) {
    if (thread() < size) {
      const double* own = gram_.values + memory_.order[thread()];
#pragma unroll 4
      for (int c = 0; c <= thread(); ++c) row(thread())[c] = own[int64_t{memory_.order[c]} * k_];
    }
  }

  // A panel of L D L^T from those to its left. The row of the right-hand side c becomes D^-1 L^-1
  // c.
  __device__ void eliminate(int size, int column, double least) {
    const int i = thread(), corner = i - column;
    if (i < column) {
      for (int c = 0; c < kPanel; ++c)
        memory_.panel[i * kPanel + c] =
            column + c < size ? row(column + c)[i] * memory_.pivot[i] : 0;
    }
    __syncthreads();
    double own[kPanel] = {};
    if (i >= column && i <= size) {
#pragma unroll
      for (int c = 0; c < kPanel; ++c)
        if (column + c <= i && column + c < size) own[c] = row(i)[column + c];
#pragma unroll 4
      for (int p = 0; p < column; ++p) {
        const double l = row(i)[p];
#pragma unroll
        for (int c = 0; c < kPanel; ++c) own[c] -= l * memory_.panel[p * kPanel + c];
      }
    }
    if (corner >= 0 && corner < kPanel) {
#pragma unroll
      for (int c = 0; c < kPanel; ++c) memory_.corner[corner * kPanel + c] = i < size ? own[c] : 0;
    }
    __syncthreads();
    if (i >= column && i <= size) eliminate_corner(size, column, own, least);
    __syncthreads();
  }

  // Every thread factorises the corner for itself, and so finishes its own row of the panel.
  __device__ void eliminate_corner(int size, int column, double (&own)[kPanel], double least) {
    const int i = thread();
    double corner[kPanel][kPanel];
#pragma unroll
    for (int r = 0; r < kPanel; ++r)
#pragma unroll
      for (int c = 0; c <= r; ++c) corner[r][c] = memory_.corner[r * kPanel + c];
#pragma unroll
    for (int c = 0; c < kPanel; ++c) {
      const double pivot = corner[c][c], inverse = pivot > least ? 1 / pivot : 0;
#pragma unroll
      for (int r = c + 1; r < kPanel; ++r) {
        const double l = corner[r][c] * inverse;
        own[r] -= own[c] * l;
        // Rows below still have the column times D.
#pragma unroll
        for (int below = r; below < kPanel; ++below) corner[below][r] -= corner[below][c] * l;
      }
      if (column + c < size && column + c < i) row(i)[column + c] = own[c] * inverse;
      if (column + c == i && i < size) {
        memory_.pivot[i] = inverse > 0 ? pivot : 0;
        memory_.inverse_pivot[i] = inverse;
      }
    }
  }

  // x = L^-T of the last row.
  __device__ void substitute(int size) {
    const int i = thread();
    double own = i < size ? row(size)[i] : 0;
    for (int first = (size - 1) / kPanel * kPanel; first >= 0; first -= kPanel) {
      if (i >= first && i < first + kPanel && i < size) memory_.x[i] = own;
      __syncthreads();
      double x[kPanel];
#pragma unroll
      for (int r = kPanel - 1; r >= 0; --r) {
        x[r] = first + r < size ? memory_.x[first + r] : 0;
#pragma unroll
        for (int s = r + 1; s < kPanel; ++s)
          if (first + s < size) x[r] -= row(first + s)[first + r] * x[s];
      }
#pragma unroll
      for (int r = 0; r < kPanel; ++r) {
        if (first + r < size && i < first) own -= row(first + r)[i] * x[r];
        if (first + r == i) own = x[r];
      }
    }
    __syncthreads();
    if (i < size) memory_.x[i] = own;
    __syncthreads();
  }

  const DeviceGram gram_;
  const int k_;
  const BlockMemory memory_;
  double* system_;  // [triangle_size(k + 1)]
};

// Calls f(team, rows of the team) with the block for all parts of problems that are its own; every
// problem has `parts`. `matrices` holds systems that are too large to be shared.
template <class F>
__device__ void with_block_team(const DeviceGrams& grams, int64_t batch, int64_t parts,
                                double* matrices, const F& f) {
  NNMF_CUDA_DYNAMIC_SHARED(double, shared);
  const int64_t k = grams.k;
  const BlockMemory memory(shared, k);
  double* system = k <= kMostShared ? memory.system : matrices + blockIdx.x * row_matrices(k);
  for (int64_t at = blockIdx.x; at < batch * parts; at += gridDim.x) {
    BlockTeam team(grams[at / parts], k, memory, system);
    f(team, RowsOfTeam{at / parts, at % parts, parts});
  }
}

template <class From, class To>
__global__ void __launch_bounds__(kMostThreads, 1)
    nnls_block_kernel(NnlsRows<From, To> rows, DeviceGrams grams, int64_t parts, double* matrices) {
  with_block_team(grams, rows.shape.batch, parts, matrices,
                  [&](BlockTeam& team, const RowsOfTeam& mine) { solve_rows(team, rows, mine); });
}

template <class T>
__global__ void __launch_bounds__(kMostThreads, 1)
    nnls_backward_block_kernel(BackwardRows<T> rows, DeviceGrams grams, int64_t parts,
                               double* matrices) {
  with_block_team(
      grams, rows.shape.batch, parts, matrices,
      [&](BlockTeam& team, const RowsOfTeam& mine) { solve_free_rows(team, rows, mine); });
}

}  // namespace nnmf_cuda
