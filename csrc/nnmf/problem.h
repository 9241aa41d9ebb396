// Sizes and scalars of nnmf_mu and nnmf_divergence: plain C++, shared by host and device.
#pragma once

#include <cstdint>

namespace nnmf_cuda {

struct Shape {
  int64_t batch;
  int64_t n_samples;
  int64_t n_features;
  int64_t n_components;
  int64_t x_stride;      // elements from one problem's X to the next: 0 where they share it
  int64_t x_row_stride;  // elements from one row of X to the next
};

// The scalars of nnmf_mu.
struct MuOptions {
  double beta_loss;
  int64_t n_iter;
  bool update_H;
  double l1_reg_W;
  double l1_reg_H;
  double l2_reg_W;
  double l2_reg_H;
};

inline int64_t blocks_of(int64_t size, int64_t block) {
  return (size + block - 1) / block;
}

}  // namespace nnmf_cuda
