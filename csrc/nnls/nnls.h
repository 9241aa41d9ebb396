// Non-negative least squares from Gram matrices, for the ops that need it.
//
//   nnls(Tensor gram, Tensor cross) -> Tensor
//   nnls_backward(Tensor gram, Tensor h, Tensor grad) -> Tensor
//   project(Tensor X, Tensor H) -> Tensor
#pragma once

#include <cstdint>
#include <vector>

#include "../common/parallel.h"
#include "../common/scratch.h"
#include "gram.h"

namespace nnmf_cuda {

// One for each problem of gram [batch, size, size].
template <class T>
std::vector<PreparedGram> prepare_grams(const T* gram, int64_t batch, int64_t size) {
  std::vector<PreparedGram> prepared(static_cast<std::size_t>(batch));
  parallel_for_each(batch, [&](int64_t b) {
    prepared[static_cast<std::size_t>(b)] = PreparedGram(gram + b * size * size, size);
  });
  return prepared;
}

// Memory that active_set.h computes in, aligned to a cache line.
struct Workspace {
  double* doubles;
  int64_t* integers;
};

struct WorkspaceSize {
  int64_t doubles, integers;
};

constexpr int64_t kNnlsRows = 128;  // rows of a task: its lanes are refilled from them

// Solves up to kNnlsRows rows; one for each task, as it holds the memory.
class RowSolver {
 public:
  explicit RowSolver(int64_t n_components);

  // h = the minimisers for the rows of cross [n, k]; NaN where a row or the Gram matrix is not
  // finite
  void solve(const Gram& gram, const double* cross, int64_t n, double* h);

  // u = the gradient to cross, from the answer h and its gradient, all [n, k]
  void backward(const Gram& gram, const double* h, const double* grad, int64_t n, double* u);

 private:
  explicit RowSolver(const WorkspaceSize& size);
  Workspace workspace() const { return {doubles_.data(), integers_.data()}; }

  Scratch<double> doubles_;
  Scratch<int64_t> integers_;
};

}  // namespace nnmf_cuda
