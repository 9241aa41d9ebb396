// nnls, nnls_backward and project on the CPU.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "../../common/cpu/threads.h"
#include "../ops.h"
#include "gram.h"
#include "minimum_norm.h"

namespace nnmf_cuda {
namespace {

// Memory that active_set.h computes in, aligned to a cache line.
struct Workspace {
  double* doubles;
  int64_t* integers;
};

struct WorkspaceSize {
  int64_t doubles, integers;
};

constexpr int64_t kNnlsRows = 128;    // rows of a task: its lanes are refilled from them
constexpr int64_t kProjectRows = 64;  // rows of X that one task projects
static_assert(kProjectRows <= kNnlsRows);

// Rows that are solved one at a time take long: few tasks would leave threads without work.
constexpr int64_t rows_of_task(int64_t k, int64_t usual) {
  return k > kMostSideBySide ? 4 : usual;
}

// Solves up to kNnlsRows rows; one for each task, as it holds the memory.
class RowSolver {
 public:
  explicit RowSolver(int64_t n_components);

  // h = the minimisers for the rows of cross [n, k]; NaN where a row or the Gram matrix is not
  // finite
  void solve(const Gram& gram, const double* cross, int64_t n, double* h, const ActiveSets& sets);

  // u = the gradient to cross, from the answer h and its gradient, all [n, k]
  void backward(const Gram& gram, const double* h, const double* grad, int64_t n, double* u);

 private:
  explicit RowSolver(const WorkspaceSize& size)
      : doubles_(size.doubles), integers_(size.integers) {}
  Workspace workspace() const { return {doubles_.data(), integers_.data()}; }

  Scratch<double> doubles_;
  Scratch<int64_t> integers_;
};

}  // namespace
}  // namespace nnmf_cuda

namespace nnmf_cuda {
namespace {

// Whether the products of X and H are formed in float64 whatever the factors are. More components
// than features depend on each other, and with signs that cancel the rounding of float32 pulls rows
// along combinations that change nothing, without end.
template <class T>
bool needs_exact_products(const Shape& s) {
  return sizeof(T) < sizeof(double) && s.n_components > s.n_features;
}

}  // namespace
}  // namespace nnmf_cuda

#define NNMF_CUDA_ISA_SOURCE "../../nnls/cpu/project_rows.h"
#include "../../common/cpu/isa.h"

namespace nnmf_cuda {
namespace {

RowSolver::RowSolver(int64_t n_components)
    : RowSolver(NNMF_CUDA_CHOOSE(workspace_size)(n_components, kNnlsRows)) {}

void RowSolver::solve(const Gram& gram, const double* cross, int64_t n, double* h,
                      const ActiveSets& sets) {
  if (gram.finite) return NNMF_CUDA_CHOOSE(solve_rows)(gram, cross, n, h, sets, workspace());
  std::fill_n(h, n * gram.size, std::numeric_limits<double>::quiet_NaN());
  std::fill_n(sets.free, n * gram.size, false);
  std::fill_n(sets.pivots, n, 0);
}

void RowSolver::backward(const Gram& gram, const double* h, const double* grad, int64_t n,
                         double* u) {
  NNMF_CUDA_CHOOSE(solve_free_rows)(gram, h, grad, n, u, workspace());
}

// to [batch, doubles_of_prepared] = those of gram [batch, k, k]; with factors, where rows will
// begin with them.
template <class T>
void prepare_grams(const T* gram, int64_t batch, int64_t k, bool factorised, double* to) {
  parallel_for_each(batch, [&](int64_t b) {
    PreparedGram own(to + b * doubles_of_prepared(k), k);
    own.load(gram + b * k * k);
    if (factorised && own.view().finite) own.factorise(NNMF_CUDA_CHOOSE(factorise_gram));
  });
}

// The same of H H^T. `wide` is H in float64.
void prepare_grams_of(const double* wide, const Shape& s, bool factorised, double* to) {
  const Scratch<double> gram(s.batch * s.n_components * s.n_components);
  NNMF_CUDA_CHOOSE(gram_matrices)(wide, s, gram.data());
  prepare_grams(gram.data(), s.batch, s.n_components, factorised, to);
}

// Calls f(b, first row of all, rows) for all blocks of rows of all problems b.
template <class F>
void for_row_blocks(const RowsShape& s, const F& f) {
  const int64_t together = rows_of_task(s.k, kNnlsRows), blocks = blocks_of(s.n, together);
  parallel_for_each(s.batch * blocks, [&](int64_t at) {
    const int64_t b = at / blocks, row = at % blocks * together;
    f(b, b * s.n + row, std::min(together, s.n - row));
  });
}

struct NnlsOnCpu {
  explicit NnlsOnCpu(const Tensor&) {}

