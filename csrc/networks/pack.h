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

// Numbers that filters need, forwards and backwards.
inline int64_t filters_size(const CnnShape& s) {
  return 2 * kFilters * s.first * s.second;
}

// The second convolution as filters, from weight(output, input, tap).
template <class T, class Weight>
void pack_filters(const CnnShape& s, const Weight& weight, const T* bias, T* memory,
                  FeatureCnn<T>& cnn) {
  T *const forward = memory, *const backward = memory + kFilters * s.first * s.second;
  for (int64_t o = 0; o < s.second; ++o)
    for (int64_t c = 0; c < s.first; ++c) {
      const T g0 = weight(o, c, 0), g1 = weight(o, c, 1), g2 = weight(o, c, 2);
      const T sum = (g0 + g1 + g2) / 2, difference = (g0 - g1 + g2) / 2;
      const T filters[kFilters] = {g0, sum, difference, g2}, turned[] = {g2, sum, difference, g0};
      for (int64_t j = 0; j < kFilters; ++j) {
        forward[(o * s.first + c) * kFilters + j] = filters[j];
        backward[(c * s.second + o) * kFilters + j] = turned[j];
      }
    }
  cnn.second = {forward, bias, s.first, s.second};
  cnn.second_backward = {backward, nullptr, s.second, s.first};
}

// Numbers that pack_feature_cnn needs for the convolutions.
inline int64_t packed_size(const CnnShape& s) {
  return 3 * s.first + filters_size(s);
}

// The network, its convolutions in `memory`, everything else where it is.
template <class T>
FeatureCnn<T> pack_feature_cnn(const CnnShape& s, const CnnWeights<T>& w, T* memory) {
  T* const first_backward = memory;
  for (int64_t c = 0; c < s.first; ++c)
    for (int64_t d = 0; d < 3; ++d) first_backward[d * s.first + c] = w.first[c * 3 + 2 - d];
  const int64_t pooled = s.second * s.n_pooled();
  FeatureCnn<T> cnn{s,
                    {w.first, w.first_bias, 3, s.first, 3},
                    {first_backward, nullptr, 1, 3 * s.first, 1},
                    {},
                    {},
                    {w.hidden, w.hidden_bias, pooled, s.hidden, pooled},
                    {w.last, w.last_bias, s.hidden, s.n_classes, s.hidden}};
  const auto weight = [&](int64_t o, int64_t c, int64_t d) {
    return w.second[(o * s.first + c) * 3 + d];
  };
  pack_filters(s, weight, w.second_bias, memory + 3 * s.first, cnn);
  return cnn;
}

}  // namespace nnmf_cuda
