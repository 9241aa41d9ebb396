// The kernels of crown_bounds, and their launches.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cnn.cuh"
#include "mlp.cuh"

namespace nnmf_cuda {

constexpr int64_t kMostSharedBytes = 96 * 1024;  // so that two blocks share a multiprocessor
constexpr int64_t kCrownBlocks = 4;              // of a multiprocessor

// What does not depend on boxes: how much the layers below the last can enlarge numbers that are at
// least 1, `start` times; and weights [rows][columns] as [columns][rows].
struct PreparedTask {
  CrownLayer layers[kMostLayers];
  int64_t n_layers;
  double start;
  double* growth;
  const double* from;
  int64_t rows, columns;
  double* to;
};

template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    prepare_crown_kernel(const __grid_constant__ PreparedTask task) {
  NNMF_CUDA_SHARED(double, most, [kThreads]);
  const int64_t threads = int64_t{gridDim.x} * blockDim.x;
  for (int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; at < task.rows * task.columns;
       at += threads)
    task.to[at % task.columns * task.rows + at / task.columns] = task.from[at];
  if (blockIdx.x != 0) return;
  double growth = task.start;
  for (int64_t d = 0; d < task.n_layers; ++d) {
    const CrownLayer& layer = task.layers[d];
    double own = 1;
    for (int64_t o = threadIdx.x; o < layer.outputs; o += blockDim.x) {
      double sum = magnitude(layer.bias[o]);
      for (int64_t i = 0; i < layer.inputs; ++i)
        sum += magnitude(layer.weight[o * layer.inputs + i]);
      if (!(sum <= own) && own == own) own = sum;
    }
    most[threadIdx.x] = own;
    __syncthreads();
    double largest = 1;
    for (int i = 0; i < kThreads; ++i)
      if (!(most[i] <= largest) && largest == largest) largest = most[i];
    growth *= largest;
    __syncthreads();
  }
  if (threadIdx.x == 0) *task.growth = growth;
}

NNMF_CUDA_INLINE const CnnShape& layout_of(const DeviceCnn& net) {
  return net.shape;
}
NNMF_CUDA_INLINE const DeviceMlp& layout_of(const DeviceMlp& net) {
  return net;
}

// `scratch`: `size` numbers for each block, where shared memory is too small for them, else null.
template <class Net, class Memory, class Block>
__global__ void __launch_bounds__(kCrownThreads)
    crown_bounds_kernel(const __grid_constant__ Net net, const __grid_constant__ CrownBoxes boxes,
                        double* scratch, int64_t size) {
  NNMF_CUDA_DYNAMIC_SHARED(double, shared);
  Memory memory;
  memory.carve(layout_of(net), scratch == nullptr ? shared : scratch + blockIdx.x * size);
  for (int64_t box = blockIdx.x; box < boxes.n_boxes; box += gridDim.x) {
    Block(net, boxes, box, memory).run();
    __syncthreads();
  }
}

// Memory: an allocator of the device, get<T>(size).
template <class Memory>
class CrownLaunches {
 public:
  CrownLaunches(const CrownBoxes& boxes, int64_t multiprocessors, Memory& memory,
                cudaStream_t stream, int64_t most_shared_bytes = kMostSharedBytes)
      : boxes_(boxes),
        multiprocessors_(multiprocessors),
        memory_(memory),
        stream_(stream),
        most_shared_bytes_(most_shared_bytes) {}

  void launch(const std::vector<CrownLayer>& layers, const CnnShape& shape) {
    DeviceCnn net{};
    net.shape = shape;
    std::copy(layers.begin(), layers.end(), net.layers);
    net.slack = slack_of(shape);
    const int64_t pooled = shape.second * shape.n_pooled();
    double* hidden = memory_.template get<double>(pooled * shape.hidden);
    net.hidden = hidden;
    net.growth = prepare(layers, 2, {layers[2].weight, shape.hidden, pooled, hidden});
    launch<DeviceCnn, CnnMemory, CnnBlock>(net, CnnMemory{}.carve(shape, nullptr));
  }

  void launch(const std::vector<CrownLayer>& layers) {
    DeviceMlp net{};
    std::copy(layers.begin(), layers.end(), net.layers);
    net.n_layers = static_cast<int64_t>(layers.size());
    net.n_features = net.width = boxes_.n_features;
    int64_t terms = 0;
    for (const CrownLayer& layer : layers) {
      net.width = std::max(net.width, layer.outputs);
      terms += layer.inputs + layer.outputs + 8;
    }
    net.slack = slack_of(net.n_layers, terms);
    net.growth = prepare(layers, 1, {});
    launch<DeviceMlp, MlpMemory, MlpBlock>(net, MlpMemory{}.carve(net, nullptr));
  }

 private:
  struct Transposed {
    const double* from;
    int64_t rows, columns;
    double* to;
  };

  const double* prepare(const std::vector<CrownLayer>& layers, double start, const Transposed& t) {
    PreparedTask task{};
    task.n_layers = static_cast<int64_t>(layers.size()) - 1;
    std::copy(layers.begin(), layers.end() - 1, task.layers);
    task.start = start;
    task.growth = memory_.template get<double>(1);
    task.from = t.from;
    task.rows = t.rows;
    task.columns = t.columns;
    task.to = t.to;
    const int64_t blocks = std::clamp<int64_t>(blocks_of(t.rows * t.columns, 1024), 1, 64);
    NNMF_CUDA_LAUNCH(prepare_crown_kernel<kCrownThreads>, grid_of(blocks), kCrownThreads, 0,
                     stream_, task);
    return task.growth;
  }

  template <class Net, class BlockMemory, class Block>
  void launch(const Net& net, int64_t size) {
    const int64_t bytes = size * static_cast<int64_t>(sizeof(double));
    const bool shared = bytes <= most_shared_bytes_;
    const int64_t blocks =
        shared ? boxes_.n_boxes : std::min(boxes_.n_boxes, kCrownBlocks * multiprocessors_);
    double* scratch = shared ? nullptr : memory_.template get<double>(blocks * size);
    const auto kernel = crown_bounds_kernel<Net, BlockMemory, Block>;
    NNMF_CUDA_LAUNCH(kernel, grid_of(blocks), kCrownThreads,
                     shared ? static_cast<size_t>(bytes) : 0, stream_, net, boxes_, scratch, size);
  }

  const CrownBoxes& boxes_;
  int64_t multiprocessors_;
  Memory& memory_;
  cudaStream_t stream_;
  int64_t most_shared_bytes_;
};

}  // namespace nnmf_cuda
