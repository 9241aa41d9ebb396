// Sizes of the networks, for the kernels of both devices. Free of torch.
#pragma once

#include <cstdint>

#include "../common/inline.h"

namespace nnmf_cuda {

constexpr int kBlockRows = 32;  // rows whose signs share a word

inline int64_t n_blocks(int64_t n_rows) {
  return blocks_of(n_rows, kBlockRows);
}

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

}  // namespace nnmf_cuda
