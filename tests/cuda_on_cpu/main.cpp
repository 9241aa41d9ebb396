// Solves the problems that come through standard input; see call.h, and run_kernels of harness.py
// for the other end. Integers are int64, text is its length and its bytes.
#include <cstdio>
#include <exception>

#include "call.h"

namespace {

using namespace cuda_on_cpu;

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
  Call call;
  random_bits.seed(static_cast<uint32_t>(read_integer()));
  const std::string name = read_text();
  for (int64_t left = read_integer(); left > 0; --left) {
    const std::string key = read_text();
    read(&call.numbers[key], sizeof(double));
  }
  for (int64_t left = read_integer(); left > 0; --left) {
    const std::string key = read_text();
    call.tensors.emplace(key, read_tensor());
  }
  const auto found = calls().find(name);
  if (found == calls().end()) throw std::runtime_error("no call is named " + name);
  found->second(call);
  write_integer(static_cast<int64_t>(call.results.size()));
  for (const auto& [key, tensor] : call.results) write_tensor(key, tensor);
}

}  // namespace

int main() {
  try {
    for (int64_t problems = read_integer(); problems > 0; --problems) solve();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cuda_on_cpu: %s\n", error.what());
    return 1;
  }
  return std::fflush(stdout) == 0 ? 0 : 1;
}
