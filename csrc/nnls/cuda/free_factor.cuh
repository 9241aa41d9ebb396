// Cholesky's factor L of G_FF for the free variables F of one row, which come and go one at a time
// or all anew; for more variables than a block has threads. The twin of cpu/free_factor.h, by a
// block of kThreads whose threads take rows, or columns, in turns. All of it lies in memory of the
// device.
//
// All threads of the block call every function together; counts are the same in all of them. What a
// thread writes in its own turns of for_own it may read again at once, the others after a barrier.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../../nnmf/cuda/wide_product.cuh"
#include "active_set.cuh"

namespace nnmf_cuda {

constexpr int kCorner = kWideTile;  // columns that are finished together

// A lower triangular matrix and the inverses of its diagonal; a zero there stands for a variable
// that depends on those before it, and whose column is zero.
struct Triangle {
  double* entries;  // (i, j) at [j * stride + i]
  double* inverse;
  int64_t stride;

  __device__ double* column(int64_t j) const { return entries + j * stride; }
};

// The factor of a whole Gram matrix, with which rows begin whose free variables are not given.
__device__ inline Triangle triangle_of(const DeviceGram& gram, int64_t k) {
  return {const_cast<double*>(gram.factor), const_cast<double*>(gram.inverse_pivot), k};
}

// Calls f(i) for this thread's turns of [first, size).
template <class F>
__device__ __forceinline__ void for_own(int64_t first, int64_t size, const F& f) {
  for (int64_t i = first + threadIdx.x; i < size; i += kThreads) f(i);
}

NNMF_CUDA_CALLED inline double dot_product(const double* x, const double* y, int64_t size) {
  double sum = 0;
  for_own(0, size, [&](int64_t i) { sum += x[i] * y[i]; });
  return sum_over_block(sum);
}

__device__ inline int size_of_corner(int64_t first, int64_t size) {
  return static_cast<int>(size - first < kCorner ? size - first : kCorner);
}

// The corner of some columns, in shared memory.
struct Corner {
  double* entries;  // [kCorner * (kCorner + 1) / 2]: its rows up to the diagonal
  double* inverse;  // [kCorner]
};

__device__ inline double* row_of_corner(double* entries, int i) {
  return entries + i * (i + 1) / 2;
}

// Calls f(i, j) for the entries j <= i of the first `count` rows: for each thread those of one row.
template <class F>
__device__ __forceinline__ void for_corner(int count, const F& f) {
  const int i = static_cast<int>(threadIdx.x) % kCorner;
  if (i < count)
    for (int j = static_cast<int>(threadIdx.x) / kCorner; j <= i; j += kThreads / kCorner) f(i, j);
}

// Finishes the corner of columns from which those to the left are subtracted already. The corner
// keeps its rows but for the diagonal, which the inverses stand for.
__device__ __forceinline__ void finish_corner(const Triangle& t, int64_t first, int count,
                                              double least, const Corner& corner) {
  const int i = static_cast<int>(threadIdx.x) % kCorner;
  const int turn = static_cast<int>(threadIdx.x) / kCorner, turns = kThreads / kCorner;
  double* const own_row = row_of_corner(corner.entries, i);
  for_corner(count, [&](int, int j) { own_row[j] = t.column(first + j)[first + i]; });
  __syncthreads();
  for (int c = 0; c < count; ++c) {
    const double pivot = row_of_corner(corner.entries, c)[c];
    const double own = pivot > least ? 1 / sqrt(pivot) : 0;
    if (turn == 0 && i == c) corner.inverse[c] = own;
    if (turn == 0 && i > c && i < count) own_row[c] *= own;
    __syncthreads();
    if (i > c && i < count)
      for (int j = c + 1 + turn; j <= i; j += turns)
        own_row[j] -= own_row[c] * row_of_corner(corner.entries, j)[c];
    __syncthreads();
  }
  for_corner(count, [&](int, int j) {
    t.column(first + j)[first + i] = own_row[j] * (i == j ? corner.inverse[i] : 1);
  });
  if (turn == 0 && i < count) t.inverse[first + i] = corner.inverse[i];
}

// Finishes as many columns as a corner has, from which those to the left are subtracted already.
NNMF_CUDA_CALLED inline void finish_columns(const Triangle& t, int64_t first, int64_t size,
                                            double least) {
  NNMF_CUDA_SHARED(double, entries, [kCorner * (kCorner + 1) / 2]);
  NNMF_CUDA_SHARED(double, inverse, [kCorner]);
  const int count = size_of_corner(first, size);
  finish_corner(t, first, count, least, {entries, inverse});
  for_own(first + count, size, [&](int64_t row) {
    for (int c = 0; c < count; ++c) {
      double sum = t.column(first + c)[row];
#pragma unroll 8
      for (int p = 0; p < c; ++p) sum -= t.column(first + p)[row] * row_of_corner(entries, c)[p];
      t.column(first + c)[row] = sum * inverse[c];
    }
  });
  __syncthreads();
}

// L of the matrix with entry(i, j), i >= j. Pivots up to `least` count as zero.
template <class Entry>
NNMF_CUDA_CALLED void factorise(const Triangle& t, int64_t size, double least, const Entry& entry) {
  for (int64_t first = 0; first < size; first += kCorner) {
    for (int64_t row = first; row < size; row += kWideTile) {
      const WideSum<double> sum =
          wide_tile_product<double, double>(t.entries + first, 1, t.stride, size - first,
                                            t.entries + row, 1, t.stride, size - row, first);
      for (int c = 0; c < kWideEach; ++c) {
        const int64_t column = first + sum.row() + c;
        for (int r = 0; r < kWideEach; ++r) {
          const int64_t i = row + sum.column() + r;
          if (column < size && i < size && i >= column)
            t.column(column)[i] = entry(i, column) - sum.values[c][r];
        }
      }
    }
    __syncthreads();
    finish_columns(t, first, size, least);
  }
}

// y = L^-1 y for the 64 entries at `first`, or as many as there are: by one warp.
__device__ inline void solve_corner(const Triangle& t, int64_t first, int count, double* y) {
  const int lane = static_cast<int>(threadIdx.x), other = lane + kWarp;
  double low = lane < count ? y[first + lane] : 0, high = other < count ? y[first + other] : 0;
#pragma unroll 8
  for (int c = 0; c < count; ++c) {
    const double* const column = t.column(first + c) + first;
    const double known =
        __shfl_sync(kAllLanes, c < kWarp ? low : high, c % kWarp) * t.inverse[first + c];
    if (lane == c) low = known;
    if (other == c) high = known;
    if (lane > c && lane < count) low -= column[lane] * known;
    if (other > c && other < count) high -= column[other] * known;
  }
  if (lane < count) y[first + lane] = low;
  if (other < count) y[first + other] = high;
}

// The same for L^-T.
__device__ inline void solve_corner_transposed(const Triangle& t, int64_t first, int count,
                                               double* x) {
  const int lane = static_cast<int>(threadIdx.x), other = lane + kWarp;
  double low = lane < count ? x[first + lane] : 0, high = other < count ? x[first + other] : 0;
#pragma unroll 8
  for (int c = count - 1; c >= 0; --c) {
    const double known =
        __shfl_sync(kAllLanes, c < kWarp ? low : high, c % kWarp) * t.inverse[first + c];
    if (lane == c) low = known;
    if (other == c) high = known;
    if (lane < c) low -= t.column(first + lane)[first + c] * known;
    if (other < c) high -= t.column(first + other)[first + c] * known;
  }
  if (lane < count) x[first + lane] = low;
  if (other < count) x[first + other] = high;
}

// y = L^-1 y
NNMF_CUDA_CALLED inline void solve_lower(const Triangle& t, int64_t size, double* y) {
  for (int64_t first = 0; first < size; first += kCorner) {
    const int count = size_of_corner(first, size);
    if (threadIdx.x < kWarp) solve_corner(t, first, count, y);
    __syncthreads();
    for_own(first + count, size, [&](int64_t i) {
      double sum = y[i];
#pragma unroll 8
      for (int c = 0; c < count; ++c) sum -= t.column(first + c)[i] * y[first + c];
      y[i] = sum;
    });
    __syncthreads();
  }
}

// x = L^-T x
NNMF_CUDA_CALLED inline void solve_lower_transposed(const Triangle& t, int64_t size, double* x) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int64_t first = (size - 1) / kCorner * kCorner; first >= 0; first -= kCorner) {
    const int count = size_of_corner(first, size);
    const int64_t below = first + count;
    for (int c = static_cast<int>(threadIdx.x) / kWarp; below < size && c < count;
         c += kThreads / kWarp) {
      const double* const column = t.column(first + c);
      double sum = 0;
#pragma unroll 4
      for (int64_t i = below + lane; i < size; i += kWarp) sum += column[i] * x[i];
      sum = sum_over_lanes(sum, kWarp);
      if (lane == 0) x[first + c] -= sum;
    }
    __syncthreads();
    if (threadIdx.x < kWarp) solve_corner_transposed(t, first, count, x);
    __syncthreads();
  }
}

