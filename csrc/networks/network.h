// The networks as the kernels of both devices see them: sizes and pointers.
#pragma once

#include <cstdint>

namespace nnmf_cuda {

constexpr int64_t kBlockRows = 32;  // rows whose signs share a word

inline int64_t n_blocks(int64_t n_rows) {
  return (n_rows + kBlockRows - 1) / kBlockRows;
}

// out[o] = bias[o] + sum_i weight[o * stride + i] in[i].
template <class T>
struct Dense {
  const T *weight, *bias;
  int64_t inputs, outputs, stride;
};

// ReLU after every layer but the last. The first layer's inputs are the features alone: what the
// embedding of t adds is part of its bias.
template <class T>
struct Mlp {
  const Dense<T>* layers;
  int64_t n_layers;
};

constexpr int64_t kMostLayers = 16;

// Sizes of a FeatureCNN. Its words of signs: the first convolution's, position by position; the
// pooled units', channel by channel; which of its pair each of these is; the hidden layer's.
struct CnnShape {
  int64_t n_features, first, second, hidden, n_classes;

  int64_t n_pooled() const { return n_features / 2; }
  int64_t pooled_at() const { return n_features * first; }
  int64_t pairs_at() const { return pooled_at() + second * n_pooled(); }
  int64_t hidden_at() const { return pairs_at() + second * n_pooled(); }
  int64_t n_words() const { return hidden_at() + hidden; }

  int64_t n_weights() const {
    return first * 4 + second * (3 * first + 1) + hidden * (second * n_pooled() + 1) +
           n_classes * (hidden + 1);
  }
};

constexpr int64_t kFilters = 4;

// A convolution for two positions at once: filters.h says how. weight: [outputs][inputs][kFilters].
template <class T>
struct Filters {
  const T *weight, *bias;
  int64_t inputs, outputs;
};

// The first convolution is a dense layer at each position, over three positions of one channel.
// Backwards a convolution is another one, over three positions of the gradient, with the kernel
// turned round.
template <class T>
struct FeatureCnn {
  CnnShape shape;
  Dense<T> first, first_backward;
  Filters<T> second, second_backward;
  Dense<T> hidden, last;
};

// Columns of a matrix that whole tiles read or write: of every instruction set.
inline int64_t padded(int64_t n_columns) {
  return (n_columns + 31) / 32 * 32;
}

// Sums of the gradients of a layer's weights, [outputs][padded(inputs)], and of its bias.
template <class T>
struct LayerSums {
  T *weight, *bias;
};

}  // namespace nnmf_cuda
