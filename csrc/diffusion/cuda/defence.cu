// purify, feature_cnn, defended_logits, their gradients and philox_normal on the device.
#include <cstdint>

#include "../ops.h"
#include "launches.cuh"
#include "philox.cuh"

namespace nnmf_cuda {
namespace {

struct DiffusionOnCuda : CudaDevice {
  static constexpr bool kWeightsNeedSigns = true;

  using CudaDevice::CudaDevice;

  template <class T>
  static int64_t prepared_size(const DefenceParams<T>& p) {
    return backward_preparation_size(p);
  }

  template <class T>
  void forward(const DefenceParams<T>& p, T* out, uint32_t* signs, T* prepared) {
    launch_defence_forward(p, out, signs, prepared, size(), memory, stream());
  }

  template <class T>
  void backward(const DefenceParams<T>& p, const T* grad, const uint32_t* signs, const T* prepared,
                T* of_x, T* of_noise) {
    launch_defence_backward(p, grad, signs, prepared, of_x, of_noise, size(), memory, stream());
  }

  template <class T>
  void backward_with_weights(const DefenceParams<T>& p, const T* grad, const uint32_t* signs,
                             const T* prepared, T* of_x, T* of_noise, T* of_denoiser,
                             T* of_classifier) {
    backward(p, grad, signs, prepared, of_x, of_noise);
    launch_defence_weights(p, grad, signs, of_denoiser, of_classifier, size(), memory, stream());
  }

  template <class T>
  void draw_normals(T* out, const DrawsShape& s, uint64_t seed) {
    launch_philox_normal(out, s, seed, size().multiprocessors, stream());
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CUDA, m) {
  implement_diffusion<DiffusionOnCuda>(m);
}

}  // namespace nnmf_cuda
