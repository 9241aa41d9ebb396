// A FeatureCNN's weights as its layers want them; they come as torch keeps them.
#pragma once

#include <cstdint>

#include "network.h"

namespace nnmf_cuda {

// Weight and bias of each layer: (first, 1, 3), (second, first, 3), (hidden, second * n_pooled),
// (n_classes, hidden).
template <class T>
struct CnnWeights {
  const T *first, *first_bias, *second, *second_bias, *hidden, *hidden_bias, *last, *last_bias;
};

// Numbers that pack_feature_cnn needs for the convolutions.
inline int64_t packed_size(const CnnShape& s) {
  return 3 * s.first + 2 * 3 * s.first * s.second;
}

// The network, its convolutions in `memory`, everything else where it is.
template <class T>
FeatureCnn<T> pack_feature_cnn(const CnnShape& s, const CnnWeights<T>& w, T* memory) {
  T *const first_backward = memory, *const second = first_backward + 3 * s.first,
           *const second_backward = second + 3 * s.first * s.second;
  for (int64_t c = 0; c < s.first; ++c)
    for (int64_t d = 0; d < 3; ++d) first_backward[d * s.first + c] = w.first[c * 3 + 2 - d];
  for (int64_t o = 0; o < s.second; ++o)
    for (int64_t c = 0; c < s.first; ++c)
      for (int64_t d = 0; d < 3; ++d) {
        const T value = w.second[(o * s.first + c) * 3 + d];
        second[(o * 3 + d) * s.first + c] = value;
        second_backward[((2 - d) * s.second + o) * s.first + c] = value;
      }
  const int64_t pooled = s.second * s.n_pooled();
  return {s,
          {w.first, w.first_bias, 3, s.first, 3},
          {first_backward, nullptr, 1, 3 * s.first, 1},
          {second, w.second_bias, 3 * s.first, s.second, 3 * s.first},
          {second_backward, nullptr, s.first, 3 * s.second, s.first},
          {w.hidden, w.hidden_bias, pooled, s.hidden, pooled},
          {w.last, w.last_bias, s.hidden, s.n_classes, s.hidden}};
}

}  // namespace nnmf_cuda
