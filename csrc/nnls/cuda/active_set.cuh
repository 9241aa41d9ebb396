// Block principal pivoting on the device: the steps and tolerances of cpu/active_set.h, a row for
// each team of threads. What the threads of a team tell each other, the Gram matrices, made ready
// as gram.h does it on the host, and what a team solves when; how it solves a system it knows
// itself (lane_team.cuh, block_team.cuh). Rows that do not end safely are marked for
// row_by_row.cuh.
#pragma once

#include <cstdint>

#include "../../common/cuda/launch.h"
#include "../rows.h"

namespace nnmf_cuda {

// Threads that solve one row together, a variable each: some lanes of a warp, or a block.
//
// All threads of a warp, or of the block, call a collective together, also where their team has
// nothing to do; so every mask is the full one. Sums have a fixed order and are the same bits in
// every thread.

// Who of a team has voted yes.
struct Tally {
  int count;
  int first, last;  // of those; meaningless where there are none
  int before;       // how many come before this thread
};

// Of a block of the slow ways; a row has fewer variables, one for each thread.
constexpr int kMostThreads = 288;

// The sum over `lanes` neighbours, a power of two.
__device__ inline double sum_over_lanes(double value, int lanes) {
  for (int apart = 1; apart < lanes; apart *= 2) value += __shfl_xor_sync(kAllLanes, value, apart);
  return value;
}

// NaN is no largest value.
__device__ inline double largest_of_lanes(double value, int lanes) {
  for (int apart = 1; apart < lanes; apart *= 2)
    value = fmax(value, __shfl_xor_sync(kAllLanes, value, apart));
  return value;
}

__device__ inline Tally tally_of(unsigned votes, int thread) {
  return {__popc(votes), __ffs(static_cast<int>(votes)) - 1, 31 - __clz(static_cast<int>(votes)),
          __popc(votes & ((1u << thread) - 1))};
}

// The whole block.
__device__ inline Tally tally_over_block(bool vote) {
  NNMF_CUDA_SHARED(unsigned, votes, [kWarp]);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const unsigned own = __ballot_sync(kAllLanes, vote);
  if (lane == 0) votes[warp] = own;
  __syncthreads();
  Tally all{0, -1, -1, 0};
  for (int w = 0; w < static_cast<int>(blockDim.x) / kWarp; ++w) {
    if (votes[w] == 0) continue;
    const Tally part = tally_of(votes[w], lane);
    if (all.count == 0) all.first = w * kWarp + part.first;
    all.last = w * kWarp + part.last;
    if (w <= warp) all.before += w < warp ? part.count : part.before;
    all.count += part.count;
  }
  __syncthreads();
  return all;
}

__device__ inline double sum_over_block(double value) {
  NNMF_CUDA_SHARED(double, sums, [kWarp]);
  value = sum_over_lanes(value, kWarp);
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = value;
  __syncthreads();
  double sum = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x) / kWarp; ++w) sum += sums[w];
  __syncthreads();
  return sum;
}

// As largest_of_lanes.
__device__ inline double largest_of_block(double value) {
  NNMF_CUDA_SHARED(double, values, [kWarp]);
  value = largest_of_lanes(value, kWarp);
  if (threadIdx.x % kWarp == 0) values[threadIdx.x / kWarp] = value;
  __syncthreads();
  double largest = values[0];
  for (int w = 1; w < static_cast<int>(blockDim.x) / kWarp; ++w) largest = fmax(largest, values[w]);
  __syncthreads();
  return largest;
}

// Threads for teams of a block whose last thread is `last`: whole warps.
inline unsigned threads_up_to(int64_t last) {
  return static_cast<unsigned>((last / kWarp + 1) * kWarp);
}

// A problem of size k in scaled variables; see Gram.
struct DeviceGram {
  const double* values;  // [k, k]
  const double* factor;  // [k, k]: L below the diagonal, mirrored above it; up to 32 variables
  const double* scale;   // [k]
  const double* inverse_pivot;  // [k]: where there is a factor
  bool finite;
};

// Those of all problems, in memory of the device.
struct DeviceGrams {
  double* memory;  // [batch, doubles_of_prepared(k)]
  int64_t k;

  __device__ double* of(int64_t b) const { return memory + b * doubles_of_prepared(k); }

