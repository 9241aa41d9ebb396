// A factorisation as the CUDA kernels see it, which kernel serves it, and how the work of a
// half-step is cut into warps. The cut decides the order of sums: it depends on the shapes and on
// the number of multiprocessors, and on nothing else.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../../common/cuda/settings.h"
#include "warp_tile.cuh"

namespace nnmf_cuda {

struct Cut {
  int64_t length;          // the updated factor's side of X: n_samples for W
  int64_t depth;           // the other one, over which the sums run
  int64_t tiles;           // warps along the length
  int64_t splits;          // warps along the depth: each leaves sums of its own
  int64_t tiles_of_split;  // tiles that a warp walks along
};

constexpr int64_t kSchedulers = 4;  // of a multiprocessor: a warp stays with one of them

// How long a multiprocessor takes for `warps`, `resident` of them at one time, told in what a
// scheduler needs for one warp when it has others besides. Warps that end make room for others, so
// that all schedulers are busy; for the last ones it takes as long as the most loaded of them.
inline double turns_of(int64_t warps, int64_t resident) {
  constexpr double kAlone = 1.25;  // a warp alone waits for its own results a fifth of the time
  const int64_t last = warps % resident, each = resident / kSchedulers;
  const int64_t more = resident % kSchedulers;  // schedulers that have one warp more
  const auto rate = [](int64_t n) { return std::min(1.0, static_cast<double>(n) / kAlone); };
  const double rates = static_cast<double>(more) * rate(each + 1) +
                       static_cast<double>(kSchedulers - more) * rate(each);
  const auto most = static_cast<double>(blocks_of(last, kSchedulers));
  return static_cast<double>(warps - last) / rates + (last > 0 ? std::max(most, kAlone) : 0);
}

// `items`: rows (or columns) of a warp; `step`: depth of a tile; `resident`: warps that a
// multiprocessor holds at one time. Times are told in what a scheduler needs for one tile of one
// warp, as far as instructions tell.
inline Cut cut_of(int64_t batch, int64_t length, int64_t depth, int items, int step,
                  int64_t multiprocessors, int64_t resident) {
  constexpr int64_t kLongest = 512;    // float32 sums that go on further would lose digits
  constexpr double kStart = 1.5;       // of a warp: its first copy, its last stores
  constexpr double kSecondLaunch = 2;  // to add up the splits
  Cut cut{length, depth, blocks_of(length, items), 1, blocks_of(depth, step)};
  const int64_t tiles = cut.tiles_of_split;
  double best = -1;
  for (int64_t each = 1; each <= std::min(tiles, std::max<int64_t>(kLongest / step, 1)); ++each) {
    const int64_t splits = blocks_of(tiles, each);
    const int64_t warps = blocks_of(batch * cut.tiles * splits, multiprocessors);
    const double time = turns_of(warps, resident) * (static_cast<double>(each) + kStart) +
                        (splits > 1 ? kSecondLaunch : 0);
    if (best >= 0 && time >= best) continue;
    best = time;
    cut.splits = splits;
    cut.tiles_of_split = each;
  }
  return cut;
}

template <class T, class Data>
struct DeviceProblem : FactorParams<T, Data> {
  DeviceSize device;
};

// Lanes that share a row of `n_components`, when each has room for some.
inline int lanes_of(int64_t n_components, int of_lane) {
  int lanes = 1;
  while (lanes * of_lane < n_components) lanes *= 2;
  return lanes;
}

// Calls f(Tiling, lanes that share a row) for the number of components.
template <Loss loss, class T, class Data, class F>
void dispatch_tiling(int64_t n_components, const F& f) {
  constexpr bool kHot = loss == Loss::kKullbackLeibler || loss == Loss::kFrobenius;
  if constexpr (sizeof(T) == 4 && kHot) {
    if (n_components <= 8) return f(Tiling<loss, T, Data, 8, 2, false>{}, 1);
    if constexpr (loss == Loss::kKullbackLeibler) {
      if (n_components <= 16 && own_rows() == 2) return f(Tiling<loss, T, Data, 16, 2, false>{}, 1);
      if (n_components <= 15) return f(OneLess<Tiling<loss, T, Data, 16, 4, false>>{}, 1);
    }
    if (n_components <= 16) return f(Tiling<loss, T, Data, 16, 4, false>{}, 1);
    if (n_components <= 32) return f(Tiling<loss, T, Data, 32, 2, false>{}, 1);
    return f(Tiling<loss, T, Data, 32, 2, true>{}, lanes_of(n_components, 32));
  } else {
    return f(Tiling<loss, T, Data, 8, 2, true>{}, lanes_of(n_components, 8));
  }
}

// Warps that a multiprocessor holds at one time.
template <class Tiling, Factor factor>
int64_t resident_warps(const DeviceSize& device, int group) {
  const Stage stage = stage_of<Tiling, factor>(group);
  const int64_t room = device.shared_bytes / (kStages * stage.bytes + kReservedShared);
  return std::clamp<int64_t>(room, 1, Tiling::kResident);
}

template <class Tiling, Factor factor, class Problem>
Cut cut_for(const Problem& problem, int group) {
  const Shape& s = problem.shape;
  const bool rows = factor == Factor::kW;
  return cut_of(s.batch, rows ? s.n_samples : s.n_features, rows ? s.n_features : s.n_samples,
                stage_of<Tiling, factor>(group).items, Tiling::kDepth,
                problem.device.multiprocessors,
                resident_warps<Tiling, factor>(problem.device, group));
}

// How many bytes of X can be copied at once, `most` at most: all that a warp copies begins at a
// multiple of them. A warp begins at a multiple of `items` entries of a row.
template <class Problem>
int copied_at_once(const Problem& problem, int most, int64_t items) {
  constexpr int kSize = static_cast<int>(sizeof(*problem.X));
  const Shape& s = problem.shape;
  for (const int bytes : {most, 4}) {
    const auto whole = [&](int64_t entries) { return entries * kSize % bytes == 0; };
    if (bytes >= kSize && reinterpret_cast<std::uintptr_t>(problem.X) % bytes == 0 &&
        whole(s.x_row_stride) && whole(s.x_stride) && whole(items))
      return bytes;
  }
  return kSize;
}

template <class Tiling, Factor factor, class Problem>
int copied_at_once(const Problem& problem, int group) {
  return copied_at_once(problem, kMostAtOnce<Tiling, factor>,
                        factor == Factor::kW ? 0 : stage_of<Tiling, factor>(group).items);
}

// The way of this block's warp: a block for each problem, split and tile of the length. Task has
// X, its strides, the cut and `at_once`; `other` is the factor of all problems.
//
// What neighbouring blocks read at one time lies side by side in rows of X, as memory likes it: the
// splits take turns at the tiles of the depth, and where that runs along the rows (for W), splits
// of one tile of the length are neighbours.
template <class Tiling, Factor factor, class Task>
__device__ __forceinline__ Walk<Tiling> walk_of(const Task& task, const typename Tiling::T* other,
                                                int group) {
  const Cut& cut = task.cut;
  const auto tiles = static_cast<unsigned>(cut.tiles), splits = static_cast<unsigned>(cut.splits);
  Walk<Tiling> walk{};
  const bool along_rows = factor == Factor::kW;
  walk.tile = along_rows ? blockIdx.x / splits % tiles : blockIdx.x % tiles;
  walk.split = along_rows ? blockIdx.x % splits : blockIdx.x / tiles % splits;
  walk.problem = blockIdx.x / tiles / splits;
  walk.X = task.X + walk.problem * task.x_stride;
  walk.other = other + walk.problem * cut.depth * Tiling::kComponents * group;
  walk.row_stride = task.x_row_stride;
  walk.first = walk.tile * stage_of<Tiling, factor>(group).items;
  walk.length = cut.length;
  walk.begin = walk.split * Tiling::kDepth;
  walk.step = cut.splits * Tiling::kDepth;
  walk.end = cut.depth;
  walk.group = group;
  walk.at_once = task.at_once;
  return walk;
}

}  // namespace nnmf_cuda
