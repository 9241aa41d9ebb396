// How the work of a half-step is cut into warps. The cut decides the order of sums: it depends on
// the shapes and on the number of multiprocessors, and on nothing else.
#pragma once

#include <algorithm>
#include <cstdint>

#include "problem.h"

namespace nnmf_cuda {

struct Cut {
  int64_t length;          // the updated factor's side of X: n_samples for W
  int64_t depth;           // the other one, over which the sums run
  int64_t tiles;           // warps along the length
  int64_t splits;          // warps along the depth: each leaves sums of its own
  int64_t tiles_of_split;  // tiles that a warp walks along
};

// `items`: rows (or columns) of a warp; `step`: depth of a tile; `resident`: warps that a
// multiprocessor holds at one time. Times are told in what a multiprocessor needs for one tile of
// one warp, as far as instructions tell.
inline Cut cut_of(int64_t batch, int64_t length, int64_t depth, int items, int step,
                  int64_t multiprocessors, int64_t resident) {
  constexpr int64_t kLongest = 512;    // float32 sums that go on further would lose digits
  constexpr double kStart = 1.5;       // of a warp: its first copy, its last stores
  constexpr int64_t kBusy = 6;         // fewer warps at one time do not end sooner
  constexpr double kSecondLaunch = 8;  // to add up the splits
  Cut cut{length, depth, blocks_of(length, items), 1, blocks_of(depth, step)};
  const int64_t tiles = cut.tiles_of_split;
  double best = -1;
  for (int64_t each = 1; each <= std::min(tiles, std::max<int64_t>(kLongest / step, 1)); ++each) {
    const int64_t splits = blocks_of(tiles, each);
    const int64_t warps = blocks_of(batch * cut.tiles * splits, multiprocessors);
    const int64_t last = warps % resident;  // of the last wave
    const int64_t turns = warps - last + (last > 0 ? std::max(last, std::min(kBusy, resident)) : 0);
    const double time = static_cast<double>(turns) * (static_cast<double>(each) + kStart) +
                        (splits > 1 ? kSecondLaunch : 0);
    if (best >= 0 && time >= best) continue;
    best = time;
    cut.splits = splits;
    cut.tiles_of_split = each;
  }
  return cut;
}

}  // namespace nnmf_cuda
