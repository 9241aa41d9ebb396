// What `project` calls to solve the rows it has made.
#pragma once

#include <torch/csrc/stable/tensor.h>

namespace nnmf_cuda {

// gram [B, k, k], cross [B, n, k] -> h [B, n, k] of cross's dtype
torch::stable::Tensor nnls_cuda(const torch::stable::Tensor& gram,
                                const torch::stable::Tensor& cross);

}  // namespace nnmf_cuda
