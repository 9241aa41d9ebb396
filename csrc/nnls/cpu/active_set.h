// ISA source (see isa.h): non-negative least squares for many rows, one row a lane.
//
// Block principal pivoting (Kim & Park 2011, SIAM J. Sci. Comput. 33): from a guess of the free
// variables F solve G_FF x_F = c_F; every variable that is then on the wrong side (x < 0 in F,
// gradient < 0 outside) changes sides, all of them while that makes progress, otherwise the last
// one alone; a row that does not end soon is left to one_row.h. Each lane gathers its own system,
// its free variables first and the identity below, so that lanes of any F are factorised by the
// same instructions and nothing that a lane computes depends on its neighbours. A lane that is done
// takes the next row.
//
// Arrays of a group are [.., kLanes]. Needs one_row.h and minimum_norm.h.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

// All bits of a lane's integer are set or none.
typedef int64_t Mask __attribute__((vector_size(NNMF_CUDA_VECTOR_BYTES)));

// Rows and columns of a tile of the factorisation: its sums stay in registers.
constexpr int64_t kTile = NNMF_CUDA_VECTOR_BYTES == 64 ? 4 : 2;

NNMF_CUDA_INLINE Mask load_mask(const int64_t* p) {
  Mask v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

NNMF_CUDA_INLINE void store_mask(int64_t* p, const Mask& v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

NNMF_CUDA_INLINE Mask all_of(int64_t value) {
  return value - Mask{};
}

NNMF_CUDA_INLINE bool any(const Mask& mask) {
  int64_t lanes[kLanes], any = 0;
  store_mask(lanes, mask);
  for (int64_t l = 0; l < kLanes; ++l) any |= lanes[l];
  return any != 0;
}

NNMF_CUDA_INLINE Lanes absolute(const Lanes& x) {
  return (Lanes)((Mask)x & all_of(INT64_MAX));
}

NNMF_CUDA_INLINE Lanes gather(const double* from, const Mask& at) {
  int64_t lane[kLanes];
  double value[kLanes];
  store_mask(lane, at);
  for (int64_t l = 0; l < kLanes; ++l) value[l] = from[lane[l]];
  return Doubles::load(value);
}

constexpr int64_t whole_tiles(int64_t size) {
  return (size + kTile - 1) / kTile * kTile;
}

// The rows that advance together, and the memory to do it.
struct Group {
  double* cross;          // [k + 1]; the last is zero
  double* x;              // [k + 1]
  double* gradient;       // [k]
  double* solution;       // [whole_tiles(k)], of the gathered system
  double* system;         // [whole_tiles(k), whole_tiles(k)]: its lower triangle, then L
  double* pivot;          // [whole_tiles(k)]
  double* inverse_pivot;  // [whole_tiles(k)]
  double* panel;          // [whole_tiles(k), kTile]
  int64_t* free;          // [k], masks
  int64_t* wrong;         // [k], masks: variables on the wrong side
  int64_t* order;         // [whole_tiles(k) + 1]: free variables in order, then k
  int64_t* fewest;        // [1]: variables on the wrong side at the best point so far
  int64_t* patience;      // [1]: exchanges of all of them that are left without progress
  int64_t* steps;         // [1]
  int64_t* pivots;        // [1]: variables that have changed sides
  double* slack;          // [1]: how far below zero the gradient may be, in unscaled variables
};

int64_t group_doubles(int64_t k) {
  const int64_t m = whole_tiles(k);
  return (2 * (k + 1) + k + m + m * m + 2 * m + kTile * m + 1) * kLanes;
}

int64_t group_integers(int64_t k) {
  return (2 * k + whole_tiles(k) + 1 + 4) * kLanes;
}

template <class T>
NNMF_CUDA_INLINE T* take(T*& memory, int64_t vectors) {
  T* taken = memory;
  memory += vectors * kLanes;
  return taken;
}

// Takes its memory from the beginning of the workspace.
Group make_group(int64_t k, Workspace& space) {
  const int64_t m = whole_tiles(k);
  Group s;
  s.cross = take(space.doubles, k + 1);
  s.x = take(space.doubles, k + 1);
  s.gradient = take(space.doubles, k);
  s.solution = take(space.doubles, m);
  s.system = take(space.doubles, m * m);
  s.pivot = take(space.doubles, m);
  s.inverse_pivot = take(space.doubles, m);
  s.panel = take(space.doubles, kTile * m);
  s.free = take(space.integers, k);
  s.wrong = take(space.integers, k);
  s.order = take(space.integers, m + 1);
  s.fewest = take(space.integers, 1);
  s.patience = take(space.integers, 1);
  s.steps = take(space.integers, 1);
  s.pivots = take(space.integers, 1);
  s.slack = take(space.doubles, 1);
  return s;
}

// Writes each lane's free variables to `order`; returns the size of the largest system.
int64_t order_free(int64_t k, const Group& s) {
  int64_t count[kLanes] = {}, largest = 0;
  for (int64_t j = 0; j < k; ++j) {
    for (int64_t l = 0; l < kLanes; ++l) {
      s.order[count[l] * kLanes + l] = j;
      count[l] -= s.free[j * kLanes + l];
    }
  }
  for (int64_t l = 0; l < kLanes; ++l) largest = count[l] > largest ? count[l] : largest;
  const int64_t m = whole_tiles(largest);
  for (int64_t l = 0; l < kLanes; ++l)
    for (int64_t a = count[l]; a < m; ++a) s.order[a * kLanes + l] = k;
  return m;
}

void gather_system(const Gram& g, const Group& s, int64_t m) {
  Mask lane;
  for (int64_t l = 0; l < kLanes; ++l) lane[l] = l;
  for (int64_t a = 0; a < m; ++a) {
    const Mask own = load_mask(s.order + a * kLanes), row = own * (g.size + 1);
    double* to = s.system + a * m * kLanes;
    for (int64_t b = 0; b < a; ++b)
      Doubles::store(to + b * kLanes, gather(g.values, row + load_mask(s.order + b * kLanes)));
    Doubles::store(to + a * kLanes, gather(g.diagonal, own));
    Doubles::store(s.solution + a * kLanes, gather(s.cross, own * kLanes + lane));
  }
}

// One tile of A - L D L^T, the part of the first `at` columns; `rows` points to its rows of A.
NNMF_CUDA_INLINE void subtract_known(const double* rows, int64_t stride, const double* panel,
                                     int64_t at, Lanes (&tile)[kTile][kTile]) {
  for (int64_t p = 0; p < at; ++p) {
    Lanes with[kTile];
#pragma GCC unroll 4
    for (int64_t c = 0; c < kTile; ++c) with[c] = Doubles::load(panel + (p * kTile + c) * kLanes);
#pragma GCC unroll 4
    for (int64_t r = 0; r < kTile; ++r) {
      const Lanes l = Doubles::load(rows + r * stride + p * kLanes);
#pragma GCC unroll 4
      for (int64_t c = 0; c < kTile; ++c) tile[r][c] -= l * with[c];
    }
  }
}

// Factorises a tile on the diagonal; a pivot up to `least` gets the inverse zero.
NNMF_CUDA_INLINE void factorise_diagonal(Lanes (&tile)[kTile][kTile], double least, double* pivot,
                                         double* inverse_pivot) {
  Lanes scaled[kTile][kTile];  // L D
  Lanes inverse[kTile];
#pragma GCC unroll 4
  for (int64_t r = 0; r < kTile; ++r) {
#pragma GCC unroll 4
    for (int64_t c = 0; c < r; ++c) {
      scaled[r][c] = tile[r][c];
      tile[r][c] = scaled[r][c] * inverse[c];
#pragma GCC unroll 4
      for (int64_t next = c + 1; next <= r; ++next) tile[r][next] -= scaled[r][c] * tile[next][c];
    }
    const Lanes d = tile[r][r];
    const Mask good = d > Doubles::broadcast(least);
    inverse[r] = good ? 1.0 / d : Lanes{};
    Doubles::store(pivot + r * kLanes, good ? d : Lanes{});
    Doubles::store(inverse_pivot + r * kLanes, inverse[r]);
  }
}

// L D L^T of every lane's system, a tile at a time, left to right.
void factorise(const Group& s, int64_t m, double least) {
  const int64_t stride = m * kLanes;
  for (int64_t column = 0; column < m; column += kTile) {
    for (int64_t p = 0; p < column; ++p)
      for (int64_t c = 0; c < kTile; ++c)
        Doubles::store(s.panel + (p * kTile + c) * kLanes,
                       Doubles::load(s.system + (column + c) * stride + p * kLanes) *
                           Doubles::load(s.pivot + p * kLanes));
    for (int64_t row = column; row < m; row += kTile) {
      double* rows = s.system + row * stride;
      double* own = rows + column * kLanes;
      double* above = s.system + column * stride + column * kLanes;
      const bool diagonal = row == column;
      Lanes tile[kTile][kTile];
#pragma GCC unroll 4
      for (int64_t r = 0; r < kTile; ++r)
#pragma GCC unroll 4
        for (int64_t c = 0; c < kTile; ++c)
          tile[r][c] = diagonal && c > r ? Lanes{} : Doubles::load(own + r * stride + c * kLanes);
      subtract_known(rows, stride, s.panel, column, tile);
      if (diagonal) {
        factorise_diagonal(tile, least, s.pivot + column * kLanes,
                           s.inverse_pivot + column * kLanes);
      } else {
#pragma GCC unroll 4
        for (int64_t c = 0; c < kTile; ++c) {
          const Lanes inverse = Doubles::load(s.inverse_pivot + (column + c) * kLanes);
#pragma GCC unroll 4
          for (int64_t r = 0; r < kTile; ++r) {
#pragma GCC unroll 4
            for (int64_t next = c + 1; next < kTile; ++next)
              tile[r][next] -= tile[r][c] * Doubles::load(above + next * stride + c * kLanes);
            tile[r][c] *= inverse;
          }
        }
      }
#pragma GCC unroll 4
      for (int64_t r = 0; r < kTile; ++r)
#pragma GCC unroll 4
        for (int64_t c = 0; c < kTile; ++c)
          if (!diagonal || c <= r) Doubles::store(own + r * stride + c * kLanes, tile[r][c]);
    }
  }
}

// solution = A^-1 solution; zero for dependent variables.
void solve_system(const Group& s, int64_t m) {
  const int64_t stride = m * kLanes;
  for (int64_t p = 0; p < m; ++p) {
    const Lanes z = Doubles::load(s.solution + p * kLanes);
    for (int64_t i = p + 1; i < m; ++i) {
      double* to = s.solution + i * kLanes;
      Doubles::store(to, Doubles::load(to) - Doubles::load(s.system + i * stride + p * kLanes) * z);
    }
    Doubles::store(s.solution + p * kLanes, z * Doubles::load(s.inverse_pivot + p * kLanes));
  }
  for (int64_t i = m - 1; i > 0; --i) {
    const Lanes x = Doubles::load(s.solution + i * kLanes);
    for (int64_t p = 0; p < i; ++p) {
      double* to = s.solution + p * kLanes;
      Doubles::store(to, Doubles::load(to) - Doubles::load(s.system + i * stride + p * kLanes) * x);
    }
  }
}

// The same with the factor of the whole Gram matrix, which all lanes share; x = G^-1 cross.
void solve_unconstrained(const Gram& g, const Group& s) {
  const int64_t k = g.size;
  for (int64_t i = 0; i < k; ++i) {
    Lanes sum = Doubles::load(s.cross + i * kLanes);
    for (int64_t p = 0; p < i; ++p)
      sum -= g.factor[i * k + p] * Doubles::load(s.gradient + p * kLanes);
    Doubles::store(s.gradient + i * kLanes, sum);
    Doubles::store(s.x + i * kLanes, sum * g.inverse_pivot[i]);
    store_mask(s.free + i * kLanes, all_of(g.inverse_pivot[i] > 0 ? -1 : 0));
  }
  for (int64_t i = k - 1; i > 0; --i) {
    const Lanes x = Doubles::load(s.x + i * kLanes);
    for (int64_t p = 0; p < i; ++p) {
      double* to = s.x + p * kLanes;
      Doubles::store(to, Doubles::load(to) - g.factor[i * k + p] * x);
    }
  }
}

// x = the solution of the gathered system. Dependent variables are free no longer.
void scatter_solution(int64_t k, const Group& s, int64_t m) {
  for (int64_t j = 0; j < k; ++j) Doubles::store(s.x + j * kLanes, Lanes{});
  for (int64_t a = 0; a < m; ++a) {
    for (int64_t l = 0; l < kLanes; ++l)
      s.x[s.order[a * kLanes + l] * kLanes + l] = s.solution[a * kLanes + l];
    const Lanes inverse = Doubles::load(s.inverse_pivot + a * kLanes);
    if (any(inverse == Lanes{})) {
      for (int64_t l = 0; l < kLanes; ++l)
        if (inverse[l] == 0) s.free[s.order[a * kLanes + l] * kLanes + l] = 0;
    }
  }
}

// Solves each lane's free variables.
void solve_free(const Gram& g, const Group& s, double least) {
  const int64_t m = order_free(g.size, s);
  gather_system(g, s, m);
  factorise(s, m, least);
  solve_system(s, m);
  scatter_solution(g.size, s, m);
}

// gradient[i, ...] = G x - cross for `count` variables from i on.
NNMF_CUDA_INLINE void gradient_of(const Gram& g, const Group& s, int64_t i, int64_t count) {
  Lanes sum[4];
#pragma GCC unroll 4
  for (int64_t r = 0; r < count; ++r) sum[r] = -Doubles::load(s.cross + (i + r) * kLanes);
  for (int64_t j = 0; j < g.size; ++j) {
    const Lanes x = Doubles::load(s.x + j * kLanes);
#pragma GCC unroll 4
    for (int64_t r = 0; r < count; ++r) sum[r] += g.values[(i + r) * (g.size + 1) + j] * x;
  }
#pragma GCC unroll 4
  for (int64_t r = 0; r < count; ++r) Doubles::store(s.gradient + (i + r) * kLanes, sum[r]);
}

struct Outcome {
  Mask done;   // no variable is on the wrong side
  Mask wrong;  // the free variables' gradient is not zero as it should be: rounding, or NaN
};

// Looks at every variable, and exchanges those on the wrong side in the lanes that are not done.
Outcome exchange(const Gram& g, const Group& s) {
  const int64_t k = g.size;
  int64_t i = 0;
  for (; i + 4 <= k; i += 4) gradient_of(g, s, i, 4);
  for (; i < k; ++i) gradient_of(g, s, i, 1);
  Lanes sum{};
  for (int64_t j = 0; j < k; ++j) sum += absolute(Doubles::load(s.x + j * kLanes));

  Mask count{}, last{}, inexact{};
  const double tolerance = gradient_tolerance(k);
  const Lanes slack = Doubles::load(s.slack);
  for (int64_t j = 0; j < k; ++j) {
    const Mask free = load_mask(s.free + j * kLanes);
    const Lanes size = absolute(Doubles::load(s.cross + j * kLanes));
    const Lanes noise = tolerance * (size > sum ? size : sum), allowed = slack * g.scale[j];
    const Lanes x = Doubles::load(s.x + j * kLanes);
    const Lanes gradient = Doubles::load(s.gradient + j * kLanes);
    const Mask wrong = free ? x < Lanes{} : gradient < -(noise > allowed ? noise : allowed);
    inexact |= ~(absolute(gradient) <= 10 * noise) & free;
    store_mask(s.wrong + j * kLanes, wrong);
    count -= wrong;
    last = wrong ? all_of(j) : last;
  }

  const Mask progress = count < load_mask(s.fewest);
  const Mask patience = load_mask(s.patience);
  const Mask all = progress | (patience > 0);
  store_mask(s.fewest, progress ? count : load_mask(s.fewest));
  store_mask(s.patience, progress ? all_of(3) : patience + (patience > 0));
  store_mask(s.steps, load_mask(s.steps) + 1);
  store_mask(s.pivots, load_mask(s.pivots) + (all ? count : -(count > 0)));
  for (int64_t j = 0; j < k; ++j) {
    const Mask wrong = load_mask(s.wrong + j * kLanes);
    const Mask free = load_mask(s.free + j * kLanes);
    store_mask(s.free + j * kLanes, free ^ (wrong & (all | (last == j))));
  }
  return {count == 0, inexact};
}

// Loads a row into a lane; returns whether all of it is finite.
bool load_row(const Gram& g, const Group& s, int64_t lane, const double* cross, double tol) {
  double not_finite = 0;
  for (int64_t j = 0; j < g.size; ++j) {
    const double scaled = cross[j] * g.scale[j];
    not_finite += scaled * 0;
    s.cross[j * kLanes + lane] = scaled;
  }
  s.cross[g.size * kLanes + lane] = 0;
  s.fewest[lane] = g.size + 1;
  s.patience[lane] = 3;
  s.steps[lane] = 0;
  s.pivots[lane] = 0;
  s.slack[lane] = tol > 0 ? tol * largest_of(cross, g.size) : 0;
  return not_finite == 0;
}

void clear_lane(int64_t k, const Group& s, int64_t lane) {
  for (int64_t j = 0; j <= k; ++j) s.cross[j * kLanes + lane] = 0;
  for (int64_t j = 0; j < k; ++j) s.free[j * kLanes + lane] = 0;
}

// Writes a lane's answer; `safely`: solves it again by the slow way.
void store_row(const Gram& g, const Group& s, int64_t lane, bool safely, double* h,
               const ActiveSets& sets) {
  sets.pivots[0] = s.pivots[lane];
  for (int64_t j = 0; j < g.size; ++j) {
    h[j] = (s.x[j * kLanes + lane] + 0.0) * g.scale[j];  // no negative zero
    sets.free[j] = s.free[j * kLanes + lane] != 0;
  }
  if (!safely) return;
  const Scratch<double> doubles(one_row_doubles(g.size));
  const Scratch<int64_t> integers(one_row_integers(g.size));
  Workspace space{doubles.data(), integers.data()};
  double* cross = s.panel;  // as scratch memory
  for (int64_t j = 0; j < g.size; ++j) cross[j] = s.cross[j * kLanes + lane];
  OneRow(g, space).solve_safely(cross, s.slack[lane], h, sets);
}

// Rows that still have to be solved, and the free variables to start from.
struct Queue {
  int64_t* rows;  // [n]
  uint8_t* free;  // [n, k]
  int64_t size;
};

// Solves the rows whose unconstrained minimum is the answer, and queues the others with the free
// variables that it suggests.
void solve_or_queue(const Gram& g, const Group& s, const double* cross, int64_t n, double* h,
                    const ActiveSets& sets, Queue& queue) {
  const int64_t k = g.size;
  for (int64_t first = 0; first < n; first += kLanes) {
    const int64_t lanes = n - first < kLanes ? n - first : kLanes;
    bool finite[kLanes];
    for (int64_t l = 0; l < lanes; ++l)
      finite[l] = load_row(g, s, l, cross + (first + l) * k, sets.tol);
    for (int64_t l = lanes; l < kLanes; ++l) clear_lane(k, s, l);
    solve_unconstrained(g, s);
    const Outcome outcome = exchange(g, s);
    for (int64_t l = 0; l < lanes; ++l) {
      const ActiveSets own = sets.from(first + l, k);
      double* answer = h + (first + l) * k;
      if (!finite[l]) {
        store_not_finite(k, answer, own);
      } else if (outcome.done[l]) {
        store_row(g, s, l, outcome.wrong[l], answer, own);
      } else {
        uint8_t* free = queue.free + queue.size * k;
        for (int64_t j = 0; j < k; ++j) free[j] = s.free[j * kLanes + l] != 0;
        own.pivots[0] = s.pivots[l];
        queue.rows[queue.size++] = first + l;
      }
    }
  }
}

// Queues the rows with the free variables that are given.
void queue_from_start(const Gram& g, const double* cross, int64_t n, double* h,
                      const ActiveSets& sets, Queue& queue) {
  const int64_t k = g.size;
  for (int64_t row = 0; row < n; ++row) {
    double not_finite = 0;
    for (int64_t j = 0; j < k; ++j) not_finite += cross[row * k + j] * g.scale[j] * 0;
    const ActiveSets own = sets.from(row, k);
    if (not_finite != 0) {
      store_not_finite(k, h + row * k, own);
    } else {
      uint8_t* free = queue.free + queue.size * k;
      for (int64_t j = 0; j < k; ++j) free[j] = own.start[j];
      own.pivots[0] = 0;
      queue.rows[queue.size++] = row;
    }
  }
}

// Solves what is queued.
void solve_queue(const Gram& g, const Group& s, const double* cross, double* h,
                 const ActiveSets& sets, const Queue& queue) {
  const int64_t k = g.size;
  int64_t row[kLanes], next = 0, active = 0;
  for (int64_t l = 0; l < kLanes; ++l) {
    row[l] = -1;
    clear_lane(k, s, l);
  }
  for (;;) {
    for (int64_t l = 0; l < kLanes && next < queue.size; ++l) {
      if (row[l] >= 0) continue;
      row[l] = queue.rows[next];
      load_row(g, s, l, cross + row[l] * k, sets.tol);
      s.pivots[l] = sets.pivots[row[l]];
      for (int64_t j = 0; j < k; ++j) s.free[j * kLanes + l] = -int64_t{queue.free[next * k + j]};
      ++next;
      ++active;
    }
    if (active == 0) return;
    solve_free(g, s, dependent_pivot(k));
    const Outcome outcome = exchange(g, s);
    for (int64_t l = 0; l < kLanes; ++l) {
      if (row[l] < 0 || (!outcome.done[l] && s.steps[l] < kMostExchanges)) continue;
      store_row(g, s, l, !outcome.done[l] || outcome.wrong[l], h + row[l] * k,
                sets.from(row[l], k));
      clear_lane(k, s, l);
      row[l] = -1;
      --active;
    }
  }
}

// What solve_rows and solve_free_rows need for n rows.
WorkspaceSize workspace_size(int64_t k, int64_t n) {
  if (k > kMostSideBySide) return {one_row_doubles(k), one_row_integers(k)};
  return {group_doubles(k), group_integers(k) + n + (n * k + 7) / 8};
}

// h = the minimisers for the rows of cross [n, k], in the units of the unscaled problem.
void solve_rows(const Gram& g, const double* cross, int64_t n, double* h, const ActiveSets& sets,
                Workspace space) {
  if (g.size > kMostSideBySide) {
    OneRow one(g, space);
    for (int64_t row = 0; row < n; ++row)
      one.solve(cross + row * g.size, h + row * g.size, sets.from(row, g.size));
    return;
  }
  const Group s = make_group(g.size, space);
  Queue queue{space.integers, reinterpret_cast<uint8_t*>(space.integers + n), 0};
  if (sets.start == nullptr)
    solve_or_queue(g, s, cross, n, h, sets, queue);
  else
    queue_from_start(g, cross, n, h, sets, queue);
  solve_queue(g, s, cross, h, sets, queue);
}

// u = G_FF^-1 grad_F for the free variables F = {h > 0} of each row, of least norm where G_FF is
// singular, and zero elsewhere. All [n, k].
void solve_free_rows(const Gram& g, const double* h, const double* grad, int64_t n, double* u,
                     Workspace space) {
  const int64_t k = g.size;
  if (k > kMostSideBySide) {
    OneRow one(g, space);
    for (int64_t at = 0; at < n * k; at += k)
      if (!one.solve_free(h + at, grad + at, u + at))
        solve_minimum_norm(g, h + at, grad + at, u + at);
    return;
  }
  const Group s = make_group(k, space);
  for (int64_t first = 0; first < n; first += kLanes) {
    const int64_t lanes = n - first < kLanes ? n - first : kLanes;
    for (int64_t l = 0; l < kLanes; ++l) clear_lane(k, s, l);
    for (int64_t l = 0; l < lanes; ++l) {
      load_row(g, s, l, grad + (first + l) * k, 0);
      for (int64_t j = 0; j < k; ++j) s.free[j * kLanes + l] = -int64_t{h[(first + l) * k + j] > 0};
    }
    solve_free(g, s, kRankTolerance);
    for (int64_t l = 0; l < lanes; ++l) {
      const int64_t row = (first + l) * k;
      bool singular = false;
      for (int64_t j = 0; j < k; ++j) {
        singular |= h[row + j] > 0 && s.free[j * kLanes + l] == 0;
        u[row + j] = s.x[j * kLanes + l] * g.scale[j];
      }
      if (singular) solve_minimum_norm(g, h + row, grad + row, u + row);
    }
  }
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
