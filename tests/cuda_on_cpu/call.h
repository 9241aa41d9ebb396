// How Python calls kernels here: main.cpp reads problems from standard input, each with a seed, the
// name of a call, named numbers and named tensors, and writes the tensors that the call gives.
//
//   CUDA_ON_CPU_CALL(double_all) {
//     float* x = call.tensor<float>("x");
//     const int64_t n = call.size("x", 0);
//     NNMF_CUDA_LAUNCH(double_kernel, grid_of(n), 1, 0, nullptr, x, call.result<float>("y", {n}));
//     call.give("x");
//   }
//
// Every tensor and all scratch memory has a block of the heap to itself, exactly as large as it is,
// so AddressSanitizer sees an index that is one too large or small. What is not an input starts
// with all bits one: NaN, -1.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda_on_cpu.h"

namespace cuda_on_cpu {

enum class Type : int64_t { kUint8, kInt32, kInt64, kFloat32, kFloat64 };

constexpr size_t kSizes[] = {1, 4, 8, 4, 8};

template <class T>
constexpr Type type_of() {
  if constexpr (std::is_same_v<T, uint8_t>) return Type::kUint8;
  if constexpr (std::is_same_v<T, int32_t>) return Type::kInt32;
  if constexpr (std::is_same_v<T, int64_t>) return Type::kInt64;
  if constexpr (std::is_same_v<T, float>) return Type::kFloat32;
  if constexpr (std::is_same_v<T, double>) return Type::kFloat64;
}

class Tensor {
 public:
  // The data lie `offset` bytes behind a multiple of 16.
  Tensor(Type type, std::vector<int64_t> shape, size_t offset = 0)
      : type(type), shape(std::move(shape)), offset_(offset) {
    memory_.reset(allocate(offset + bytes()), [](char* memory) {
#if defined(__SANITIZE_ADDRESS__)
      __asan_unpoison_memory_region(memory, 16);
#endif
      std::free(memory);
    });
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(memory_.get(), offset);
#endif
  }

  char* data() const { return memory_.get() + offset_; }

  size_t bytes() const {
    size_t size = kSizes[static_cast<size_t>(type)];
    for (const int64_t n : shape) size *= static_cast<size_t>(n);
    return size;
  }

  Type type;
  std::vector<int64_t> shape;

 private:
  size_t offset_;
  std::shared_ptr<char> memory_;
};

class Call {
 public:
  std::map<std::string, double> numbers;
  std::map<std::string, Tensor> tensors;
  std::map<std::string, Tensor> results;

  // Numbers come as float64, which holds every integer of a test.
  double number(const std::string& name) const { return numbers.at(name); }
  int64_t integer(const std::string& name) const { return static_cast<int64_t>(number(name)); }

  int64_t size(const std::string& name, size_t dim) const { return tensors.at(name).shape.at(dim); }

  template <class T>
  bool is(const std::string& name) const {
    return tensors.at(name).type == type_of<T>();
  }

  template <class T>
  T* tensor(const std::string& name) {
    if (!is<T>(name)) throw std::runtime_error("tensor " + name + " has another dtype");
    return reinterpret_cast<T*>(tensors.at(name).data());
  }

  template <class T>
  T* result(const std::string& name, std::vector<int64_t> shape) {
    const auto at = results.insert_or_assign(name, Tensor(type_of<T>(), std::move(shape))).first;
    return reinterpret_cast<T*>(at->second.data());
  }

  // The tensor with what the kernels have made of it.
  void give(const std::string& name) { results.insert_or_assign(name, tensors.at(name)); }

  template <class T>
  T* scratch(int64_t size) {
    return reinterpret_cast<T*>(scratch_.emplace_back(type_of<T>(), std::vector{size}).data());
  }

 private:
  std::vector<Tensor> scratch_;
};

using Function = void (*)(Call&);

inline std::map<std::string, Function>& calls() {
  static std::map<std::string, Function> all;
  return all;
}

inline bool add_call(const char* name, Function function) {
  return calls().emplace(name, function).second;
}

}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_CALL(name)                                                                 \
  static void name##_call(cuda_on_cpu::Call& call);                                            \
  [[maybe_unused]] static const bool name##_added = cuda_on_cpu::add_call(#name, name##_call); \
  static void name##_call(cuda_on_cpu::Call& call)
