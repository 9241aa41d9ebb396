// ISA source (see isa.h): Cholesky's factor L of G_FF for the free variables F of one row, which
// come and go one at a time or all anew. Column by column, so that every loop runs along memory.
// With it goes z = L^-1 c_F, as if c were one more row of L.
//
// Needs gram.h.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

using Doubles = Vector<double>;
using Lanes = Doubles::Lanes;
constexpr int64_t kLanes = Doubles::kLanes;

// A tile of the factorisation is held in registers: two vectors of rows, and columns.
constexpr int64_t kTileRows = 2 * kLanes;
constexpr int64_t kTileColumns = NNMF_CUDA_VECTOR_BYTES == 64 ? 8 : 4;
constexpr int64_t kPanel = 64;  // columns of which the rest is updated at once

static_assert(kTileRows <= kFactorRoom);

NNMF_CUDA_INLINE double sum_of(const Lanes& v) {
  double sum = 0;
  for (int64_t l = 0; l < kLanes; ++l) sum += v[l];
  return sum;
}

double dot_product(const double* x, const double* y, int64_t size) {
  Lanes sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= size; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (int64_t r = 0; r < 4; ++r)
      sums[r] += Doubles::load(x + i + r * kLanes) * Doubles::load(y + i + r * kLanes);
  }
  double sum = sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < size; ++i) sum += x[i] * y[i];
  return sum;
}

// y -= x_0 a_0 + ... + x_3 a_3 for four vectors x of `size` entries.
void subtract_four(double* y, const double* const (&x)[4], const double (&a)[4], int64_t size) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    Lanes sum = Doubles::load(y + i);
#pragma GCC unroll 4
    for (int64_t r = 0; r < 4; ++r) sum -= a[r] * Doubles::load(x[r] + i);
    Doubles::store(y + i, sum);
  }
  for (; i < size; ++i) y[i] -= x[0][i] * a[0] + x[1][i] * a[1] + x[2][i] * a[2] + x[3][i] * a[3];
}

void subtract_one(double* y, const double* x, double a, int64_t size) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes)
    Doubles::store(y + i, Doubles::load(y + i) - a * Doubles::load(x + i));
  for (; i < size; ++i) y[i] -= a * x[i];
}

// A lower triangular matrix and the inverses of its diagonal; a zero there stands for a variable
// that depends on those before it, and whose column is zero.
struct Triangle {
  double* entries;  // (i, j) at [j * stride + i]
  double* inverse;
  int64_t stride;

  NNMF_CUDA_INLINE double* column(int64_t j) const { return entries + j * stride; }
};

// One tile of C -= L_rows L_columns^T, for columns [begin, end) of L.
template <int64_t kColumns>
NNMF_CUDA_INLINE void update_tile(const Triangle& t, int64_t row, int64_t column, int64_t begin,
                                  int64_t end) {
  Lanes sums[kColumns][2];
#pragma GCC unroll 8
  for (int64_t c = 0; c < kColumns; ++c) {
    sums[c][0] = Doubles::load(t.column(column + c) + row);
    sums[c][1] = Doubles::load(t.column(column + c) + row + kLanes);
  }
  for (int64_t p = begin; p < end; ++p) {
    const double* from = t.column(p);
    const Lanes first = Doubles::load_once(from + row);
    const Lanes second = Doubles::load_once(from + row + kLanes);
#pragma GCC unroll 8
    for (int64_t c = 0; c < kColumns; ++c) {
      const Lanes with = Doubles::broadcast(from[column + c]);
      sums[c][0] -= first * with;
      sums[c][1] -= second * with;
    }
  }
#pragma GCC unroll 8
  for (int64_t c = 0; c < kColumns; ++c) {
    Doubles::store(t.column(column + c) + row, sums[c][0]);
    Doubles::store(t.column(column + c) + row + kLanes, sums[c][1]);
  }
}

// Finishes `count` columns, of which those to the left are subtracted already.
void finish_columns(const Triangle& t, int64_t first, int64_t count, int64_t size, double least) {
  for (int64_t j = first; j < first + count; ++j) {
    double* own = t.column(j);
    const double pivot = own[j], root = pivot > least ? __builtin_sqrt(pivot) : 0;
    t.inverse[j] = root > 0 ? 1 / root : 0;
    own[j] = root;
    for (int64_t i = j + 1; i < size; ++i) own[i] *= t.inverse[j];
    for (int64_t next = j + 1; next < first + count; ++next)
      subtract_one(t.column(next) + next, own + next, own[next], size - next);
  }
}

