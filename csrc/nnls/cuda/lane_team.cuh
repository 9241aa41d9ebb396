// Up to 32 variables: each warp holds one to four rows, and each lane the row of the system that
// belongs to one free variable, in registers.
#pragma once

#include <cstdint>

#include "active_set.cuh"

namespace nnmf_cuda {

constexpr int kLaneThreads = 128;  // a block's

// The Gram matrix that the rows of a block share, filled up with zeros.
template <int kLanes>
struct LaneGram {
  double values[kLanes][kLanes];
  double factor[kLanes][kLanes];
};

// What the lanes of a team tell each other.
template <int kLanes>
struct LaneMemory {
  alignas(16) double column[2][kLanes];  // of the elimination, in turn
  alignas(16) double x[kLanes];
  int order[kLanes];  // the free variables
};

struct alignas(16) TwoDoubles {
  double first, second;
};

template <int kLanes>
class LaneTeam {
 public:
  static constexpr int kTeams = kLaneThreads / kLanes;  // of a block

  __device__ LaneTeam(const DeviceGram& gram, int64_t k, const LaneGram<kLanes>& shared,
                      LaneMemory<kLanes>& memory)
      : gram_(gram), k_(static_cast<int>(k)), shared_(shared), memory_(memory) {}

  __device__ const DeviceGram& gram() const { return gram_; }
  __device__ int thread() const { return threadIdx.x % kLanes; }

  // Of the warp, all of whose teams go on together.
  __device__ bool any(bool vote) const { return __any_sync(kAllLanes, vote); }

  __device__ Tally tally(bool vote) const {
    return tally_of(own_votes(__ballot_sync(kAllLanes, vote)), thread());
  }
  __device__ double sum(double value) const { return sum_over_lanes(value, kLanes); }
  __device__ double largest(double value) const { return largest_of_lanes(value, kLanes); }

  // Whether a variable does not depend on those before it.
  __device__ bool may_be_free(int j) const { return gram_.inverse_pivot[j] > 0; }

  // G x
  __device__ double gram_times(double x) {
    __syncwarp();  // all have read the last x
    memory_.x[thread()] = x;
    __syncwarp();
    double sum = 0;
    for (int i = 0; i < k_; i += 2) {
      const TwoDoubles two = load_two(memory_.x + i);
      sum += shared_.values[i][thread()] * two.first;
      sum += shared_.values[i + 1][thread()] * two.second;
    }
    return sum;
  }

  // The minimum over all variables for a fresh row, otherwise over the free ones.
  __device__ double solve(bool busy, bool fresh, bool& free, double cross, double least) {
    double x = 0;
    if (any(fresh)) x = solve_unconstrained(cross);
    if (any(busy && !fresh)) {
      bool kept = free && busy && !fresh;
      const double solved = solve_free(kept, cross, least);
      if (!fresh) {
        x = solved;
        free = kept;
      }
    }
    return x;
  }

  // x = G_FF^-1 right_F on the free variables F and zero elsewhere. A variable that depends on
  // those before it, with a pivot up to `least`, is zero and free no longer.
  __device__ double solve_free(bool& free, double right, double least) {
    const int lane = thread();
    const unsigned of_warp = __ballot_sync(kAllLanes, free);
    const Tally order = tally_of(own_votes(of_warp), lane);
    const int size = order.count, largest = largest_of_warp(of_warp);
    if (free) memory_.order[order.before] = lane;
    __syncwarp();
    const bool in = lane < size;
    const int own = in ? memory_.order[lane] : lane;
    double a[kLanes];  // a row of the matrix, then of U in L U
#pragma unroll
    for (int c = 0; c < kLanes; ++c)
      a[c] = in && c < size ? shared_.values[memory_.order[c]][own] : 0;
    double z = shuffle(right, own);
    z = in ? z : 0;

    double inverse = 0;  // of the own pivot
#pragma unroll
    for (int p = 0; p < kLanes; ++p) {
      if (p >= largest) break;
      // The row of the pivot, which is its column as well.
      double* column = memory_.column[p % 2];
      column[lane] = a[p];
      __syncwarp();
      const double pivot = column[p], reciprocal = pivot > least ? 1 / pivot : 0;
      inverse = lane == p ? reciprocal : inverse;
      const double l = lane > p ? a[p] * reciprocal : 0;
      z -= l * shuffle(z, p);
#pragma unroll
      for (int c = (p + 1) / 2 * 2; c < kLanes; c += 2) {
        if (c % 4 == 0 && c >= largest) break;
        const TwoDoubles two = load_two(column + c);
        if (c > p) a[c] -= l * two.first;
        a[c + 1] -= l * two.second;
      }
    }
#pragma unroll
    for (int p = kLanes - 1; p > 0; --p) {
      if (p >= largest) continue;
      const double x = shuffle(z * inverse, p);
      if (lane < p) z -= a[p] * x;
    }

    const unsigned dependent = own_votes(__ballot_sync(kAllLanes, in && inverse == 0));
    const double x = shuffle(z * inverse, order.before);
    const bool was_free = free;
    free = was_free && (dependent >> order.before & 1) == 0;
    return was_free ? x : 0;
  }

