// The CUDA kernels of crown_bounds.
#include <string>
#include <vector>

#include "call.h"
#include "crown/cuda/launches.cuh"

namespace {

using namespace nnmf_cuda;

struct Memory {
  template <class T>
  T* get(int64_t size) {
    return call.scratch<T>(size);
  }
  cuda_on_cpu::Call& call;
};

// A tensor that is empty where nothing is given.
const double* given(cuda_on_cpu::Call& call, const char* name) {
  return call.size(name, 0) == 0 ? nullptr : call.tensor<double>(name);
}

}  // namespace

// Layers come as tensors weight0, bias0, weight1, ...
CUDA_ON_CPU_CALL(crown_bounds) {
  std::vector<CrownLayer> layers;
  const int64_t n_layers = call.integer("n_layers");
  for (int64_t i = 0; i < n_layers; ++i) {
    const std::string weight = "weight" + std::to_string(i), bias = "bias" + std::to_string(i);
    const bool taps = call.dims(weight.c_str()) == 3;
    layers.push_back({call.tensor<double>(weight.c_str()), call.tensor<double>(bias.c_str()),
                      call.size(weight.c_str(), 0),
                      call.size(weight.c_str(), 1) * (taps ? call.size(weight.c_str(), 2) : 1)});
  }
  CrownBoxes boxes{};
  boxes.n_boxes = call.size("lower", 0);
  boxes.n_features = call.size("lower", 1);
  boxes.n_classes = call.size("objective", 1);
  boxes.n_hidden = layers[layers.size() - 2].outputs;
  boxes.lower = call.tensor<double>("lower");
  boxes.upper = call.tensor<double>("upper");
  boxes.objective = call.tensor<double>("objective");
  boxes.center = given(call, "center");
  boxes.radius = given(call, "radius");
  boxes.hidden_lower = given(call, "hidden_lower");
  boxes.hidden_upper = given(call, "hidden_upper");
  boxes.bound = call.result<double>("bound", {boxes.n_boxes});
  boxes.slope = call.result<double>("slope", {boxes.n_boxes, boxes.n_features});
  boxes.new_hidden_lower = call.result<double>("low", {boxes.n_boxes, boxes.n_hidden});
  boxes.new_hidden_upper = call.result<double>("high", {boxes.n_boxes, boxes.n_hidden});
  Memory memory{call};
  CrownLaunches launches(boxes, call.integer("multiprocessors"), memory, nullptr,
                         call.integer("shared_bytes"));
  if (call.dims("weight0") == 3)
    launches.launch(layers, {boxes.n_features, layers[0].outputs, layers[1].outputs,
                             layers[2].outputs, layers[3].outputs});
  else
    launches.launch(layers);
}