  __device__ DeviceGram operator[](int64_t b) const {
    const double *values = of(b), *scale = values + 2 * k * k;
    return {values, values + k * k, scale, scale + k, scale[2 * k] != 0};
  }
};

// Powers of two that bring the diagonal into [1/2, 2]; NaN and zeros keep their units.
__device__ inline double scale_of_diagonal(double square) {
  if (!(square > 0) || square * 0 != 0) return 1;
  return ldexp(1.0, -static_cast<int>(lround(log2(square) / 2)));
}

constexpr int kPreparingThreads = 256;

// A block per problem of at most kWarp variables. Its threads are rows of one matrix, kWarp wide.
template <class T>
__global__ void __launch_bounds__(kPreparingThreads)
    prepare_gram_kernel(const T* gram, DeviceGrams grams) {
  NNMF_CUDA_SHARED(double, matrix, [kWarp][kWarp + 1]);
  NNMF_CUDA_SHARED(double, scales, [kWarp]);
  const int k = static_cast<int>(grams.k), j = static_cast<int>(threadIdx.x) % kWarp;
  const int first = static_cast<int>(threadIdx.x) / kWarp, rows = kPreparingThreads / kWarp;
  double* const values = grams.of(blockIdx.x);
  double *const factor = values + k * k, *const scale = factor + k * k, *const inverse = scale + k;
  gram += int64_t{blockIdx.x} * k * k;
  if (first == 0 && j < k)
    scale[j] = scales[j] = scale_of_diagonal(static_cast<double>(gram[j * k + j]));
  __syncthreads();
  bool finite = true;
  for (int i = first; i < k; i += rows) {
    if (j >= k) continue;
    const double sum = static_cast<double>(gram[i * k + j]) + static_cast<double>(gram[j * k + i]);
    finite = finite && sum * 0 == 0;
    matrix[i][j] = values[i * k + j] = sum / 2 * scales[i] * scales[j];
  }
  const bool all_finite = tally_over_block(!finite).count == 0;
  if (threadIdx.x == 0) inverse[k] = all_finite;
  // L D in the lower triangle: what a column takes from those behind it is subtracted at once.
  const double least = dependent_pivot(k);
  for (int p = 0; p < k; ++p) {
    const double pivot = matrix[p][p], reciprocal = pivot > least ? 1 / pivot : 0;
    if (threadIdx.x == 0) inverse[p] = reciprocal;
    for (int i = p + 1 + first; i < k; i += rows)
      if (j > p && j <= i) matrix[i][j] -= matrix[i][p] * (matrix[j][p] * reciprocal);
    __syncthreads();
  }
  for (int i = first; i < k; i += rows)
    if (j < i) factor[j * k + i] = factor[i * k + j] = matrix[i][j] * inverse[j];
}

// What h = argmin 1/2 h G h^T - c h^T is computed from; see nnls.
template <class From, class To>
struct NnlsRows {
  const From* cross;
  To* h;
  uint8_t* unsolved;  // [batch, n]: set to whether the slow way has to solve the row
  ActiveSets sets;
  RowsShape shape;

  // How far below zero the gradient of a finite row may be, in unscaled variables; all threads of
  // its team call it. `cross` is the own entry.
  template <class Team>
  __device__ double slack(Team& team, double own) const {
    return sets.tol > 0 ? sets.tol * team.largest(fabs(own)) : 0;
  }
};

// What u = G_FF^-1 grad_F is computed from; see nnls_backward.
template <class T>
struct BackwardRows {
  const T* h;
  const T* grad;
  double* u;
  uint8_t* unsolved;  // as above
  RowsShape shape;
};

// The rows that one team solves, of the problem `b`.
struct RowsOfTeam {
  int64_t b, next, step;
};

// The exchanges that a row has behind it, the same in all threads of its team.
struct Exchanges {
  int fewest;    // variables on the wrong side at the best point so far
  int patience;  // exchanges of all of them that are left without progress
  int count;
  int64_t pivots;  // variables that have changed sides
};

__device__ inline Exchanges no_exchanges(int64_t k) {
  return {static_cast<int>(k) + 1, 3, 0, 0};
}

// Counts an exchange of `wrong` variables; returns whether all of them may change sides.
__device__ inline bool count_exchange(Exchanges& past, int wrong) {
  const bool progress = wrong < past.fewest, all = progress || past.patience > 0;
  if (progress) {
    past.fewest = wrong;
    past.patience = 3;
  } else if (past.patience > 0) {
    --past.patience;
  }
  ++past.count;
  return all;
}

