// The Python module nnmf_cuda._build_info: facts about the build. pybind11 binds to one version of
// Python; the kernels, which do not, are in nnmf_cuda._C (module.cpp). No header of torch is here:
// its copy of pybind11 refuses to be included beside the stable ABI.
#include <sstream>
#include <string>
#include <vector>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

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

py::dict build_info() {
  py::dict info;
  info["version"] = NNMF_CUDA_VERSION;
  info["compiler"] = kCompiler;
  info["flags"] = NNMF_CUDA_FLAGS;
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

PYBIND11_MODULE(_build_info, m) {
  m.doc() = "How nnmf_cuda._C was built.";
  m.def("build_info", &build_info, "Version, compiler, flags and CUDA architectures.");
}
