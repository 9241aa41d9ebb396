#include <algorithm>
#include <cstdint>
#include <type_traits>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../common/dispatch.h"
#include "../common/parallel.h"
#include "../common/scratch.h"
#include "philox.h"
#include "philox_arguments.h"

#define NNMF_CUDA_ISA_SOURCE "../diffusion/philox_normals.h"
#include "../common/foreach_isa.h"

namespace nnmf_cuda {
namespace {

constexpr int64_t kBlockRows = 32, kBlockFeatures = 256;

int64_t blocks_of(int64_t size, int64_t block) {
  return (size + block - 1) / block;
}

// A task is a block of one step: its rows (samples and draws) and features, all entries being
// independent of how they are cut.
template <class T>
void fill(T* out, const DrawsShape& s, uint64_t seed) {
  const auto draw = NNMF_CUDA_CHOOSE(draw_normals<T>);
  const int64_t n_rows = s.n_rows * s.n_draws, row_blocks = blocks_of(n_rows, kBlockRows),
                feature_blocks = blocks_of(s.n_features, kBlockFeatures);
  parallel_for_each(s.n_steps * row_blocks * feature_blocks, [&](int64_t task) {
    const int64_t first_feature = task % feature_blocks * kBlockFeatures,
                  first_row = task / feature_blocks % row_blocks * kBlockRows,
                  step = task / feature_blocks / row_blocks;
    const int64_t rows = std::min(kBlockRows, n_rows - first_row),
                  features = std::min(kBlockFeatures, s.n_features - first_feature);
    const Scratch<T> block(kBlockRows * features);
    draw(seed, static_cast<uint32_t>(step), first_row, rows, s.n_draws, features, block.data(),
         first_feature);
    T* const to = out + (step * n_rows + first_row) * s.n_features + first_feature;
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < features; ++j)
        to[i * s.n_features + j] = block.data()[j * kBlockRows + i];
  });
}

// philox_normal(Tensor like, *, int seed, int n_steps, int n_rows, int n_draws, int n_features)
//   -> Tensor
Tensor philox_normal_cpu(const Tensor& like, int64_t seed, int64_t n_steps, int64_t n_rows,
                         int64_t n_draws, int64_t n_features) {
  const DrawsShape s = check_draws({"like", like}, n_steps, n_rows, n_draws, n_features);
  const Tensor draws =
      torch::stable::new_empty(like, {s.n_steps, s.n_rows, s.n_draws, s.n_features});
  if (draws.numel() == 0) return draws;
  dispatch_floating(like.scalar_type(), [&]<class T>(Type<T>) {
    fill(draws.mutable_data_ptr<T>(), s, static_cast<uint64_t>(seed));
  });
  return draws;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CPU, m) {
  m.impl("philox_normal", TORCH_BOX(&philox_normal_cpu));
}

}  // namespace nnmf_cuda
