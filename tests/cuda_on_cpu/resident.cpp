// The CUDA kernel of nnmf_mu for small problems.
#include "nnmf/cuda/resident.cuh"

#include "call.h"
#include "nnmf_call.h"

using namespace nnmf_cuda;

namespace {

template <class Data>
void update(cuda_on_cpu::Call& call) {
  const Arguments<float, Data> arguments(call);
  const Updates updates(call, scale_of<Data>());
  launch_resident(arguments.problem, updates.of_W, updates.of_H, call.integer("n_iter"),
                  call.integer("update_H") != 0, arguments.result.W, arguments.result.H, nullptr);
}

}  // namespace

CUDA_ON_CPU_CALL(nnmf_resident) {
  if (call.is<uint8_t>("X"))
    update<uint8_t>(call);
  else
    update<float>(call);
}

// sizes [n, 4]: batch, n_samples, n_features, n_components.
CUDA_ON_CPU_CALL(stays_resident) {
  const int64_t n = call.size("sizes", 0);
  const int64_t* sizes = call.tensor<int64_t>("sizes");
  uint8_t* stays = call.result<uint8_t>("stays", {n});
  const DeviceSize device{132, call.integer("shared_bytes")};
  for (int64_t i = 0; i < n; ++i, sizes += 4)
    stays[i] = stays_resident({sizes[0], sizes[1], sizes[2], sizes[3], 0, sizes[2]}, device);
}
