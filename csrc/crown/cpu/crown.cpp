// crown_bounds on the CPU, a box a task.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "../../common/cpu/threads.h"
#include "../ops.h"
#include "network.h"

#define NNMF_CUDA_ISA_SOURCE "../../crown/cpu/boxes.h"
#include "../../common/cpu/isa.h"

namespace nnmf_cuda {
namespace {

struct CrownOnCpu {
  explicit CrownOnCpu(const Tensor&) {}

  void bound(const CrownArguments& a, const CrownBoxes& boxes) const {
    if (a.is_cnn()) {
      const PreparedCnn net(a.layers(), a.cnn_shape());
      bound_boxes(net, boxes, NNMF_CUDA_CHOOSE(cnn_memory), NNMF_CUDA_CHOOSE(bound_cnn));
    } else {
      const PreparedMlp net(a.layers(), boxes.n_features);
      bound_boxes(net, boxes, NNMF_CUDA_CHOOSE(mlp_memory), NNMF_CUDA_CHOOSE(bound_mlp));
    }
  }

 private:
  template <class Net>
  static void bound_boxes(const Net& net, const CrownBoxes& boxes, int64_t (*memory_of)(const Net&),
                          void (*bound)(const Net&, const CrownBoxes&, int64_t, char*)) {
    const int64_t size = memory_of(net);
    parallel_for_ranges(boxes.n_boxes, [&](int64_t begin, int64_t end) {
      // From the allocator, which keeps it for the next call: to get as much from the system takes
      // longer than some boxes do.
      const auto memory =
          std::make_unique_for_overwrite<char[]>(static_cast<std::size_t>(size) + kCacheLine);
      void* aligned = memory.get();
      std::size_t space = static_cast<std::size_t>(size) + kCacheLine;
      std::align(kCacheLine, static_cast<std::size_t>(size), aligned, space);
      for (int64_t box = begin; box < end; ++box)
        bound(net, boxes, box, static_cast<char*>(aligned));
    });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CPU, m) {
  m.impl("crown_bounds", TORCH_BOX(&crown_bounds<CrownOnCpu>));
}

}  // namespace nnmf_cuda
