// Training of the networks as the CPU kernels see it.
#pragma once

#include <cstdint>

namespace nnmf_cuda {

// One step of Adam (Kingma & Ba 2015, algorithm 1) and of the moving average of the weights.
template <class T>
struct AdamStep {
  T mean_moves, square_keeps, square_moves, step_size, root_factor, epsilon, average_moves;
};

// Weights and what goes along with them: `size` numbers each, whole vectors of them.
template <class T>
struct TrainingState {
  T *weights, *mean, *square, *average, *gradient;
  int64_t size;
};

// Rows of one block, and the share of each in the mean loss of its batch.
template <class T>
struct TrainingRows {
  const T* x;
  int64_t count;
  T share;
};

}  // namespace nnmf_cuda