  template <class G, class T>
  void solve(const G* gram, const T* cross, T* h, const ActiveSets& sets,
             const RowsShape& s) const {
    const Scratch<double> grams(s.batch * doubles_of_prepared(s.k));
    prepare_grams(gram, s.batch, s.k, sets.start == nullptr, grams.data());
    for_row_blocks(s, [&](int64_t b, int64_t row, int64_t rows) {
      const int64_t at = row * s.k;
      std::vector<double> c(cross + at, cross + at + rows * s.k), solved(c.size());
      RowSolver(s.k).solve(PreparedGram::view(grams.data() + b * doubles_of_prepared(s.k), s.k),
                           c.data(), rows, solved.data(), sets.from(row, s.k));
      std::copy(solved.begin(), solved.end(), h + at);
    });
  }

  template <class G, class T>
  void solve_backward(const G* gram, const T* h, const T* grad, double* u,
                      const RowsShape& s) const {
    const Scratch<double> grams(s.batch * doubles_of_prepared(s.k));
    prepare_grams(gram, s.batch, s.k, false, grams.data());
    for_row_blocks(s, [&](int64_t b, int64_t row, int64_t rows) {
      const int64_t at = row * s.k, end = at + rows * s.k;
      const std::vector<double> wide_h(h + at, h + end), wide_grad(grad + at, grad + end);
      RowSolver(s.k).backward(PreparedGram::view(grams.data() + b * doubles_of_prepared(s.k), s.k),
                              wide_h.data(), wide_grad.data(), rows, u + at);
    });
  }

  // Products read H as it is.
  static int64_t packed_rows(const Shape&) { return 0; }

  template <class T>
  void prepare(const FactorParams<T, T>& p, T*, double* grams) const {
    prepare_grams_of(in_float64(p).data(), p.shape, /*factorised=*/true, grams);
  }

  template <class T, class Data>
  void project(const FactorParams<T, Data>& p, double scale, T* h, const ActiveSets& sets,
               const PreparedComponents<T>& prepared) const {
    const Shape& s = p.shape;
    const double* grams = prepared.grams;
    std::vector<double> wide, own;
    if (grams == nullptr || needs_exact_products<T>(s)) wide = in_float64(p);
    if (grams == nullptr) {
      own.resize(static_cast<std::size_t>(s.batch * doubles_of_prepared(s.n_components)));
      prepare_grams_of(wide.data(), s, sets.start == nullptr, own.data());
      grams = own.data();
    }
    NNMF_CUDA_CHOOSE(project_rows<T, Data>)(p.X, p.H, wide.data(), s, scale, grams, h, sets);
  }

 private:
  template <class T, class Data>
  static std::vector<double> in_float64(const FactorParams<T, Data>& p) {
    return {p.H, p.H + p.shape.batch * p.shape.n_components * p.shape.n_features};
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CPU, m) {
  m.impl("nnls", TORCH_BOX(&nnls<NnlsOnCpu>));
  m.impl("nnls_backward", TORCH_BOX(&nnls_backward<NnlsOnCpu>));
  m.impl("prepare_components", TORCH_BOX(&prepare_components<NnlsOnCpu>));
  m.impl("project", TORCH_BOX(&project<NnlsOnCpu>));
}

}  // namespace nnmf_cuda
