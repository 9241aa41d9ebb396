// Networks made ready for crown_bounds on the CPU: weights as the loops want them, with zeros up to
// whole vectors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../problem.h"

namespace nnmf_cuda {

constexpr int64_t kMostLanes = 8;              // of float64
constexpr int64_t kMostRows = 2 * kMostLanes;  // of a tile

inline int64_t in_blocks(int64_t size, int64_t block) {
  return blocks_of(size, block) * block;
}

// How much a layer can enlarge numbers that are at least 1; NaN if anything is.
inline double growth_of(const CrownLayer& layer) {
  double most = 1;
  for (int64_t o = 0; o < layer.outputs; ++o) {
    double sum = std::abs(layer.bias[o]);
    for (int64_t i = 0; i < layer.inputs; ++i) sum += std::abs(layer.weight[o * layer.inputs + i]);
    if (!(sum <= most) && most == most) most = sum;
  }
  return most;
}

class PreparedCnn {
 public:
  PreparedCnn(const std::vector<CrownLayer>& layers, const CnnShape& s)
      : shape(s),
        slack(slack_of(s)),
        growth(2 * growth_of(layers[0]) * growth_of(layers[1]) * growth_of(layers[2])),
        first_lanes(in_blocks(s.first, kMostLanes)),
        second_lanes(in_blocks(s.second, kMostLanes)),
        hidden_lanes(in_blocks(s.hidden, kMostLanes)),
        rows(in_blocks(3 * s.second, kMostRows)),
        first(values(4 * first_lanes)),
        windows(values(4 * s.first * rows)),
        row_bias(values(rows)),
        second(values(s.second * 3 * first_lanes)),
        magnitudes(values(3 * s.first * second_lanes)),
        second_bias(values(second_lanes)),
        hidden(values(s.second * s.n_pooled() * hidden_lanes)),
        hidden_bias(values(hidden_lanes)),
        last(values(s.n_classes * hidden_lanes)),
        last_bias(layers[3].bias, layers[3].bias + s.n_classes) {
    for (int64_t i = 0; i < s.first; ++i) {
      for (int64_t tap = 0; tap < 3; ++tap)
        first[at(tap * first_lanes + i)] = layers[0].weight[3 * i + tap];
      first[at(3 * first_lanes + i)] = layers[0].bias[i];
    }
    for (int64_t c = 0; c < s.second; ++c) {
      second_bias[at(c)] = row_bias[at(c)] = row_bias[at(s.second + c)] = layers[1].bias[c];
      for (int64_t i = 0; i < s.first; ++i)
        for (int64_t tap = 0; tap < 3; ++tap) {
          const double weight = layers[1].weight[(c * s.first + i) * 3 + tap];
          second[at((c * 3 + tap) * first_lanes + i)] = weight;
          magnitudes[at((tap * s.first + i) * second_lanes + c)] = std::abs(weight);
          double* left = &windows[at((tap * s.first + i) * rows)];
          double* right = &windows[at(((tap + 1) * s.first + i) * rows)];
          left[c] = right[s.second + c] = weight;
          left[2 * s.second + c] += weight;
          right[2 * s.second + c] -= weight;
        }
    }
    for (int64_t o = 0; o < s.hidden; ++o) {
      hidden_bias[at(o)] = layers[2].bias[o];
      for (int64_t c = 0; c < s.second; ++c)
        for (int64_t p = 0; p < s.n_pooled(); ++p)
          hidden[at((p * s.second + c) * hidden_lanes + o)] =
              layers[2].weight[(o * s.second + c) * s.n_pooled() + p];
      for (int64_t k = 0; k < s.n_classes; ++k)
        last[at(k * hidden_lanes + o)] = layers[3].weight[k * s.hidden + o];
    }
  }

  CnnShape shape;
  double slack, growth;  // growth: of the layers up to the hidden one
  int64_t first_lanes, second_lanes, hidden_lanes, rows;
  std::vector<double> first;  // three taps and the bias, [4][channel]
  // What the units a and b of a pair, and a - b, take of the four positions below: [position][first
  // channel][a | b | a - b].
  std::vector<double> windows, row_bias;
  std::vector<double> second;      // [channel][tap][first channel]
  std::vector<double> magnitudes;  // of the same, [tap][first channel][channel]
  std::vector<double> second_bias;
  std::vector<double> hidden;  // [pair][channel][hidden unit]
  std::vector<double> hidden_bias;
  std::vector<double> last, last_bias;  // [class][hidden unit]

 private:
  static std::size_t at(int64_t i) { return static_cast<std::size_t>(i); }
  static std::vector<double> values(int64_t size) { return std::vector<double>(at(size)); }
};

// A layer of an MLP, its weights by rows and by columns.
struct MlpLayer {
  int64_t outputs, inputs, out_lanes, in_lanes;
  std::vector<double> weight;   // [output][in_lanes]
  std::vector<double> columns;  // [input][out_lanes]
  std::vector<double> bias;     // [out_lanes]

  explicit MlpLayer(const CrownLayer& layer)
      : outputs(layer.outputs),
        inputs(layer.inputs),
        out_lanes(in_blocks(outputs, kMostLanes)),
        in_lanes(in_blocks(inputs, kMostLanes)),
        weight(static_cast<std::size_t>(outputs * in_lanes)),
        columns(static_cast<std::size_t>(inputs * out_lanes)),
        bias(static_cast<std::size_t>(out_lanes)) {
    std::copy(layer.bias, layer.bias + outputs, bias.begin());
    for (int64_t o = 0; o < outputs; ++o)
      for (int64_t i = 0; i < inputs; ++i)
        weight[static_cast<std::size_t>(o * in_lanes + i)] =
            columns[static_cast<std::size_t>(i * out_lanes + o)] = layer.weight[o * inputs + i];
  }
};

class PreparedMlp {
 public:
  PreparedMlp(const std::vector<CrownLayer>& given, int64_t n_features_)
      : n_features(n_features_), width(in_blocks(n_features_, kMostLanes)), growth(1) {
    int64_t terms = 0;
    for (const CrownLayer& layer : given) {
      layers.emplace_back(layer);
      width = std::max(width, layers.back().out_lanes);
      terms += layer.inputs + layer.outputs + 8;
      if (&layer != &given.back()) growth *= growth_of(layer);
    }
    slack = slack_of(static_cast<int64_t>(given.size()), terms);
  }

  std::vector<MlpLayer> layers;
  int64_t n_features, width;  // width: of the widest layer, the input among them
  double slack, growth;       // growth: of the hidden layers
};

}  // namespace nnmf_cuda
