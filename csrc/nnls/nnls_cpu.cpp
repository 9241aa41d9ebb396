#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../common/dispatch.h"
#include "arguments.h"
#include "lawson_hanson.h"
#include "minimum_norm.h"
#include "nnls.h"

#define NNMF_CUDA_ISA_SOURCE "../nnls/active_set.h"
#include "../common/foreach_isa.h"

namespace nnmf_cuda {

RowSolver::RowSolver(int64_t n_components)
    : RowSolver(NNMF_CUDA_CHOOSE(workspace_size)(n_components, kNnlsRows)) {}

RowSolver::RowSolver(const WorkspaceSize& size)
    : doubles_(size.doubles), integers_(size.integers) {}

void RowSolver::solve(const Gram& gram, const double* cross, int64_t n, double* h) {
  if (gram.finite)
    NNMF_CUDA_CHOOSE(solve_rows)(gram, cross, n, h, workspace());
  else
    std::fill_n(h, n * gram.size, std::numeric_limits<double>::quiet_NaN());
}

void RowSolver::backward(const Gram& gram, const double* h, const double* grad, int64_t n,
                         double* u) {
  NNMF_CUDA_CHOOSE(solve_free_rows)(gram, h, grad, n, u, workspace());
}

namespace {

std::vector<PreparedGram> prepare(const Tensor& gram) {
  const Tensor values = torch::stable::contiguous(gram);
  return dispatch_floating(values.scalar_type(), [&]<class T>(Type<T>) {
    return prepare_grams(values.const_data_ptr<T>(), values.size(0), values.size(1));
  });
}

// Calls f(b, row, count) for all blocks of `count` rows of all problems b.
template <class F>
void for_row_blocks(const Tensor& rows, const F& f) {
  const int64_t n = rows.size(1), blocks = (n + kNnlsRows - 1) / kNnlsRows;
  if (rows.size(2) == 0) return;
  parallel_for_each(rows.size(0) * blocks, [&](int64_t at) {
    const int64_t row = at % blocks * kNnlsRows;
    f(at / blocks, row, std::min(kNnlsRows, n - row));
  });
}

Tensor nnls_cpu(const Tensor& gram, const Tensor& cross) {
  check_rows({"gram", gram}, {"cross", cross});
  const std::vector<PreparedGram> grams = prepare(gram);
  const Tensor rows = torch::stable::contiguous(cross);
  const Tensor solved = torch::stable::empty_like(rows);
  const int64_t n = rows.size(1), k = rows.size(2);
  dispatch_floating(rows.scalar_type(), [&]<class T>(Type<T>) {
    const T* from = rows.const_data_ptr<T>();
    T* to = solved.mutable_data_ptr<T>();
    for_row_blocks(rows, [&](int64_t b, int64_t row, int64_t count) {
      const int64_t at = (b * n + row) * k;
      std::vector<double> c(from + at, from + at + count * k), h(c.size());
      RowSolver(k).solve(grams[static_cast<std::size_t>(b)].view(), c.data(), count, h.data());
      std::copy(h.begin(), h.end(), to + at);
    });
  });
  return solved;
}

Tensor nnls_backward_cpu(const Tensor& gram, const Tensor& h, const Tensor& grad) {
  check_backward({"gram", gram}, {"h", h}, {"grad", grad});
  const std::vector<PreparedGram> grams = prepare(gram);
  const Tensor answers = torch::stable::contiguous(h), grads = torch::stable::contiguous(grad);
  const Tensor solved = torch::stable::new_empty(
      grads, {grads.size(0), grads.size(1), grads.size(2)}, std::make_optional(ScalarType::Double));
  const int64_t n = grads.size(1), k = grads.size(2);
  dispatch_floating(grads.scalar_type(), [&]<class T>(Type<T>) {
    const T *from_h = answers.const_data_ptr<T>(), *from_grad = grads.const_data_ptr<T>();
    double* to = solved.mutable_data_ptr<double>();
    for_row_blocks(grads, [&](int64_t b, int64_t row, int64_t count) {
      const int64_t at = (b * n + row) * k, end = at + count * k;
      const std::vector<double> wide_h(from_h + at, from_h + end),
          wide_grad(from_grad + at, from_grad + end);
      RowSolver(k).backward(grams[static_cast<std::size_t>(b)].view(), wide_h.data(),
                            wide_grad.data(), count, to + at);
    });
  });
  return solved;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CPU, m) {
  m.impl("nnls", TORCH_BOX(&nnls_cpu));
  m.impl("nnls_backward", TORCH_BOX(&nnls_backward_cpu));
}

}  // namespace nnmf_cuda