 private:
  __device__ static double shuffle(double value, int lane) {
    return __shfl_sync(kAllLanes, value, lane, kLanes);
  }

  __device__ static TwoDoubles load_two(const double* aligned) {
    return *reinterpret_cast<const TwoDoubles*>(aligned);
  }

  // Of a warp's votes those of one team.
  __device__ static unsigned votes_from(unsigned votes, int first_lane) {
    return votes >> first_lane & (kAllLanes >> (kWarp - kLanes));
  }

  __device__ static unsigned own_votes(unsigned votes) {
    return votes_from(votes, static_cast<int>(threadIdx.x) % kWarp / kLanes * kLanes);
  }

  // The most votes of a team. From the whole warp's, the compiler knows that all lanes have the
  // same, and that loops up to it do not part them.
  __device__ static int largest_of_warp(unsigned votes) {
    int largest = 0;
#pragma unroll
    for (int first = 0; first < kWarp; first += kLanes) {
      const int size = __popc(votes_from(votes, first));
      largest = size > largest ? size : largest;
    }
    return largest;
  }

  // With the factor that all rows share.
  __device__ double solve_unconstrained(double cross) const {
    const int lane = thread();
    for (int p = 0; p < k_; ++p) {
      const double z = shuffle(cross, p);
      if (lane > p) cross -= shared_.factor[p][lane] * z;
    }
    double x = lane < k_ ? cross * gram_.inverse_pivot[lane] : 0;
    for (int p = k_ - 1; p > 0; --p) {
      const double known = shuffle(x, p);
      if (lane < p) x -= shared_.factor[p][lane] * known;
    }
    return x;
  }

  const DeviceGram gram_;
  const int k_;
  const LaneGram<kLanes>& shared_;
  LaneMemory<kLanes>& memory_;
};

// Calls f(team, rows of the team) with all teams of the block; all of it is of one problem, which
// `parts` blocks share.
template <int kLanes, class F>
__device__ void with_lane_team(const DeviceGrams& grams, int64_t parts, const F& f) {
  using Team = LaneTeam<kLanes>;
  NNMF_CUDA_SHARED(LaneGram<kLanes>, shared, [1]);
  NNMF_CUDA_SHARED(LaneMemory<kLanes>, memory, [Team::kTeams]);
  const int64_t b = blockIdx.x / parts, part = blockIdx.x % parts, k = grams.k;
  const DeviceGram gram = grams[b];
  for (int at = threadIdx.x; at < kLanes * kLanes; at += kLaneThreads) {
    const int i = at / kLanes, j = at % kLanes;
    const bool inside = i < k && j < k;
    shared[0].values[i][j] = inside ? gram.values[i * k + j] : 0;
    shared[0].factor[i][j] = inside ? gram.factor[i * k + j] : 0;
  }
  __syncthreads();
  const int own = threadIdx.x / kLanes;
  Team team(gram, k, shared[0], memory[own]);
  f(team, RowsOfTeam{b, part * Team::kTeams + own, parts * Team::kTeams});
}

template <int kLanes, class From, class To>
__global__ void __launch_bounds__(kLaneThreads)
    nnls_lanes_kernel(NnlsRows<From, To> rows, DeviceGrams grams, int64_t parts) {
  with_lane_team<kLanes>(grams, parts, [&](LaneTeam<kLanes>& team, const RowsOfTeam& mine) {
    solve_rows(team, rows, mine);
  });
}

template <int kLanes, class T>
__global__ void __launch_bounds__(kLaneThreads)
    nnls_backward_lanes_kernel(BackwardRows<T> rows, DeviceGrams grams, int64_t parts) {
  with_lane_team<kLanes>(grams, parts, [&](LaneTeam<kLanes>& team, const RowsOfTeam& mine) {
    solve_free_rows(team, rows, mine);
  });
}

}  // namespace nnmf_cuda
