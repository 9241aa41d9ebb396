// The networks' weights as their CPU layers want them; they come as torch keeps them. And where
// gradients of them are summed, and how those become one vector in torch's layout.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../network.h"

namespace nnmf_cuda {

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

constexpr int64_t kFilters = 4;

// A convolution for two positions at once: feature_cnn.h says how. weight:
// [outputs][inputs][kFilters].
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

// Places of the sums of some layers in one piece of memory.
class SumsLayout {
 public:
  // A layer's place; later layers may share its matrix by `of_other_bias`.
  void add(int64_t outputs, int64_t inputs) {
    places_.push_back({size_, size_ + outputs * padded(inputs)});
    size_ += outputs * padded(inputs) + padded(outputs);
  }
  void add_bias(int64_t layer, int64_t outputs) {
    places_.push_back({places_[static_cast<std::size_t>(layer)].weight, size_});
    size_ += padded(outputs);
  }

  int64_t size() const { return size_; }

  template <class T>
  std::vector<LayerSums<T>> in(T* memory) const {
    std::vector<LayerSums<T>> sums;
    for (const Place& place : places_) sums.push_back({memory + place.weight, memory + place.bias});
    return sums;
  }

 private:
  struct Place {
    int64_t weight, bias;
  };

  std::vector<Place> places_;
  int64_t size_ = 0;
};

inline void add_cnn(const CnnShape& s, SumsLayout& layout) {
  layout.add(s.first, 3);
  layout.add(s.second, 3 * s.first);
  layout.add(s.hidden, s.second * s.n_pooled());
  layout.add(s.n_classes, s.hidden);
}

// The sums of a dense layer, [outputs][inputs] and [outputs], at `to`; returns what follows.
template <class Sum, class T>
T* write_dense(const LayerSums<Sum>& sums, int64_t outputs, int64_t inputs, T* to) {
  for (int64_t o = 0; o < outputs; ++o)
    for (int64_t i = 0; i < inputs; ++i)
      *to++ = static_cast<T>(sums.weight[o * padded(inputs) + i]);
  for (int64_t o = 0; o < outputs; ++o) *to++ = static_cast<T>(sums.bias[o]);
  return to;
}

// The same of a convolution, [outputs][inputs][3].
template <class Sum, class T>
T* write_convolution(const LayerSums<Sum>& sums, int64_t outputs, int64_t inputs, T* to) {
  for (int64_t o = 0; o < outputs; ++o)
    for (int64_t i = 0; i < inputs; ++i)
      for (int64_t d = 0; d < 3; ++d)
        *to++ = static_cast<T>(sums.weight[o * padded(3 * inputs) + d * inputs + i]);
  for (int64_t o = 0; o < outputs; ++o) *to++ = static_cast<T>(sums.bias[o]);
  return to;
}

// All four layers of a FeatureCNN.
template <class Sum, class T>
T* write_cnn(const CnnShape& s, const LayerSums<Sum>* sums, T* to) {
  to = write_convolution(sums[0], s.first, 1, to);
  to = write_convolution(sums[1], s.second, s.first, to);
  to = write_dense(sums[2], s.hidden, s.second * s.n_pooled(), to);
  return write_dense(sums[3], s.n_classes, s.hidden, to);
}

}  // namespace nnmf_cuda