// Writes the variables for which free[j] is set to `order`; returns how many there are. What each
// thread has set in its own turns needs no barrier before.
NNMF_CUDA_CALLED inline int order_free(const uint8_t* free, int64_t k, int* order) {
  int count = 0;
  for (int64_t first = 0; first < k; first += kThreads) {
    const int64_t j = first + threadIdx.x;
    const bool own = j < k && free[j] != 0;
    const Tally tally = tally_over_block(own);
    if (own) order[count + tally.before] = static_cast<int>(j);
    count += tally.count;
  }
  __syncthreads();
  return count;
}

// The free variables of one row and their factor.
struct FreeFactor {
  const DeviceGram gram;
  const int64_t k;
  Triangle triangle;  // [k, k]
  double* z;          // [k]: L^-1 c_F
  double* row;        // [k]: scratch
  int* order;         // [k]: the free variables
  double pivot = 0;   // of the variable that was to be added last
  int count = 0;
  int updates = 0;  // variables that came or went since all was factorised

  // Factorises the variables for which free[j] is set, and takes that from those that depend on
  // variables before them.
  NNMF_CUDA_CALLED void begin(const double* cross, uint8_t* free, double least) {
    updates = 0;
    for (bool again = true; again;) {
      count = order_free(free, k, order);
      factorise(triangle, count, least, [&](int64_t i, int64_t j) {
        return gram.values[int64_t{order[j]} * k + order[i]];
      });
      bool depends = false;
      for_own(0, count, [&](int64_t a) {
        if (triangle.inverse[a] != 0) return;
        free[order[a]] = 0;
        depends = true;
      });
      again = tally_over_block(depends).count > 0;
    }
    for_own(0, count, [&](int64_t a) { z[a] = cross[order[a]]; });
    __syncthreads();
    solve_lower(triangle, count, z);
  }

