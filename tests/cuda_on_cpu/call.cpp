// Solves the problems that come through standard input and writes the results to standard output;
// run_kernels of harness.py is the other end. Integers are int64; text is its length and its bytes.
#include "call.h"

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "thread.h"

namespace cuda_on_cpu {
namespace {

constexpr size_t kSizes[] = {1, 4, 8, 4, 8};  // of each Type

using Function = void (*)(Call&);

std::map<std::string, Function>& functions() {
  static std::map<std::string, Function> all;
  return all;
}

}  // namespace

class Tensor {
 public:
  // The data lie `offset` bytes behind a multiple of 16.
  Tensor(Type type, std::vector<int64_t> shape, size_t offset = 0)
      : type(type), shape(std::move(shape)), offset_(offset) {
    memory_.reset(allocate_poisoned(offset + bytes()), [offset](char* memory) {
      forbid(memory, offset, false);
      std::free(memory);
    });
    forbid(memory_.get(), offset, true);
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
  // What lies before the data; what is less than 8 bytes cannot be forbidden.
  static void forbid([[maybe_unused]] char* memory, [[maybe_unused]] size_t size,
                     [[maybe_unused]] bool forbidden) {
#if defined(__SANITIZE_ADDRESS__)
    if (forbidden)
      __asan_poison_memory_region(memory, size);
    else
      __asan_unpoison_memory_region(memory, size);
#endif
  }

  size_t offset_;
  std::shared_ptr<char> memory_;
};

struct Problem {
  std::map<std::string, double> numbers;
  std::map<std::string, Tensor> tensors;
  std::map<std::string, Tensor> results;
  std::vector<Tensor> scratch;

  const Tensor& tensor(const std::string& name) const {
    const auto found = tensors.find(name);
    if (found == tensors.end()) throw std::runtime_error("no tensor is named " + name);
    return found->second;
  }
};

double Call::number(const char* name) const {
  const auto found = problem_.numbers.find(name);
  if (found == problem_.numbers.end())
    throw std::runtime_error(std::string("no number is named ") + name);
  return found->second;
}

int64_t Call::dims(const char* name) const {
  return static_cast<int64_t>(problem_.tensor(name).shape.size());
}

int64_t Call::size(const char* name, int64_t dim) const {
  return problem_.tensor(name).shape.at(static_cast<size_t>(dim));
}

Type Call::type(const char* name) const {
  return problem_.tensor(name).type;
}

void Call::give(const char* name) {
  problem_.results.insert_or_assign(name, problem_.tensor(name));
}

void* Call::tensor_data(const char* name, Type type) {
  const Tensor& tensor = problem_.tensor(name);
  if (tensor.type != type)
    throw std::runtime_error(std::string("tensor ") + name + " has another dtype");
  return tensor.data();
}

void* Call::new_result(const char* name, Type type, std::initializer_list<int64_t> shape) {
  return problem_.results.insert_or_assign(name, Tensor(type, shape)).first->second.data();
}

void* Call::new_scratch(Type type, int64_t size) {
  return problem_.scratch.emplace_back(type, std::vector{size}).data();
}

bool add_call(const char* name, Function function) {
  return functions().emplace(name, function).second;
}

namespace {

void read(void* to, size_t size) {
  if (std::fread(to, 1, size, stdin) != size) throw std::runtime_error("the input ends too early");
}

int64_t read_integer() {
  int64_t value;
  read(&value, sizeof value);
  return value;
}

std::string read_text() {
  std::string text(static_cast<size_t>(read_integer()), ' ');
  read(text.data(), text.size());
  return text;
}

Tensor read_tensor() {
  const Type type{read_integer()};
  const auto offset = static_cast<size_t>(read_integer());
  std::vector<int64_t> shape(static_cast<size_t>(read_integer()));
  for (int64_t& size : shape) size = read_integer();
  Tensor tensor(type, shape, offset);
  read(tensor.data(), tensor.bytes());
  return tensor;
}

void write(const void* from, size_t size) {
  std::fwrite(from, 1, size, stdout);
}

void write_integer(int64_t value) {
  write(&value, sizeof value);
}

void write_tensor(const std::string& name, const Tensor& tensor) {
  write_integer(static_cast<int64_t>(name.size()));
  write(name.data(), name.size());
  write_integer(static_cast<int64_t>(tensor.type));
  write_integer(static_cast<int64_t>(tensor.shape.size()));
  for (const int64_t size : tensor.shape) write_integer(size);
  write(tensor.data(), tensor.bytes());
}

void solve() {
  Problem problem;
  random_bits.seed(static_cast<uint32_t>(read_integer()));
  const std::string name = read_text();
  for (int64_t left = read_integer(); left > 0; --left) {
    const std::string key = read_text();
    read(&problem.numbers[key], sizeof(double));
  }
  for (int64_t left = read_integer(); left > 0; --left) {
    const std::string key = read_text();
    problem.tensors.emplace(key, read_tensor());
  }
  const auto found = functions().find(name);
  if (found == functions().end()) throw std::runtime_error("no call is named " + name);
  Call call(problem);
  found->second(call);
  finish_launches();
  write_integer(static_cast<int64_t>(problem.results.size()));
  for (const auto& [key, tensor] : problem.results) write_tensor(key, tensor);
}

}  // namespace
}  // namespace cuda_on_cpu

int main() {
  try {
    for (int64_t left = cuda_on_cpu::read_integer(); left > 0; --left) cuda_on_cpu::solve();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cuda_on_cpu: %s\n", error.what());
    return 1;
  }
  return std::fflush(stdout) == 0 ? 0 : 1;
}
