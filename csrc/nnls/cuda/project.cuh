// project on the device, and what of it depends on the components alone. Free of torch.
#pragma once

#include <cstdint>

#include "../../nnmf/cuda/half_step.cuh"
#include "launches.cuh"

namespace nnmf_cuda {

// packed [B, n_features, packed_components] = H, in new memory where it is null; grams [B,
// doubles_of_prepared] = H H^T made ready. Returns packed.
template <class T, class Data, class Memory>
T* launch_prepared(const DeviceProblem<T, Data>& problem, T* packed, bool cold, double* grams,
                   Memory& memory, cudaStream_t stream) {
  const Shape& s = problem.shape;
  const int64_t k = s.n_components;
  if (packed == nullptr)
    packed = memory.template get<T>(s.batch * s.n_features * packed_components<T>(s));
  double* const gram = memory.template get<double>(s.batch * k * k);
  launch_components(problem, packed, gram, memory, stream);
  launch_grams(gram, s.batch, k, cold, grams, stream);
  return packed;
}

// h [B, n_samples, n_components]
template <class T, class Data, class Memory>
void launch_project(const DeviceProblem<T, Data>& problem, double scale, T* h,
                    const ActiveSets& sets, const PreparedComponents<T>& prepared, Memory& memory,
                    cudaStream_t stream) {
  const Shape& s = problem.shape;
  const int64_t k = s.n_components;
  DeviceGrams grams{const_cast<double*>(prepared.grams), k};  // which rows only read
  const T* packed = prepared.packed;
  if (grams.memory == nullptr) {
    grams.memory = memory.template get<double>(s.batch * doubles_of_prepared(k));
    packed = launch_prepared(problem, static_cast<T*>(nullptr), sets.start == nullptr, grams.memory,
                             memory, stream);
  } else if (packed == nullptr) {
    T* const own = memory.template get<T>(s.batch * s.n_features * packed_components<T>(s));
    const int padded = static_cast<int>(packed_components<T>(s));
    launch_pack(problem.H, own, s.batch, layout_of_H(s, padded), stream);
    packed = own;
  }
  double* const cross = memory.template get<double>(s.batch * s.n_samples * k);
  launch_products(problem, scale, packed, cross, memory, stream);
  launch_rows(grams, cross, h, sets, {s.batch, s.n_samples, k}, memory, stream);
}

}  // namespace nnmf_cuda
