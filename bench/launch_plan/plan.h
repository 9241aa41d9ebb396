// What the calls of a launch plan share: the sizes they are given, pointers that only look like
// ones, and how they are found by name.
#pragma once

#include <cstdint>
#include <string>

#include "common/cuda/launch.h"

namespace launch_plan {

// A size that the command line names.
int64_t number(const char* name);

// Prints "= name value".
void note(const std::string& name, int64_t value);

bool add_call(const char* name, void (*call)());

// Aligned like memory of a device, each piece at a place of its own.
template <class T>
T* somewhere() {
  static uintptr_t next = uintptr_t{1} << 40;
  next += uintptr_t{1} << 20;
  return reinterpret_cast<T*>(next);
}

struct Memory {
  template <class T>
  T* get(int64_t /*size*/) {
    return somewhere<T>();
  }
};

inline nnmf_cuda::DeviceSize device() {
  return {number("multiprocessors"), number("shared_bytes")};
}

}  // namespace launch_plan
