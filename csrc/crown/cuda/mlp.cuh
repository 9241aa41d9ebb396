// Bounds of an MLP on the device.
#pragma once

#include <cstdint>

#include "box.cuh"

namespace nnmf_cuda {

struct DeviceMlp {
  CrownLayer layers[kMostLayers];
  int64_t n_layers, n_features, width;  // width: of the widest layer, the input among them
  const double* growth;                 // of the layers below the last
  double slack;

  NNMF_CUDA_INLINE int64_t n_hidden() const { return n_layers - 1; }
};

// What a block knows of its box.
struct MlpMemory {
  DeviceRegion region;
  double *low, *high, *size, *lower, *upper, *offset, *terms;  // [hidden layer][unit]
  int64_t *open, *n_open;
  double *now, *next;              // functions on their way back, [unit][below | above][row]
  double* constants;               // theirs, [below | above][row]
  double *carried, *carried_next;  // the objective on its way back, [unit]

  // How many numbers it takes; without memory it only counts.
  NNMF_CUDA_INLINE int64_t carve(const DeviceMlp& net, double* memory) {
    BlockParts all(memory);
    region.take(all, net.n_features);
    for (double** values : {&low, &high, &size, &lower, &upper, &offset, &terms})
      all.take(*values, net.n_hidden() * net.width);
    all.take(open, net.width);
    all.take(n_open, 1);
    all.take(now, net.width * 2 * kCrownRows);
    all.take(next, net.width * 2 * kCrownRows);
    all.take(constants, 2 * kCrownRows);
    all.take(carried, net.width);
    all.take(carried_next, net.width);
    return all.used();
  }
};

class MlpBlock {
 public:
  __device__ MlpBlock(const DeviceMlp& net, const CrownBoxes& boxes, int64_t box,
                      const MlpMemory& memory)
      : net_(net),
        boxes_(boxes),
        box_(box),
        m_(memory),
        region_(memory.region),
        objective_(boxes.objective + box * boxes.n_classes) {}

  __device__ void run() {
    region_.load(boxes_, box_);
    const double largest = region_.largest(boxes_, box_);
    const int64_t n_hidden = net_.n_hidden();
    const double growth = *net_.growth * (largest <= 1 ? 1 : largest) *
                          objective_growth(net_.layers[n_hidden], objective_);
    if (!(growth <= kMostGrowth)) return claim_nothing(boxes_, box_);
    slack_ = {net_.slack, kUnderflow * growth};
    for (int64_t d = 0; d < n_hidden; ++d) {
      const int64_t n_units = net_.layers[d].outputs, at = d * net_.width;
      for_items(n_units, [&](int64_t o) { d == 0 ? bound_first(o) : bound_by_intervals(d, o); });
      if (d > 0) {
        const int64_t n_open = list_open(m_.low + at, m_.high + at, n_units, m_.open, m_.n_open);
        for (int64_t first = 0; first < n_open; first += kCrownRows)
          bound_rows(d, m_.open + first, n_open - first < kCrownRows ? n_open - first : kCrownRows);
      }
      for_items(n_units, [&](int64_t o) { relax(d, o); });
    }
    bound_objective();
  }

 private:
  __device__ bool is_last(int64_t d) const { return d == net_.n_hidden() - 1; }

  __device__ void store(int64_t d, int64_t o, double low, double high, double size) {
    low -= slack_.of(size);
    high += slack_.of(size);
    if (is_last(d)) meet_known(boxes_, box_, o, low, high);
    const int64_t at = d * net_.width + o;
    m_.low[at] = low;
    m_.high[at] = high;
    m_.size[at] = size;
  }

  // The first layer: ranges are exact, but for rounding.
  __device__ void bound_first(int64_t o) {
    const CrownLayer& layer = net_.layers[0];
    const double *weights = layer.weight + o * layer.inputs, bias = layer.bias[o];
    const DeviceRange range = region_.range(0, layer.inputs, [&](int64_t i) { return weights[i]; });
    double size = magnitude(bias);
    for (int64_t i = 0; i < layer.inputs; ++i)
      size += magnitude(weights[i]) * region_.magnitude_at(i);
    store(0, o, range.low + bias, range.high + bias, size);
  }

  // A unit, where each unit below is anywhere within its bounds.
  __device__ void bound_by_intervals(int64_t d, int64_t o) {
    const CrownLayer& layer = net_.layers[d];
    const double *weights = layer.weight + o * layer.inputs, bias = layer.bias[o];
    double low = bias, high = bias, size = magnitude(bias);
    for (int64_t i = 0; i < layer.inputs; ++i) {
      const int64_t unit = (d - 1) * net_.width + i;
      const double w = weights[i], least = larger(m_.low[unit], 0.0),
                   most = larger(m_.high[unit], 0.0);
      size += magnitude(w) * m_.size[unit];
      low += larger(w, 0.0) * least + smaller(w, 0.0) * most;
      high += larger(w, 0.0) * most + smaller(w, 0.0) * least;
    }
    store(d, o, low, high, size);
  }

