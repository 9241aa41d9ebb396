// crown_bounds on the device.
#include "../ops.h"
#include "launches.cuh"

namespace nnmf_cuda {
namespace {

struct CrownOnCuda : CudaDevice {
  using CudaDevice::CudaDevice;

  void bound(const CrownArguments& a, const CrownBoxes& boxes) {
    CrownLaunches launches(boxes, size().multiprocessors, memory, stream());
    if (a.is_cnn()) return launches.launch(a.layers(), a.cnn_shape());
    const std::vector<CrownLayer> layers = a.layers();
    STD_TORCH_CHECK(layers.size() <= kMostLayers, "weights must be of at most ", kMostLayers,
                    " layers for the CUDA kernel, got ", layers.size());
    launches.launch(layers);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CUDA, m) {
  m.impl("crown_bounds", TORCH_BOX(&crown_bounds<CrownOnCuda>));
}

}  // namespace nnmf_cuda
