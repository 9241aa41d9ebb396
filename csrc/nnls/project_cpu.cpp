#include <algorithm>
#include <cstdint>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../common/dispatch.h"
#include "../common/scratch.h"
#include "nnls.h"

#define NNMF_CUDA_ISA_SOURCE "../nnls/cross.h"
#include "../common/foreach_isa.h"

namespace nnmf_cuda {
namespace {

constexpr int64_t kBlockRows = 64;  // of X that one task projects
static_assert(kBlockRows <= kNnlsRows);

struct ProjectShape {
  int64_t batch, n_samples, n_features, n_components;
  int64_t x_stride, x_row_stride;  // of X, from one problem to the next and from row to row
};

// The components of all problems, packed for products with rows of a matrix.
template <class T>
class Components {
 public:
  template <class Data>
  Components(const Data* H, const ProjectShape& s)
      : shape_(s),
        size_(NNMF_CUDA_CHOOSE(packed_size<T>)(s.n_components, s.n_features)),
        packed_(s.batch * size_) {
    const int64_t k = s.n_components, f = s.n_features;
    torch::stable::parallel_for(0, s.batch, 1, [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b)
        NNMF_CUDA_CHOOSE(pack_components<T, Data>)(H + b * k * f, f, k, f,
                                                   packed_.data() + b * size_);
    });
  }

  const ProjectShape& shape() const { return shape_; }
  const T* operator[](int64_t b) const { return packed_.data() + b * size_; }

 private:
  ProjectShape shape_;
  int64_t size_;
  Scratch<T> packed_;
};

// Products of a block of rows, and the memory to compute them.
template <class T>
class CrossBlock {
 public:
  explicit CrossBlock(const Components<T>& components)
      : components_(components),
        panel_(NNMF_CUDA_CHOOSE(panel_size<T>)()),
        totals_(NNMF_CUDA_CHOOSE(totals_size)(kBlockRows, components.shape().n_components)) {}

  // cross [count, n_components] = the products of `count` rows with the components of problem b
  template <class Data>
  void compute(const Data* rows, int64_t stride, int64_t count, int64_t b, double* cross) const {
    const ProjectShape& s = components_.shape();
    const double scale = std::is_same_v<Data, uint8_t> ? 1.0 / 255 : 1.0;
    NNMF_CUDA_CHOOSE(cross_products<T, Data>)(rows, stride, count, s.n_features, components_[b],
                                              s.n_components, scale, panel_.data(), totals_.data(),
                                              cross);
  }

 private:
  const Components<T>& components_;
  Scratch<T> panel_;
  Scratch<double> totals_;
};

// Calls f(b, row, count) for all blocks of `count` rows of all problems b.
template <class F>
void for_blocks(int64_t batch, int64_t rows, const F& f) {
  const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
  torch::stable::parallel_for(0, batch * blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t at = first; at < last; ++at) {
      const int64_t row = at % blocks * kBlockRows;
      f(at / blocks, row, std::min(kBlockRows, rows - row));
    }
  });
}

// H H^T in float64, [batch, n_components, n_components].
template <class T>
std::vector<double> grams_of(const T* H, const ProjectShape& s) {
  const int64_t k = s.n_components, f = s.n_features;
  const Components<double> components(H, s);
  std::vector<double> gram(static_cast<std::size_t>(s.batch * k * k));
  for_blocks(s.batch, k, [&](int64_t b, int64_t row, int64_t count) {
    const int64_t at = b * k + row;
    CrossBlock<double>(components).compute(H + at * f, f, count, b, gram.data() + at * k);
  });
  return gram;
}

template <class T, class Data>
void project_rows(const Data* X, const T* H, const ProjectShape& s, T* out) {
  const int64_t n = s.n_samples, k = s.n_components;
  const std::vector<PreparedGram> grams = prepare_grams(grams_of(H, s).data(), s.batch, k);
  const Components<T> components(H, s);
  for_blocks(s.batch, n, [&](int64_t b, int64_t row, int64_t count) {
    std::vector<double> cross(static_cast<std::size_t>(count * k)), h(cross.size());
    CrossBlock<T>(components)
        .compute(X + b * s.x_stride + row * s.x_row_stride, s.x_row_stride, count, b, cross.data());
    RowSolver(k).solve(grams[static_cast<std::size_t>(b)].view(), cross.data(), count, h.data());
    std::copy(h.begin(), h.end(), out + (b * n + row) * k);
  });
}

ProjectShape check_project(const Tensor& X, const Tensor& H) {
  const Argument x{"X", X}, h{"H", H};
  check_floating(h);
  if (X.scalar_type() != ScalarType::Byte) check_same_dtype(x, h);
  check_same_device(x, h);
  check_dim(h, 3);
  const bool shared = X.dim() == 2;
  if (!shared) check_dim(x, 3);
  const int64_t rows = shared ? 0 : 1;
  if (!shared) check_size(x, 0, H.size(0), "batch of H");
  check_size(x, rows + 1, H.size(2), "n_features of H");
  return {H.size(0), X.size(rows), H.size(2), H.size(1), shared ? 0 : X.stride(0), X.stride(rows)};
}

Tensor project_cpu(const Tensor& X, const Tensor& H) {
  // Rows may lie anywhere; the values of a row lie side by side.
  const Tensor x = X.dim() > 0 && X.stride(X.dim() - 1) != 1 ? torch::stable::contiguous(X) : X;
  const ProjectShape s = check_project(x, H);
  const Tensor components = torch::stable::contiguous(H);
  const Tensor out = torch::stable::new_empty(components, {s.batch, s.n_samples, s.n_components});
  if (s.batch * s.n_samples * s.n_components == 0) return out;
  dispatch_floating(H.scalar_type(), [&]<class T>(Type<T>) {
    dispatch_data<T>(x.scalar_type(), [&]<class Data>(Type<Data>) {
      project_rows(x.const_data_ptr<Data>(), components.const_data_ptr<T>(), s,
                   out.mutable_data_ptr<T>());
    });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CPU, m) {
  m.impl("project", TORCH_BOX(&project_cpu));
}

}  // namespace nnmf_cuda
