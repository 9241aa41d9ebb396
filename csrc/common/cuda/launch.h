// Kernel launches, and what of torch's device they need. Every one goes through NNMF_CUDA_LAUNCH,
// so that a test build can compile the same kernels as host code: there the header cuda_on_cpu.h of
// the tests takes the place of CUDA.
#pragma once

#include <cstdint>
#include <limits>

namespace nnmf_cuda {

// What of a device decides how work is cut.
struct DeviceSize {
  int64_t multiprocessors;
  int64_t shared_bytes;  // of each
};

constexpr int64_t kReservedShared = 1024;  // bytes that each block takes besides its own

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffff;

}  // namespace nnmf_cuda

#if defined(__CUDACC__)

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <type_traits>
#include <vector>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "../arguments.h"
#include "shared_limit.h"

#define NNMF_CUDA_LAUNCH_CHECK()                                                              \
  do {                                                                                        \
    const cudaError_t error = cudaGetLastError();                                             \
    STD_TORCH_CHECK(error == cudaSuccess, "CUDA launch failed: ", cudaGetErrorString(error)); \
  } while (0)

#define NNMF_CUDA_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)          \
  do {                                                                            \
    nnmf_cuda::allow_shared(reinterpret_cast<const void*>(kernel), shared_bytes); \
    kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__);                   \
    NNMF_CUDA_LAUNCH_CHECK();                                                     \
  } while (0)

// Declares `name`, a pointer to the shared memory whose size the launch gives; 16-byte aligned.
#define NNMF_CUDA_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char nnmf_cuda_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(nnmf_cuda_dynamic_shared)

// Declares an array in shared memory: NNMF_CUDA_SHARED(float, tile, [32][33]).
#define NNMF_CUDA_SHARED(T, name, ...) __shared__ T name __VA_ARGS__

namespace nnmf_cuda {

// torch's current stream. Nothing of CUDA torch is linked, so that the module also loads beside a
// CPU-only torch: the function is looked up in the library that a CUDA torch has loaded already.
inline cudaStream_t current_stream(int32_t device) {
  using Getter = AOTITorchError (*)(int32_t, void**);
  static const Getter get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library == nullptr
               ? nullptr
               : reinterpret_cast<Getter>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  STD_TORCH_CHECK(get != nullptr, "this torch has no CUDA: libtorch_cuda.so is not loaded");
  void* stream = nullptr;
  STD_TORCH_CHECK(get(device, &stream) == 0, "cannot get the current CUDA stream of device ",
                  device);
  return static_cast<cudaStream_t>(stream);
}

// An error that is reported here must not be found again by the check of a later launch.
inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  STD_TORCH_CHECK(false, what, ": ", cudaGetErrorString(error));
}

// Has a multiprocessor give a kernel memory that is shared, instead of cache: kernels that stage
// their data there want it, and blocks of kernels that divide memory alike can be there at one
// time.
inline void prefer_shared(const void* kernel) {
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                           cudaSharedmemCarveoutMaxShared) != cudaSuccess)
    cudaGetLastError();  // only a hint: the launch that follows is not to be blamed
}

struct CudaRuntime {
  static int device() {
    int index = 0;
    check_cuda(cudaGetDevice(&index), "cannot ask for the current device");
    return index;
  }

  static int64_t permit_all(const void* kernel, int device) {
    prefer_shared(kernel);
    int most = 0;
    check_cuda(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
               "cannot ask the device for its shared memory");
    cudaFuncAttributes attributes{};
    check_cuda(cudaFuncGetAttributes(&attributes, kernel), "cannot ask for a kernel's attributes");
    most -= static_cast<int>(attributes.sharedSizeBytes);
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most),
               "cannot give a kernel the device's shared memory");
    return most;
  }
};

inline void allow_shared(const void* kernel, size_t bytes) {
  static SharedLimits<CudaRuntime> limits;
  if (bytes == 0) return;
  const int64_t most = limits.of(kernel);
  STD_TORCH_CHECK(static_cast<int64_t>(bytes) <= most,
                  "this device has not enough shared memory for so many components: ", bytes,
                  " bytes of ", most);
}

inline DeviceSize device_size(int32_t device) {
  int multiprocessors = 0, shared_bytes = 0;
  check_cuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
             "cannot ask the device for its multiprocessors");
  check_cuda(
      cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device),
      "cannot ask the device for its shared memory");
  return {multiprocessors, shared_bytes};
}

// Scratch memory of a launch sequence, from torch's allocator: launches can be captured in a graph.
class DeviceMemory {
 public:
  // On the device of `like`.
  explicit DeviceMemory(const torch::stable::Tensor& like) : like_(like) {}

  // `size` values, not initialised, that live as long as this object: kernels that were launched
  // before may still use them afterwards, as whoever gets the memory next launches after them.
  template <class T>
  T* get(int64_t size) {
    static_assert(std::is_floating_point_v<T> || sizeof(T) == 1);
    constexpr auto kType = sizeof(T) == 8   ? torch::headeronly::ScalarType::Double
                           : sizeof(T) == 4 ? torch::headeronly::ScalarType::Float
                                            : torch::headeronly::ScalarType::Byte;
    blocks_.push_back(torch::stable::new_empty(like_, {size}, kType));
    return blocks_.back().mutable_data_ptr<T>();
  }

 private:
  torch::stable::Tensor like_;
  std::vector<torch::stable::Tensor> blocks_;
};

// The device of a tensor, for the tensor layer of an op: while it lives, allocations and launches
// go there.
class CudaDevice {
 public:
  explicit CudaDevice(const torch::stable::Tensor& like)
      : index_(cuda_index_of(like)), guard_(index_), memory(like) {}

  cudaStream_t stream() const { return current_stream(index_); }
  DeviceSize size() const { return device_size(index_); }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;

 public:
  DeviceMemory memory;
};

}  // namespace nnmf_cuda

#else

#include "cuda_on_cpu.h"

#endif

namespace nnmf_cuda {

// One-dimensional grids only: their limit is the one that no real problem reaches.
inline dim3 grid_of(int64_t blocks) {
#if defined(__CUDACC__)
  STD_TORCH_CHECK(blocks <= std::numeric_limits<int32_t>::max(),
                  "the problem is too large for one launch: ", blocks, " blocks");
#endif
  return dim3(static_cast<unsigned>(blocks));
}

}  // namespace nnmf_cuda