  __device__ void relax(int64_t d, int64_t o) {
    const int64_t at = d * net_.width + o;
    const Lines lines = relu_lines(m_.low[at], m_.high[at]);
    m_.lower[at] = lines.lower;
    m_.upper[at] = lines.upper;
    m_.offset[at] = lines.offset;
    if (!is_last(d)) return;
    boxes_.new_hidden_lower[box_ * boxes_.n_hidden + o] = m_.low[at];
    boxes_.new_hidden_upper[box_ * boxes_.n_hidden + o] = m_.high[at];
  }

  template <bool above>
  __device__ ThroughLine through(int64_t d, int64_t unit, double c) const {
    const int64_t at = d * net_.width + unit;
    return through_line<above>(c, m_.lower[at], m_.upper[at], m_.offset[at]);
  }

  // Bounds of up to kCrownRows units of layer d by functions that are carried back to the features.
  __device__ void bound_rows(int64_t d, const int64_t* open, int64_t count) {
    const CrownLayer& layer = net_.layers[d];
    for_items((layer.inputs + 1) * kCrownRows, [&](int64_t item) {
      const int64_t row = item % kCrownRows, k = item / kCrownRows;
      if (row >= count) return;
      double* to = k == layer.inputs ? m_.constants : m_.now + k * 2 * kCrownRows;
      to[row] = to[kCrownRows + row] =
          k == layer.inputs ? layer.bias[open[row]] : layer.weight[open[row] * layer.inputs + k];
    });
    double *now = m_.now, *next = m_.next;
    for (int64_t at = d - 1; at >= 0; --at) {
      const int64_t inputs = net_.layers[at].inputs;
      for_items((inputs + 1) * 2 * kCrownRows, [&](int64_t item) {
        const int64_t row = item % kCrownRows, side = item / kCrownRows % 2,
                      i = item / (2 * kCrownRows);
        if (row >= count) return;
        const double* from = now + side * kCrownRows + row;
        const double found = side == 0 ? carried<false>(at, i, from) : carried<true>(at, i, from);
        if (i == inputs)
          m_.constants[side * kCrownRows + row] += found;
        else
          next[item] = found;
      });
      double* const before = now;
      now = next;
      next = before;
    }
    for_items(count, [&](int64_t row) {
      const auto range = [&](int64_t side) {
        const double* from = now + side * kCrownRows + row;
        return region_.range(0, net_.n_features,
                             [&](int64_t i) { return from[i * 2 * kCrownRows]; });
      };
      const int64_t unit = d * net_.width + open[row];
      const double less = slack_.of(m_.size[unit]);
      m_.low[unit] = larger(m_.low[unit], range(0).low + m_.constants[row] - less);
      m_.high[unit] = smaller(m_.high[unit], range(1).high + m_.constants[kCrownRows + row] + less);
    });
  }

  // What a function of layer `at`, behind its lines, is of unit i below; of the bias, if i is none.
  template <bool above>
  __device__ double carried(int64_t at, int64_t i, const double* function) const {
    const CrownLayer& layer = net_.layers[at];
    double sum = 0;
    for (int64_t k = 0; k < layer.outputs; ++k) {
      const ThroughLine z = through<above>(at, k, function[k * 2 * kCrownRows]);
      sum += i == layer.inputs ? z.constant + z.coefficient * layer.bias[k]
                               : z.coefficient * layer.weight[k * layer.inputs + i];
    }
    return sum;
  }

  __device__ void bound_objective() {
    const int64_t n_hidden = net_.n_hidden(), last = (n_hidden - 1) * net_.width;
    const double* c = objective_;
    double *to = m_.carried, *next = m_.carried_next;
    for (int64_t d = n_hidden; d >= 0; --d) {
      const CrownLayer& layer = net_.layers[d];
      for_items(layer.inputs, [&](int64_t i) {
        double sum = 0, size = 0;
        for (int64_t k = 0; k < layer.outputs; ++k) {
          const double term = c[k] * layer.weight[k * layer.inputs + i];
          sum += term;
          size += magnitude(term);
        }
        if (d == n_hidden) m_.size[last + i] *= size;
        if (d > 0) {
          const ThroughLine z = through<false>(d - 1, i, sum);
          sum = z.coefficient;
          m_.terms[(d - 1) * net_.width + i] =
              z.constant + z.coefficient * net_.layers[d - 1].bias[i];
        }
        to[i] = sum;
      });
      c = to;
      to = next;
      next = const_cast<double*>(c);
    }
    if (threadIdx.x < kWarp) {
      double constant = 0, size = sum_by_warp(m_.size + last, boxes_.n_hidden);
      for (int64_t d = 0; d < n_hidden; ++d)
        constant += sum_by_warp(m_.terms + d * net_.width, net_.layers[d].outputs);
      for (int64_t k = 0; k < boxes_.n_classes; ++k) {
        const double term = objective_[k] * net_.layers[n_hidden].bias[k];
        constant += term;
        size += magnitude(term);
      }
      if (threadIdx.x == 0) m_.constants[0] = constant - slack_.of(size);
    }
    __syncthreads();
    give_bound(boxes_, box_, region_, c, m_.constants[0]);
  }

  const DeviceMlp& net_;
  const CrownBoxes& boxes_;
  int64_t box_;
  const MlpMemory& m_;
  DeviceRegion region_;
  DeviceSlack slack_;
  const double* objective_;
};

}  // namespace nnmf_cuda