// L in the place of the lower triangle of a matrix. Pivots up to `least` count as zero. What lies
// above the diagonal and below the last row is not read, and overwritten.
void factorise(const Triangle& t, int64_t size, double least) {
  for (int64_t panel = 0; panel < size; panel += kPanel) {
    const int64_t end = panel + kPanel < size ? panel + kPanel : size;
    for (int64_t column = panel; column < end;) {
      const bool whole = column + kTileColumns <= end;
      for (int64_t row = column; row < size; row += kTileRows) {
        if (whole)
          update_tile<kTileColumns>(t, row, column, panel, column);
        else
          update_tile<1>(t, row, column, panel, column);
      }
      const int64_t count = whole ? kTileColumns : 1;
      finish_columns(t, column, count, size, least);
      column += count;
    }
    for (int64_t row = end; row < size; row += kTileRows) {
      const int64_t last = row + kTileRows < size ? row + kTileRows : size;
      int64_t column = end;
      for (; column + kTileColumns <= last; column += kTileColumns)
        update_tile<kTileColumns>(t, row, column, panel, end);
      for (; column < last; ++column) update_tile<1>(t, row, column, panel, end);
    }
  }
}

// L of a whole Gram matrix, and the inverses of its diagonal.
void factorise_gram(const Gram& g, double* factor, double* inverse_pivot) {
  const Triangle t{factor, inverse_pivot, factor_stride(g.size)};
  for (int64_t j = 0; j < g.size; ++j)
    for (int64_t i = j; i < g.size; ++i) t.column(j)[i] = g.values[j * (g.size + 1) + i];
  factorise(t, g.size, dependent_pivot(g.size));
}

// y = L^-1 y
void solve_lower(const Triangle& t, int64_t size, double* y) {
  int64_t p = 0;
  for (; p + 4 <= size; p += 4) {
    const double* const columns[4] = {t.column(p), t.column(p + 1), t.column(p + 2),
                                      t.column(p + 3)};
    double known[4];
    for (int64_t r = 0; r < 4; ++r) {
      known[r] = y[p + r];
      for (int64_t s = 0; s < r; ++s) known[r] -= columns[s][p + r] * known[s];
      y[p + r] = known[r] *= t.inverse[p + r];
    }
    const double* const below[4] = {columns[0] + p + 4, columns[1] + p + 4, columns[2] + p + 4,
                                    columns[3] + p + 4};
    subtract_four(y + p + 4, below, known, size - p - 4);
  }
  for (; p < size; ++p) {
    y[p] *= t.inverse[p];
    subtract_one(y + p + 1, t.column(p) + p + 1, y[p], size - p - 1);
  }
}

// x = L^-T x
void solve_lower_transposed(const Triangle& t, int64_t size, double* x) {
  int64_t p = size;
  for (; p % 4 != 0; --p)
    x[p - 1] = (x[p - 1] - dot_product(t.column(p - 1) + p, x + p, size - p)) * t.inverse[p - 1];
  for (; p > 0; p -= 4) {
    const int64_t first = p - 4;
    Lanes sums[4] = {};
    int64_t i = p;
    for (; i + kLanes <= size; i += kLanes) {
      const Lanes known = Doubles::load_once(x + i);
#pragma GCC unroll 4
      for (int64_t r = 0; r < 4; ++r) sums[r] += known * Doubles::load(t.column(first + r) + i);
    }
    for (int64_t r = 3; r >= 0; --r) {
      const double* own = t.column(first + r);
      double sum = x[first + r] - sum_of(sums[r]);
      for (int64_t rest = i; rest < size; ++rest) sum -= own[rest] * x[rest];
      for (int64_t s = r + 1; s < 4; ++s) sum -= own[first + s] * x[first + s];
      x[first + r] = sum * t.inverse[first + r];
    }
  }
}

// The free variables of one row and their factor.
struct FreeFactor {
  Triangle triangle;  // [size, size]
  double* z;          // [size]: L^-1 c_F
  double* row;        // [size]: scratch
  int64_t* order;     // [size]: the free variables
  double pivot = 0;   // of the variable that was to be added last
  int64_t count = 0;
  int64_t updates = 0;  // variables that came or went since all was factorised

  static int64_t doubles(int64_t size) { return (size + 4) * factor_stride(size); }
  static int64_t integers(int64_t size) { return size; }

  FreeFactor(int64_t size, double* doubles, int64_t* integers)
      : triangle{doubles, doubles + size * factor_stride(size), factor_stride(size)},
        z(triangle.inverse + factor_stride(size)),
        row(z + factor_stride(size)),
        order(integers) {}

