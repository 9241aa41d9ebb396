// nnmf_sparse_cd, once for both devices: what it is given is checked here and its results are
// allocated; an Implementation computes them. X comes as the three tensors of torch's CSR, and once
// more by columns: those of X^T.
//
//   nnmf_sparse_cd(Tensor crow, Tensor col, Tensor values, Tensor ccol, Tensor row,
//                  Tensor column_values, Tensor W, Tensor H, *, int n_iter, int n_inner=1,
//                  bool update_H=True, float l1_reg_W=0., float l1_reg_H=0., float l2_reg_W=0.,
//                  float l2_reg_H=0., bool compute_divergence=False,
//                  float floor=1.1920928955078125e-07, int n_fixed=0) -> (Tensor, Tensor, Tensor)
#pragma once

#include "coordinate.h"
#include "ops.h"

namespace nnmf_cuda {

// X by columns, as kernels read it: the CSR of X^T.
struct ColumnArguments {
  ColumnArguments(const SparseArguments& rows,
                  const Tensor& ccol_,           // [n_features + 1], rows' type of index
                  const Tensor& row_,            // [n_nonzeros]
                  const Tensor& column_values_)  // [n_nonzeros]
      : shape{rows.shape.batch, rows.shape.n_features, rows.shape.n_samples,
              rows.shape.n_components, column_values_.size(0)},
        ccol(adjacent(ccol_)),
        row(adjacent(row_)),
        values(adjacent(column_values_)) {
    const Argument columns{"ccol", ccol_}, places{"row", row_}, x{"column_values", column_values_};
    check_same_dtype(x, {"W", rows.W});
    check_same_dtype(columns, {"crow", rows.crow});
    check_same_dtype(places, {"crow", rows.crow});
    for (const Argument& a : {columns, places, x}) {
      check_same_device(a, {"W", rows.W});
      check_dim(a, 1);
    }
    check_size(columns, 0, rows.shape.n_features + 1, "n_features of H and one");
    check_size(places, 0, column_values_.size(0), "that of column_values");
  }

  // Without factors: theirs are those of the problem by rows.
  template <class T, class Index>
  SparseParams<T, Index> params() const {
    return {ccol.const_data_ptr<Index>(),
            row.const_data_ptr<Index>(),
            values.const_data_ptr<T>(),
            /*W=*/nullptr,
            /*H=*/nullptr,
            shape,
            /*active=*/nullptr};
  }

  SparseShape shape;
  Tensor ccol, row, values;
};

// Implementation: constructed from a tensor of the device; descend(SparseParams by rows,
// SparseParams by columns or nullptr where H is held, Descent of W, Descent of H, n_iter, W, H)
// writes updated factors to W and H; divergence is nnmf_sparse_divergence on its device.
template <class Implementation>
std::tuple<Tensor, Tensor, Tensor> nnmf_sparse_cd(
    const Tensor& crow, const Tensor& col, const Tensor& values, const Tensor& ccol,
    const Tensor& row, const Tensor& column_values, const Tensor& W, const Tensor& H,
    int64_t n_iter, int64_t n_inner, bool update_H, double l1_reg_W, double l1_reg_H,
    double l2_reg_W, double l2_reg_H, bool compute_divergence, double floor, int64_t n_fixed) {
  const SparseArguments rows(crow, col, values, W, H);
  const ColumnArguments columns(rows, ccol, row, column_values);
  const TermRule<double> rule = checked_rule(/*beta_loss=*/1, floor, W);
  STD_TORCH_CHECK(n_fixed >= 0 && n_fixed <= rows.shape.n_components,
                  "n_fixed must be from 0 to n_components (", rows.shape.n_components, "), got ",
                  n_fixed);
  STD_TORCH_CHECK(!update_H || columns.shape.n_nonzeros == rows.shape.n_nonzeros,
                  "column_values must have as many entries as values (", rows.shape.n_nonzeros,
                  "), got ", columns.shape.n_nonzeros);
  Implementation device(W);
  Tensor new_W = torch::stable::empty_like(rows.W), new_H = torch::stable::empty_like(rows.H);
  const Descent of_W{l1_reg_W, l2_reg_W, floor, n_inner, /*n_fixed=*/0};
  const Descent of_H{l1_reg_H, l2_reg_H, floor, n_inner, n_fixed};
  with_sparse_params(rows, nullptr, [&]<class T, class Index>(const SparseParams<T, Index>& p) {
    const SparseParams<T, Index> by_columns = columns.params<T, Index>();
    device.descend(p, update_H ? &by_columns : nullptr, of_W, of_H, n_iter,
                   new_W.mutable_data_ptr<T>(), new_H.mutable_data_ptr<T>());
  });
  if (compute_divergence)
    return {new_W, new_H,
            Implementation::divergence(rows.crow, rows.col, rows.values, new_W, new_H,
                                       rule.beta_loss, rule.floor)};
  Tensor nothing = torch::stable::new_empty(new_W, {new_W.size(0)}, ScalarType::Double);
  return {new_W, new_H, torch::stable::fill_(nothing, std::numeric_limits<double>::quiet_NaN())};
}

}  // namespace nnmf_cuda
