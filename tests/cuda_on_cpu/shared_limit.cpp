// What is asked of CUDA's runtime before kernels get shared memory, on a runtime that counts.
#include "common/cuda/shared_limit.h"

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#include "call.h"

namespace {

thread_local int current_device = 0;
std::atomic<int64_t> n_permits = 0;
std::atomic<int> n_failures = 0;  // how many of the next permits fail

struct CountingRuntime {
  static int device() { return current_device; }

  static int64_t permit_all(const void* kernel, int device) {
    if (n_failures > 0) {
      --n_failures;
      throw std::runtime_error("an earlier launch has failed");
    }
    ++n_permits;
    return *static_cast<const int64_t*>(kernel) + device;
  }
};

}  // namespace

// Threads ask for the limits of kernels on devices, each for all of them, many times.
CUDA_ON_CPU_CALL(limits) {
  const int64_t n_kernels = call.size("kernels", 0), n_devices = call.integer("devices");
  const int64_t n_threads = call.integer("threads");
  const int64_t* kernels = call.tensor<int64_t>("kernels");
  int64_t* found = call.result<int64_t>("found", {n_threads, n_devices, n_kernels});
  nnmf_cuda::SharedLimits<CountingRuntime> limits;
  n_permits = 0;
  std::vector<std::thread> threads;
  for (int64_t t = 0; t < n_threads; ++t)
    threads.emplace_back([=, &limits] {
      for (int round = 0; round < 50; ++round)
        for (int64_t d = 0; d < n_devices; ++d)
          for (int64_t k = 0; k < n_kernels; ++k) {
            current_device = static_cast<int>(d);
            found[(t * n_devices + d) * n_kernels + k] = limits.of(kernels + k);
          }
    });
  for (std::thread& thread : threads) thread.join();
  *call.result<int64_t>("permits", {1}) = n_permits;
}

// The first permits fail.
CUDA_ON_CPU_CALL(limit_after_failures) {
  nnmf_cuda::SharedLimits<CountingRuntime> limits;
  n_failures = static_cast<int>(call.integer("failures"));
  n_permits = 0;
  int64_t* thrown = call.result<int64_t>("thrown", {1});
  *thrown = 0;
  int64_t* found = call.result<int64_t>("found", {1});
  for (int launch = 0; launch < 10; ++launch) try {
      *found = limits.of(call.tensor<int64_t>("kernels"));
    } catch (const std::runtime_error&) {
      ++*thrown;
    }
  *call.result<int64_t>("permits", {1}) = n_permits;
}