  // Factorises the variables for which free[j] is set, and takes that from those that depend on
  // variables before them.
  void begin(const Gram& g, const double* cross, uint8_t* free, double least) {
    count = updates = 0;
    for (int64_t j = 0; j < g.size; ++j)
      if (free[j]) order[count++] = j;
    for (int64_t a = 0; a < count; ++a) {
      const double* from = g.values + order[a] * (g.size + 1);
      double* to = triangle.column(a);
      for (int64_t i = a; i < count; ++i) to[i] = from[order[i]];
    }
    factorise(triangle, count, least);
    leave_out_dependent(free);
    for (int64_t a = 0; a < count; ++a) z[a] = cross[order[a]];
    solve_lower(triangle, count, z);
  }

  // Adds a variable, unless it depends on the free ones: then its pivot, which is rounding, and
  // row = L^-1 G_Fj are left.
  bool append(const Gram& g, const double* cross, int64_t j, double least) {
    const double* from = g.values + j * (g.size + 1);
    for (int64_t a = 0; a < count; ++a) row[a] = from[order[a]];
    solve_lower(triangle, count, row);
    pivot = g.diagonal[j] - dot_product(row, row, count);
    if (!(pivot > least)) return false;
    for (int64_t a = 0; a < count; ++a) triangle.column(a)[count] = row[a];
    const double root = __builtin_sqrt(pivot), inverse = 1 / root;
    triangle.column(count)[count] = root;
    triangle.inverse[count] = inverse;
    z[count] = (cross[j] - dot_product(row, z, count)) * inverse;
    order[count++] = j;
    ++updates;
    return true;
  }

  // Takes away the variable at a position. Rotations bring what is left of its column into those
  // behind it, which keeps the precision.
  void remove(int64_t at) {
    double* rest = row;
    for (int64_t i = at + 1; i < count; ++i) rest[i] = triangle.column(at)[i];
    double rest_of_z = z[at];
    for (int64_t p = 0; p < at; ++p) {
      double* own = triangle.column(p);
      for (int64_t i = at + 1; i < count; ++i) own[i - 1] = own[i];
    }
    for (int64_t p = at + 1; p < count; ++p) {
      const double* own = triangle.column(p);
      double* to = triangle.column(p - 1);
      const double length = __builtin_sqrt(own[p] * own[p] + rest[p] * rest[p]);
      const double cosine = own[p] / length, sine = rest[p] / length;
      to[p - 1] = length;
      triangle.inverse[p - 1] = 1 / length;
      rotate(own + p + 1, rest + p + 1, to + p, cosine, sine, count - p - 1);
      const double here = z[p];
      z[p - 1] = cosine * here + sine * rest_of_z;
      rest_of_z = cosine * rest_of_z - sine * here;
      order[p - 1] = order[p];
    }
    --count;
    ++updates;
  }

  // row = G_FF^-1 G_Fj for the variable that was refused last.
  const double* combination() {
    solve_lower_transposed(triangle, count, row);
    return row;
  }

  // x = G_FF^-1 c_F, in the order of the free variables.
  void solve(double* x) const {
    for (int64_t a = 0; a < count; ++a) x[a] = z[a];
    solve_lower_transposed(triangle, count, x);
  }

 private:
  // to = cosine * own + sine * rest, and rest becomes what is orthogonal to it.
  static void rotate(const double* own, double* rest, double* to, double cosine, double sine,
                     int64_t size) {
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
      const Lanes here = Doubles::load(own + i), other = Doubles::load(rest + i);
      Doubles::store(to + i, cosine * here + sine * other);
      Doubles::store(rest + i, cosine * other - sine * here);
    }
    for (; i < size; ++i) {
      const double here = own[i], other = rest[i];
      to[i] = cosine * here + sine * other;
      rest[i] = cosine * other - sine * here;
    }
  }

  // Takes the variables without a pivot out: their columns are zero, so the others stay as they
  // are.
  void leave_out_dependent(uint8_t* free) {
    int64_t kept = 0;
    for (int64_t a = 0; a < count; ++a) {
      if (triangle.inverse[a] == 0) {
        free[order[a]] = 0;
      } else {
        row[kept++] = static_cast<double>(a);
      }
    }
    if (kept == count) return;
    for (int64_t p = 0; p < kept; ++p) {
      const int64_t from = static_cast<int64_t>(row[p]);
      double* to = triangle.column(p);
      for (int64_t i = p; i < kept; ++i)
        to[i] = triangle.column(from)[static_cast<int64_t>(row[i])];
      triangle.inverse[p] = triangle.inverse[from];
      order[p] = order[from];
    }
    count = kept;
  }
};

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
