// Memory in which gradients of weights are summed, and how it becomes one vector in torch's layout.
#pragma once

#include <cstdint>
#include <vector>

#include "network.h"

namespace nnmf_cuda {

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
