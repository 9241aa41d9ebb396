// The beta-divergence on the device: a float64 number for each warp, then one for each problem.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "device_problem.cuh"
#include "factor_kernels.cuh"

// A thread is an instruction set of one lane.
#define NNMF_CUDA_ISA one_lane
// clang-format off: it builds on the first
#include "../../common/vector.h"
#include "../divergence_term.h"
// clang-format on
#undef NNMF_CUDA_ISA

namespace nnmf_cuda {

template <class T, class Data>
struct DivergenceTask {
  const Data* X;
  int64_t x_stride, x_row_stride;
  const T* W;     // [B, n_samples, padded]
  const T* H;     // [B, n_features, padded]
  double* parts;  // [B, tiles * splits]
  Cut cut;
  TermRule<double> rule;
  T floor;  // the rule's
  int group;
  int at_once;  // bytes of X
};

// What one entry of X adds.
template <Loss loss, class T>
NNMF_CUDA_INLINE double accurate_term(T x, T wh, const TermRule<double>& rule, T floor) {
  if constexpr (loss == Loss::kGeneral) {
    return general_divergence_term(static_cast<double>(x), static_cast<double>(wh), rule);
  } else {
    if (loss == Loss::kItakuraSaito && !(x > floor)) return -1;
    return static_cast<double>(one_lane::divergence_terms<loss, T>(x, wh, floor));
  }
}

// A lane's value, added up over the warp in fixed order; the result is lane 0's.
__device__ inline double sum_over_warp(double value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    value += __shfl_down_sync(kAllLanes, value, distance);
  return value;
}

// A warp for each problem, split and tile of rows, as in half_step_kernel.
template <class Tiling>
__global__ void __launch_bounds__(kWarp, Tiling::kResident)
    divergence_kernel(DivergenceTask<typename Tiling::T, typename Tiling::Data> task) {
  using T = typename Tiling::T;
  using Data = typename Tiling::Data;
  constexpr bool kPixels = sizeof(Data) == 1;
  NNMF_CUDA_DYNAMIC_SHARED(unsigned char, memory);
  const int group = Tiling::kGrouped ? task.group : 1, padded = Tiling::kComponents * group;
  const Place<Tiling, Factor::kW> place(group);
  const Walk<Tiling> walk = walk_of<Tiling, Factor::kW>(task, task.H, group);
  start_walk<Tiling, Factor::kW>(walk, memory);
  wait_for_kernel_before();
  const T* own = task.W + (walk.problem * task.cut.length + walk.first) * padded;
  T rows[Tiling::kOwn][Tiling::kComponents] = {};
#pragma unroll
  for (int i = 0; i < Tiling::kOwn; ++i)
    if (walk.first + place.row(i) < walk.length)
      load_components(own + place.row(i) * padded, place, rows[i]);

  double total = 0;
  for_each_tile<Tiling, Factor::kW>(
      walk, memory, [&](const unsigned char* tile, const T* other, int64_t deep) {
        for_each_entry<Tiling, Factor::kW>(
            tile, other, place,
            [&](int d, const T(&x)[Tiling::kOwn], const T(&components)[Tiling::kComponents]) {
#pragma unroll
              for (int i = 0; i < Tiling::kOwn; ++i) {
                const T wh = product<Tiling>(rows[i], components, group);
                const T value = kPixels ? x[i] / T{255} : x[i];
                const bool counts = place.part == 0 && deep + d < walk.end &&
                                    walk.first + place.row(i) < walk.length;
                if (counts) total += accurate_term<Tiling::kLoss>(value, wh, task.rule, task.floor);
              }
            });
      });
  total = sum_over_warp(total);
  if (threadIdx.x == 0) task.parts[blockIdx.x] = total;
}

// Calls f(Tiling, lanes that share a row) for the number of components: fewer kernels than there
// are for updates, which run ten times as often.
template <Loss loss, class T, class Data, class F>
void dispatch_divergence_tiling(int64_t n_components, const F& f) {
  if constexpr (sizeof(T) == 4) {
    if (n_components <= 16) return f(Tiling<loss, T, Data, 16, 4, false>{}, 1);
    return f(Tiling<loss, T, Data, 32, 2, true>{}, lanes_of(n_components, 32));
  } else {
    return f(Tiling<loss, T, Data, 8, 2, true>{}, lanes_of(n_components, 8));
  }
}

template <class Tiling>
class DivergenceLaunches {
 public:
  using T = typename Tiling::T;
  using Data = typename Tiling::Data;

  // Memory has get<T>(size), as DeviceMemory.
  template <class Memory>
  DivergenceLaunches(const DeviceProblem<T, Data>& problem, int group, Memory& memory)
      : problem_(problem),
        group_(group),
        padded_(Tiling::kComponents * group),
        cut_(cut_for<Tiling, Factor::kW>(problem, group)) {
    const Shape& s = problem.shape;
    W_packed_ = memory.template get<T>(s.batch * padded_ * s.n_samples);
    H_packed_ = memory.template get<T>(s.batch * padded_ * s.n_features);
    parts_ = memory.template get<double>(s.batch * parts());
  }

  void launch(const TermRule<double>& rule, double* divergence, cudaStream_t stream) const {
    const Shape& s = problem_.shape;
    launch_pack(problem_.W, W_packed_, s.batch, layout_of_W(s, padded_), stream);
    launch_pack(problem_.H, H_packed_, s.batch, layout_of_H(s, padded_), stream);
    const DivergenceTask<T, Data> task{problem_.X,
                                       s.x_stride,
                                       s.x_row_stride,
                                       W_packed_,
                                       H_packed_,
                                       parts_,
                                       cut_,
                                       rule,
                                       static_cast<T>(rule.floor),
                                       group_,
                                       copied_at_once<Tiling, Factor::kW>(problem_, group_)};
    if (s.batch * parts() > 0)
      NNMF_CUDA_LAUNCH_NEXT((divergence_kernel<Tiling>), grid_of(s.batch * parts()), kWarp,
                            (kStages * stage_of<Tiling, Factor::kW>(group_).bytes), stream, task);
    launch_sum_parts(parts_, divergence, s.batch, parts(), {1, 1, 1, 1, 1}, stream);
  }

 private:
  int64_t parts() const { return cut_.tiles * cut_.splits; }

  DeviceProblem<T, Data> problem_;
  int group_, padded_;
  Cut cut_;
  T *W_packed_, *H_packed_;
  double* parts_;
};

}  // namespace nnmf_cuda
