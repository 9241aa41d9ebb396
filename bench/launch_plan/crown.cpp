// The bounds of a launch plan.
#include "crown/cuda/launches.cuh"
#include "plan.h"

namespace {

using namespace nnmf_cuda;
using namespace launch_plan;

void crown() {
  const int64_t m = number("f"), hidden = number("hidden"), classes = 2;
  const auto layer = [](int64_t outputs, int64_t inputs) {
    return CrownLayer{somewhere<double>(), somewhere<double>(), outputs, inputs};
  };
  std::vector<CrownLayer> layers;
  if (hidden > 0)
    layers = {layer(hidden, m), layer(hidden, hidden), layer(classes, hidden)};
  else
    layers = {layer(16, 3), layer(32, 48), layer(64, 32 * (m / 2)), layer(classes, 64)};
  CrownBoxes boxes{};
  boxes.n_boxes = number("n");
  boxes.n_features = m;
  boxes.n_classes = classes;
  boxes.n_hidden = layers[layers.size() - 2].outputs;
  Memory memory;
  CrownLaunches launches(boxes, number("multiprocessors"), memory, nullptr);
  if (hidden > 0)
    launches.launch(layers);
  else
    launches.launch(layers, CnnShape{m, 16, 32, 64, classes});
}

const bool added = add_call("crown_bounds float64", crown);

}  // namespace