  // Adds a variable, unless it depends on the free ones: then its pivot, which is rounding, and
  // row = L^-1 G_Fj are left.
  NNMF_CUDA_CALLED bool append(const double* cross, int64_t j, double least) {
    const double* const from = gram.values + j * k;
    for_own(0, count, [&](int64_t a) { row[a] = from[order[a]]; });
    __syncthreads();
    solve_lower(triangle, count, row);
    pivot = from[j] - dot_product(row, row, count);
    if (!(pivot > least)) return false;
    const double rest = cross[j] - dot_product(row, z, count);
    for_own(0, count, [&](int64_t a) { triangle.column(a)[count] = row[a]; });
    if (threadIdx.x == 0) {
      const double root = sqrt(pivot), inverse = 1 / root;
      triangle.column(count)[count] = root;
      triangle.inverse[count] = inverse;
      z[count] = rest * inverse;
      order[count] = static_cast<int>(j);
    }
    ++count;
    ++updates;
    __syncthreads();
    return true;
  }

  // Takes away the variable at a position. Rotations bring what is left of its column into those
  // behind it, which keeps the precision.
  NNMF_CUDA_CALLED void remove(int at) {
    double* const rest = row;
    for_own(at + 1, count, [&](int64_t i) { rest[i] = triangle.column(at)[i]; });
    double rest_of_z = z[at];
    __syncthreads();
    shift_rows(at);
    for (int p = at + 1; p < count; ++p) {
      const double *const own = triangle.column(p), here = z[p];
      double* const to = triangle.column(p - 1);
      const double length = sqrt(own[p] * own[p] + rest[p] * rest[p]);
      const double cosine = own[p] / length, sine = rest[p] / length;
      for_own(p + 1, count, [&](int64_t i) {
        const double first = own[i], second = rest[i];
        to[i - 1] = cosine * first + sine * second;
        rest[i] = cosine * second - sine * first;
      });
      if (threadIdx.x == 0) {
        to[p - 1] = length;
        triangle.inverse[p - 1] = 1 / length;
        z[p - 1] = cosine * here + sine * rest_of_z;
        order[p - 1] = order[p];
      }
      rest_of_z = cosine * rest_of_z - sine * here;
      __syncthreads();
    }
    --count;
    ++updates;
  }

  // row = G_FF^-1 G_Fj for the variable that was refused last.
  __device__ const double* combination() {
    solve_lower_transposed(triangle, count, row);
    return row;
  }

  // x = G_FF^-1 c_F, in the order of the free variables.
  __device__ void solve(double* x) const {
    for_own(0, count, [&](int64_t a) { x[a] = z[a]; });
    solve_lower_transposed(triangle, count, x);
  }

 private:
  // Moves what lies below the row `at` up by one in the columns before it, a warp a column.
  __device__ void shift_rows(int at) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    for (int p = static_cast<int>(threadIdx.x) / kWarp; p < at; p += kThreads / kWarp) {
      double* const column = triangle.column(p);
      for (int first = at + 1; first < count; first += kWarp) {
        const int i = first + lane;
        const double value = i < count ? column[i] : 0;
        __syncwarp();
        if (i < count) column[i - 1] = value;
      }
    }
  }
};

}  // namespace nnmf_cuda
