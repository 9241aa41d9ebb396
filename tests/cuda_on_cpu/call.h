// How Python calls kernels: a problem has a name, which chooses the call, named numbers and named
// tensors; the call gives named tensors back. See run_kernels of harness.py.
//
//   CUDA_ON_CPU_CALL(double_all) {
//     float* x = call.tensor<float>("x");
//     const int64_t n = call.size("x", 0);
//     NNMF_CUDA_LAUNCH(double_kernel, grid_of(n), 1, 0, nullptr, x, call.result<float>("y", {n}));
//     call.give("x");
//   }
//
// Every tensor and all scratch memory has a part of the heap to itself, exactly as large as it is,
// so AddressSanitizer sees an index that is one too large or small. What is not an input starts
// with all bits one: NaN, -1.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "cuda_on_cpu.h"

namespace cuda_on_cpu {

enum class Type : int64_t { kUint8, kInt32, kInt64, kFloat32, kFloat64 };

template <class T>
constexpr Type type_of() {
  if constexpr (std::is_same_v<T, uint8_t>) return Type::kUint8;
  if constexpr (std::is_same_v<T, int32_t>) return Type::kInt32;
  if constexpr (std::is_same_v<T, int64_t>) return Type::kInt64;
  if constexpr (std::is_same_v<T, float>) return Type::kFloat32;
  if constexpr (std::is_same_v<T, double>) return Type::kFloat64;
}

struct Problem;

class Call {
 public:
  explicit Call(Problem& problem) : problem_(problem) {}

  // Numbers come as float64, which holds every integer of a test.
  double number(const char* name) const;
  int64_t integer(const char* name) const { return static_cast<int64_t>(number(name)); }

  int64_t dims(const char* name) const;
  int64_t size(const char* name, int64_t dim) const;

  template <class T>
  bool is(const char* name) const {
    return type(name) == type_of<T>();
  }

  // Refuses a tensor of another type.
  template <class T>
  T* tensor(const char* name) {
    return static_cast<T*>(tensor_data(name, type_of<T>()));
  }

  template <class T>
  T* result(const char* name, std::initializer_list<int64_t> shape) {
    return static_cast<T*>(new_result(name, type_of<T>(), shape));
  }

  // Gives back a tensor with what the kernels have made of it.
  void give(const char* name);

  template <class T>
  T* scratch(int64_t size) {
    return static_cast<T*>(new_scratch(type_of<T>(), size));
  }

 private:
  Type type(const char* name) const;
  void* tensor_data(const char* name, Type type);
  void* new_result(const char* name, Type type, std::initializer_list<int64_t> shape);
  void* new_scratch(Type type, int64_t size);

  Problem& problem_;
};

bool add_call(const char* name, void (*function)(Call&));

}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_CALL(name)                                                                 \
  static void name##_call(cuda_on_cpu::Call& call);                                            \
  [[maybe_unused]] static const bool name##_added = cuda_on_cpu::add_call(#name, name##_call); \
  static void name##_call(cuda_on_cpu::Call& call)
