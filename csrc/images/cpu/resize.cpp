// Grey images to another size, byte by byte as Pillow's resize(..., BILINEAR) has it along the
// rows, then along the columns: weights of 22 bits, sums rounded to bytes each time.
//
//   resize_grey(Tensor images, *, int height, int width) -> Tensor
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../../common/arguments.h"
#include "../../common/cpu/threads.h"

namespace nnmf_cuda {
namespace {

constexpr int kResizeBits = 22;
constexpr int32_t kResizeHalf = int32_t{1} << (kResizeBits - 1);

// What each of `count` outputs is made of: `width` inputs from `first` on, with their weights. Up
// to three more stand behind them, without weights.
struct ResizeTaps {
  const int64_t* first;
  const int32_t* weights;  // [count, width]
  int64_t count, width;
  int64_t reach;  // so many inputs are read, some of them with a weight of zero
};

}  // namespace
}  // namespace nnmf_cuda

#define NNMF_CUDA_ISA_SOURCE "../../images/cpu/resize.h"
#include "../../common/cpu/isa.h"

namespace nnmf_cuda {
namespace {

constexpr int64_t kLongestSide = int64_t{1} << 24;
constexpr int64_t kGroup = 16;  // the numbers of the widest vector

// The weights of one direction. Here and not in the ISA source: they may not depend on whether
// products and sums are fused.
class ResizeWeights {
 public:
  // Outputs take whole groups of `group` inputs, which stay inside where there are as many.
  ResizeWeights(int64_t size, int64_t count, int64_t group) : count_(count), first_(count + 3) {
    const double scale = static_cast<double>(size) / static_cast<double>(count);
    const double stretch = std::max(scale, 1.0), squeeze = 1.0 / stretch;
    const int64_t most = static_cast<int64_t>(std::ceil(stretch)) * 2 + 1;
    width_ = (most + group - 1) / group * group;
    weights_.assign(static_cast<std::size_t>((count + 3) * width_), 0);
    std::vector<double> shares(static_cast<std::size_t>(most));
    for (int64_t i = 0; i < count; ++i) {
      const double center = (static_cast<double>(i) + 0.5) * scale;
      const int64_t begin = std::max<int64_t>(static_cast<int64_t>(center - stretch + 0.5), 0);
      const int64_t end = std::min(static_cast<int64_t>(center + stretch + 0.5), size);
      double sum = 0;
      for (int64_t k = 0; k < end - begin; ++k) {
        const double distance = std::abs((static_cast<double>(k + begin) - center + 0.5) * squeeze);
        shares[k] = distance < 1.0 ? 1.0 - distance : 0.0;
        sum += shares[k];
      }
      first_[i] = std::max<int64_t>(std::min(begin, size - width_), 0);
      int32_t* weights = weights_.data() + i * width_ + (begin - first_[i]);
      for (int64_t k = 0; k < end - begin; ++k) {
        const double share = sum != 0.0 ? shares[k] / sum : shares[k];
        weights[k] = static_cast<int32_t>(0.5 + share * (1 << kResizeBits));
      }
      reach_ = std::max(reach_, first_[i] + width_);
    }
  }

  ResizeTaps taps() const { return {first_.data(), weights_.data(), count_, width_, reach_}; }

 private:
  int64_t count_, width_ = 0, reach_ = 0;
  std::vector<int64_t> first_;
  std::vector<int32_t> weights_;
};

Tensor resize_grey_cpu(const Tensor& images_, int64_t height, int64_t width) {
  STD_TORCH_CHECK(images_.scalar_type() == ScalarType::Byte, "images must be uint8, got ",
                  dtype_name(images_.scalar_type()));
  check_dim({"images", images_}, 3);
  const Tensor images = adjacent(images_);
  const int64_t count = images.size(0), rows = images.size(1), columns = images.size(2);
  for (const int64_t side : {rows, columns, height, width})
    STD_TORCH_CHECK(side >= 1 && side <= kLongestSide,
                    "sides of images must be in [1, 2**24], got ", shape_of(images), " to become (",
                    height, ", ", width, ")");
  const Tensor resized = torch::stable::new_empty(images, {count, height, width});
  if (count == 0) return resized;
  const ResizeWeights across(columns, width, kGroup), down(rows, height, 1);
  const ResizeTaps to_columns = across.taps(), to_rows = down.taps();
  const int64_t stride = (width + kGroup - 1) / kGroup * kGroup;
  const int64_t between_rows = std::max(rows, to_rows.reach);
  const auto* from = images.const_data_ptr<uint8_t>();
  auto* to = resized.mutable_data_ptr<uint8_t>();
  parallel_for_ranges(count, [&](int64_t begin, int64_t end) {
    const Scratch<uint8_t> padded(std::max(columns, to_columns.reach));
    const Scratch<uint8_t> between(between_rows * stride);
    const Scratch<int32_t> sums(stride);
    padded.fill(0);
    between.fill(0);
    for (int64_t i = begin; i < end; ++i)
      NNMF_CUDA_CHOOSE(resize_image)(from + i * rows * columns, rows, columns, to_columns, to_rows,
                                     stride, padded.data(), sums.data(), between.data(),
                                     to + i * height * width);
  });
  return resized;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(nnmf_cuda, CPU, m) {
  m.impl("resize_grey", TORCH_BOX(&resize_grey_cpu));
}

}  // namespace nnmf_cuda
