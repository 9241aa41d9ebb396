// How much shared memory a kernel may have: more than 48 KiB only after asking for it. It is asked
// for once for a kernel on a device, and all that the device has: what one launch asks for anew, as
// much as it needs, another thread's launch of the same kernel may need more of.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <utility>

namespace nnmf_cuda {

// Runtime has, as static functions,
//   int device();                                the current device
//   int64_t permit_all(const void* kernel, int); lets a kernel have all shared memory of a device,
//                                                and returns how much of it is dynamic at most;
// both throw where CUDA reports an error, and are then asked again at the next launch.
template <class Runtime>
class SharedLimits {
 public:
  // The most dynamic shared memory, in bytes, of a kernel on the current device.
  int64_t of(const void* kernel) {
    const std::pair key{kernel, Runtime::device()};
    const std::lock_guard lock(mutex_);
    auto found = limits_.find(key);
    if (found == limits_.end())
      found = limits_.emplace(key, Runtime::permit_all(kernel, key.second)).first;
    return found->second;
  }

 private:
  std::mutex mutex_;
  std::map<std::pair<const void*, int>, int64_t> limits_;
};

}  // namespace nnmf_cuda
