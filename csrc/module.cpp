// The Python module nnmf_cuda._C: facts about the build. Importing it registers the kernels with
// torch; no tensor passes through here.
#include <sstream>
#include <string>
#include <vector>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/cpu/isa.h"

namespace {

namespace py = pybind11;

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __VERSION__;
#else
constexpr const char* kCompiler = "gcc " __VERSION__;
#endif

[[maybe_unused]] std::vector<std::string> words(const char* text) {
  std::istringstream stream(text);
  std::vector<std::string> result;
  for (std::string word; stream >> word;) result.push_back(word);
  return result;
}

std::vector<std::string> cpu_instruction_sets() {
#ifdef NNMF_CUDA_X86_VARIANTS
  return {"avx512", "avx2", "baseline"};
#else
  return {"baseline"};
#endif
}

const char* cpu_isa() {
  return nnmf_cuda::isa_name(nnmf_cuda::cpu_isa());
}

py::dict build_info() {
  py::dict info;
  info["version"] = NNMF_CUDA_VERSION;
  info["compiler"] = kCompiler;
  info["flags"] = NNMF_CUDA_FLAGS;
  info["cpu_instruction_sets"] = cpu_instruction_sets();
  info["stable_abi_target"] = NNMF_CUDA_STABLE_ABI;
#ifdef USE_CUDA
  info["cuda"] = true;
  info["cuda_version"] = NNMF_CUDA_CUDA_VERSION;
  info["cuda_architectures"] = words(NNMF_CUDA_ARCHITECTURES);
#else
  info["cuda"] = false;
  info["cuda_version"] = py::none();
  info["cuda_architectures"] = py::list();
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of nnmf_cuda; importing it registers them with torch.";
  m.def("build_info", &build_info, "Compiler, flags, instruction sets and CUDA architectures.");
  m.def("cpu_isa", &cpu_isa, "The variant of the CPU kernels that runs on this machine.");
}
