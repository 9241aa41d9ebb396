// How the work of nnmf_mu's half-steps is cut into warps and what the cut is made for; where the
// lanes of a warp read in shared memory at one time.
#include "call.h"
#include "nnmf/cuda/device_problem.cuh"
#include "nnmf/cuda/factor_kernels.cuh"

namespace {

using namespace nnmf_cuda;

// Seven numbers: tiles, splits, tiles of a split; items, step, resident warps and how often they
// fit along the depth.
template <class Tiling, Factor factor, class Problem>
void write_cut(const Problem& problem, int group, int64_t* to) {
  const Cut cut = cut_for<Tiling, factor>(problem, group);
  const int64_t numbers[] = {cut.tiles,
                             cut.splits,
                             cut.tiles_of_split,
                             stage_of<Tiling, factor>(group).items,
                             Tiling::kDepth,
                             resident_warps<Tiling, factor>(problem.device, group),
                             blocks_of(cut.depth, Tiling::kDepth)};
  std::copy(std::begin(numbers), std::end(numbers), to);
}

template <Loss loss, class T, class Data>
void write_cuts(const Shape& shape, const DeviceSize& device, int64_t* to) {
  DeviceProblem<T, Data> problem{};
  problem.shape = shape;
  problem.device = device;
  dispatch_tiling<loss, T, Data>(shape.n_components, [&]<class Tiling>(Tiling, int group) {
    write_cut<Tiling, Factor::kW>(problem, group, to);
    write_cut<Tiling, Factor::kH>(problem, group, to + 7);
  });
}

// Rows (or columns) of X that a lane loads from one after the other.
template <class Tiling, Factor factor>
constexpr int kLoads = factor == Factor::kW ? Tiling::kOwn : 1;

// entries [kDepth, kLoads, 32], vectors [kVectors, 32]: bytes from the start of a stage.
template <class Tiling, Factor factor>
__global__ void reads_kernel(int group, int64_t* entries, int64_t* vectors) {
  const Place<Tiling, factor> place(group);
  const Stage stage = stage_of<Tiling, factor>(group);
  for (int d = 0; d < Tiling::kDepth; ++d)
    for (int i = 0; i < kLoads<Tiling, factor>; ++i)
      entries[(d * kLoads<Tiling, factor> + i) * kWarp + threadIdx.x] = place.entry(stage, d, i);
  constexpr int kSize = sizeof(typename Tiling::T);
  for (int v = 0; v < Tiling::kVectors; ++v)
    vectors[v * kWarp + threadIdx.x] = stage.x_bytes + place.vector(v) * kSize;
}

template <class Tiling, Factor factor>
void write_reads(cuda_on_cpu::Call& call, const char* entries, const char* vectors,
                 const char* sizes, int group) {
  NNMF_CUDA_LAUNCH((reads_kernel<Tiling, factor>), 1, kWarp, 0, nullptr, group,
                   call.result<int64_t>(entries, {Tiling::kDepth, kLoads<Tiling, factor>, kWarp}),
                   call.result<int64_t>(vectors, {Tiling::kVectors, kWarp}));
  constexpr int kAtOnce = factor == Factor::kW ? Tiling::kRun : Tiling::kOwn;
  int64_t* const size = call.result<int64_t>(sizes, {2});
  size[0] = kAtOnce * static_cast<int64_t>(sizeof(typename Tiling::Data));
  size[1] = stage_of<Tiling, factor>(group).bytes;
}

template <Loss loss, class T, class Data>
void write_all_reads(cuda_on_cpu::Call& call) {
  dispatch_tiling<loss, T, Data>(call.integer("k"), [&]<class Tiling>(Tiling, int group) {
    write_reads<Tiling, Factor::kW>(call, "entries_W", "vectors_W", "sizes_W", group);
    write_reads<Tiling, Factor::kH>(call, "entries_H", "vectors_H", "sizes_H", group);
  });
}

}  // namespace

// sizes [n, 4]: batch, n_samples, n_features, n_components; cuts [n, 2, 7].
CUDA_ON_CPU_CALL(cuts) {
  const int64_t n = call.size("sizes", 0);
  const int64_t* sizes = call.tensor<int64_t>("sizes");
  int64_t* cuts = call.result<int64_t>("cuts", {n, 2, 7});
  const DeviceSize device{call.integer("multiprocessors"), 228 * 1024};
  for (int64_t i = 0; i < n; ++i, sizes += 4, cuts += 14) {
    const Shape shape{sizes[0], sizes[1], sizes[2], sizes[3], 0, sizes[2]};
    if (call.integer("pixels") != 0)
      write_cuts<Loss::kKullbackLeibler, float, uint8_t>(shape, device, cuts);
    else
      write_cuts<Loss::kKullbackLeibler, float, float>(shape, device, cuts);
  }
}

// Of the types of tensors X and W.
CUDA_ON_CPU_CALL(reads) {
  if (call.is<double>("W") && call.is<uint8_t>("X"))
    write_all_reads<Loss::kKullbackLeibler, double, uint8_t>(call);
  else if (call.is<double>("W"))
    write_all_reads<Loss::kKullbackLeibler, double, double>(call);
  else if (call.is<uint8_t>("X"))
    write_all_reads<Loss::kKullbackLeibler, float, uint8_t>(call);
  else
    write_all_reads<Loss::kKullbackLeibler, float, float>(call);
}

CUDA_ON_CPU_CALL(gram_chunks) {
  *call.result<int64_t>("chunks", {1}) = gram_chunks(call.integer("batch"), call.integer("length"));
}

// Each number divided by each divisor.
CUDA_ON_CPU_CALL(quotients) {
  const int64_t n = call.size("numbers", 0), m = call.size("divisors", 0);
  const int64_t *numbers = call.tensor<int64_t>("numbers"),
                *divisors = call.tensor<int64_t>("divisors");
  int64_t* const quotients = call.result<int64_t>("quotients", {m, n});
  for (int64_t i = 0; i < m; ++i) {
    const Divisor divisor(divisors[i]);
    for (int64_t j = 0; j < n; ++j)
      quotients[i * n + j] = divisor.quotient(static_cast<unsigned>(numbers[j]));
  }
}