// Solves a team's rows. Teams of one warp advance together and take their next row one by one.
template <class Team, class From, class To>
__device__ void solve_rows(Team& team, const NnlsRows<From, To>& rows, RowsOfTeam mine) {
  const DeviceGram& gram = team.gram();
  const int64_t k = rows.shape.k;
  const int j = team.thread();  // the own variable
  const bool owns = j < k;
  const double scale = owns ? gram.scale[j] : 0, tolerance = gradient_tolerance(k);
  const double least = dependent_pivot(k);
  const bool independent = owns && team.may_be_free(j);
  bool busy = false, fresh = false, free = false;
  double cross = 0, slack = 0;
  int64_t row = 0;
  Exchanges past{};
  while (team.any(busy || mine.next < rows.shape.n)) {
    const bool takes = !busy && mine.next < rows.shape.n;
    if (takes) {
      row = mine.b * rows.shape.n + mine.next;
      mine.next += mine.step;
      cross = owns ? static_cast<double>(rows.cross[row * k + j]) * scale : 0;
    }
    const bool finite = team.tally(cross * 0 != 0).count == 0 && gram.finite;
    const double allowed = rows.slack(team, owns ? cross / scale : 0);
    if (takes) {
      busy = finite;
      fresh = finite && rows.sets.start == nullptr;
      free = finite && owns && (fresh ? independent : rows.sets.start[row * k + j]);
      slack = allowed;
      past = no_exchanges(k);
      if (!finite) {
        cross = 0;
        if (owns) {
          rows.h[row * k + j] = static_cast<To>(NAN);
          rows.sets.free[row * k + j] = false;
        }
        if (j == 0) {
          rows.unsolved[row] = 0;
          rows.sets.pivots[row] = 0;
        }
      }
    }
    if (!team.any(busy)) continue;

    // A row begins at its unconstrained minimum, or with the free variables that are given.
    const double x = team.solve(busy, fresh, free, cross, least);
    const double gradient = team.gram_times(x) - cross;
    const double sum = team.sum(fabs(x)), size = fabs(cross);
    const double noise = tolerance * (size > sum ? size : sum);
    const double least_gradient = -(noise > slack * scale ? noise : slack * scale);
    const bool wrong = free ? x < 0 : gradient < least_gradient;
    const Tally wrongs = team.tally(wrong);
    // Of free variables it is zero but for rounding, if all is well.
    const bool exact = team.tally(free && !(fabs(gradient) <= 10 * noise)).count == 0;
    if (!busy) continue;
    const bool all = fresh || count_exchange(past, wrongs.count);
    fresh = false;
    past.pivots += all ? wrongs.count : wrongs.count > 0;
    if (wrongs.count == 0 || past.count >= kMostExchanges) {
      const bool safe = wrongs.count == 0 && exact;
      if (owns && safe) {
        rows.h[row * k + j] = static_cast<To>((x + 0.0) * scale);  // no negative zero
        rows.sets.free[row * k + j] = free;
      }
      if (j == 0) {
        rows.unsolved[row] = !safe;
        rows.sets.pivots[row] = past.pivots;
      }
      busy = false;
    } else if (wrong && (all || wrongs.last == j)) {
      free = !free;
    }
  }
}

// Solves a team's rows of the backward pass; those whose free variables depend on each other are
// marked.
template <class Team, class T>
__device__ void solve_free_rows(Team& team, const BackwardRows<T>& rows, RowsOfTeam mine) {
  const int64_t k = rows.shape.k;
  const int j = team.thread();
  const double scale = j < k ? team.gram().scale[j] : 0;
  while (team.any(mine.next < rows.shape.n)) {
    const bool busy = mine.next < rows.shape.n, owns = busy && j < k;
    const int64_t row = mine.b * rows.shape.n + mine.next;
    mine.next += mine.step;
    const bool free = owns && rows.h[row * k + j] > 0;
    bool independent = free;
    const double right = free ? static_cast<double>(rows.grad[row * k + j]) * scale : 0;
    const double u = team.solve_free(independent, right, kRankTolerance);
    const bool singular = team.tally(free && !independent).count > 0;
    if (owns) rows.u[row * k + j] = u * scale;
    if (busy && j == 0) rows.unsolved[row] = singular;
  }
}

}  // namespace nnmf_cuda
