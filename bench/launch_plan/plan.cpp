// Prints the launches of one call, in order: a line "kernel grid block shared_bytes overlaps"
// each, with the kernel's mangled name; before them lines "= name value" of what of the cut
// bench/time_model.py wants to know.
//
//   plan CALL multiprocessors=132 shared_bytes=233472 n=1500 f=16384 k=15 ...
#include "plan.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <map>
#include <string>

#include "common/cuda/launch.h"

namespace {

std::map<std::string, int64_t> numbers;

std::map<std::string, void (*)()>& calls() {
  static std::map<std::string, void (*)()> all;
  return all;
}

}  // namespace

void launch_plan::record(const char* name, const void* kernel, dim3 grid, dim3 block,
                         size_t shared_bytes, bool overlaps) {
  Dl_info found{};
  const bool known = dladdr(kernel, &found) != 0 && found.dli_saddr == kernel;
  const char* const setting = std::getenv("NNMF_CUDA_OVERLAP");
  const bool wanted = setting == nullptr || std::strcmp(setting, "0") != 0;
  std::printf("%s %u %u %zu %d\n", known ? found.dli_sname : name, grid.x, block.x * block.y,
              shared_bytes, overlaps && wanted);
}

int64_t launch_plan::number(const char* name) {
  const auto found = numbers.find(name);
  if (found != numbers.end()) return found->second;
  std::fprintf(stderr, "%s=... is missing\n", name);
  std::exit(2);
}

void launch_plan::note(const std::string& name, int64_t value) {
  std::printf("= %s %lld\n", name.c_str(), static_cast<long long>(value));
}

bool launch_plan::add_call(const char* name, void (*call)()) {
  return calls().emplace(name, call).second;
}

int main(int argc, char** argv) {
  for (int i = 2; i < argc; ++i) {
    const char* value = std::strchr(argv[i], '=');
    if (value == nullptr) return 2;
    numbers[std::string(argv[i], static_cast<size_t>(value - argv[i]))] = std::atoll(value + 1);
  }
  const auto found = calls().find(argc > 1 ? argv[1] : "");
  if (found == calls().end()) {
    std::fprintf(stderr, "there is no such call\n");
    return 2;
  }
  found->second();
  return 0;
}
