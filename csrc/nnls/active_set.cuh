// Block principal pivoting on the device: the steps and tolerances of active_set.h, a row for each
// team of threads. A team knows how to solve a system (lane_team.cuh, block_team.cuh); here is
// what it solves when. Rows that do not end safely are marked for lawson_hanson.cuh.
#pragma once

#include <cstdint>

#include "gram_kernels.cuh"

namespace nnmf_cuda {

// Of the rows of all problems, [batch, n, k].
struct RowsShape {
  int64_t batch, n, k;
};

// What h = argmin 1/2 h G h^T - c h^T is computed from; see nnls.
template <class From, class To>
struct NnlsRows {
  const From* cross;
  To* h;
  uint8_t* unsolved;  // [batch, n]: set to whether the slow way has to solve the row
  RowsShape shape;
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
};

__device__ inline Exchanges no_exchanges(int64_t k) {
  return {static_cast<int>(k) + 1, 3, 0};
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
  const bool independent = owns && gram.inverse_pivot[j] > 0;
  bool busy = false, fresh = false, free = false;
  double cross = 0;
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
    if (takes) {
      busy = fresh = finite;
      free = finite && independent;
      past = no_exchanges(k);
      if (!finite) {
        cross = 0;
        if (owns) rows.h[row * k + j] = static_cast<To>(NAN);
        if (j == 0) rows.unsolved[row] = 0;
      }
    }
    if (!team.any(busy)) continue;

    // The row begins at its unconstrained minimum.
    const double x = team.solve(busy, fresh, free, cross, least);
    const double gradient = team.gram_times(x) - cross;
    const double sum = team.sum(fabs(x)), size = fabs(cross);
    const double noise = tolerance * (size > sum ? size : sum);
    const bool wrong = free ? x < 0 : gradient < -noise;
    const Tally wrongs = team.tally(wrong);
    // Of free variables it is zero but for rounding, if all is well.
    const bool exact = team.tally(free && !(fabs(gradient) <= 10 * noise)).count == 0;
    if (!busy) continue;
    const bool all = fresh || count_exchange(past, wrongs.count);
    fresh = false;
    if (wrongs.count == 0 || past.count >= 2 * k + 30) {
      const bool safe = wrongs.count == 0 && exact;
      if (owns && safe) rows.h[row * k + j] = static_cast<To>(x * scale);
      if (j == 0) rows.unsolved[row] = !safe;
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
