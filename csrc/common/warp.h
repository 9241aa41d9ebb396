// A warp.
#pragma once

namespace nnmf_cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffff;

}  // namespace nnmf_cuda
