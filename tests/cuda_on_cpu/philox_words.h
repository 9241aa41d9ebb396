// ISA source of philox_vectors.cpp.
#include "common/vector.h"
#include "diffusion/cpu/philox_normals.h"

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

// The normal of each row of words [n][4].
void normals_from_rows(const int64_t* words, int64_t n, float* normals) {
  constexpr int64_t kLanes = Vector<double>::kLanes;
  for (int64_t i = 0; i < n; i += kLanes) {
    WordVectors lanes{};
    const int64_t count = n - i < kLanes ? n - i : kLanes;
    for (int64_t l = 0; l < count; ++l)
      for (int64_t w = 0; w < 4; ++w)
        lanes.word[w][l] = static_cast<uint64_t>(words[4 * (i + l) + w]) | kNoise;
    float rounded[kLanes];
    store_normals(rounded, normals_from_words(lanes));
    std::memcpy(normals + i, rounded, static_cast<std::size_t>(count) * sizeof(float));
  }
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
