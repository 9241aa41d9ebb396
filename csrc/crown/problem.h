// Boxes and a network as the kernels of both devices are given them, and what rounding can do to
// their bounds. Free of torch.
#pragma once

#include <cstdint>
#include <vector>

#include "../common/inline.h"
#include "../networks/network.h"

namespace nnmf_cuda {

// The user's tensors, one row a box; those that may be missing are null.
struct CrownBoxes {
  int64_t n_boxes, n_features, n_classes, n_hidden;
  const double *lower, *upper, *objective;
  const double *center, *radius;              // of balls
  const double *hidden_lower, *hidden_upper;  // known before
  double *bound, *slope, *new_hidden_lower, *new_hidden_upper;
};

// As the user has it, [outputs][inputs]; a convolution's inputs are [channels][3].
struct CrownLayer {
  const double *weight, *bias;
  int64_t outputs, inputs;
};

constexpr double kHalfUlp = 0x1p-53;

// Underflow of one operation, gradual or to zero, is less than 2^-1022, and `growth` is more than
// all factors that may follow; so kUnderflow times growth counts more operations than there are.
constexpr double kUnderflow = 1e-300;

// Where numbers may grow larger than this, squares could overflow: nothing is claimed there.
constexpr double kMostGrowth = 1e150;

// What rounding can do to a bound, as a share of the magnitude of its unit: weights, inputs and
// biases multiplied and summed without their signs. The derivation stands in reference/crown.py.
// `terms`: inputs, outputs and 8 of each of the layers, together.
inline double slack_of(int64_t n_layers, int64_t terms) {
  return 4 * static_cast<double>((n_layers + 4) * terms) * kHalfUlp;
}

inline double slack_of(const CnnShape& s) {
  const int64_t first = s.n_features * s.first, pooled = s.second * s.n_pooled();
  return slack_of(4, s.n_features + 2 * first + 3 * pooled + 2 * s.hidden + s.n_classes + 32);
}

}  // namespace nnmf_cuda
