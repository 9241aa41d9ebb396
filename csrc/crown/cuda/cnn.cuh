// Bounds of a FeatureCNN on the device.
#pragma once

#include <cstdint>

#include "box.cuh"

namespace nnmf_cuda {

struct DeviceCnn {
  CnnShape shape;
  CrownLayer layers[4];
  const double* hidden;  // the hidden layer's weights, [pooled unit][hidden unit]
  const double* growth;  // of the layers below the last
  double slack;
};

NNMF_CUDA_INLINE int64_t pairs_of(const CnnShape& s) {
  return s.n_features / 2;
}

// What a block knows of its box.
struct CnnMemory {
  DeviceRegion region;
  // The first convolution's units, [n_features + 2][channel], a position of zeros at both ends.
  double *low, *high, *size, *lower, *upper, *offset, *carried;
  double *pair_low, *pair_high;  // [pair][3][channel]: a, b and a - b
  // The pooled units, [channel][pair].
  double *pooled_low, *pooled_high, *pooled_size, *lower_a, *lower_b, *upper_a, *upper_b, *plane;
  double *of_a, *of_b;  // the objective on their way back
  double *hidden_low, *hidden_high, *hidden_size, *functional, *constants;
  int64_t *open, *n_open;
  double* parts;  // [position][4][below | above][row]: to three features, and a constant
  double* slope;  // [n_features]

  // How many numbers it takes; without memory it only counts.
  NNMF_CUDA_INLINE int64_t carve(const CnnShape& s, double* memory) {
    BlockParts all(memory);
    const int64_t units = (s.n_features + 2) * s.first, pooled = s.second * pairs_of(s);
    region.take(all, s.n_features);
    for (double** values : {&low, &high, &size, &lower, &upper, &offset, &carried})
      all.take(*values, units);
    all.take(pair_low, 3 * pooled);
    all.take(pair_high, 3 * pooled);
    for (double** values : {&pooled_low, &pooled_high, &pooled_size, &lower_a, &lower_b, &upper_a,
                            &upper_b, &plane, &of_a, &of_b})
      all.take(*values, pooled);
    for (double** values : {&hidden_low, &hidden_high, &hidden_size, &functional})
      all.take(*values, s.hidden);
    all.take(constants, s.hidden + pooled + s.n_features * s.first);
    all.take(open, s.hidden);
    all.take(n_open, 1);
    all.take(parts, s.n_features * 8 * kCrownRows);
    all.take(slope, s.n_features);
    return all.used();
  }
};

class CnnBlock {
 public:
  __device__ CnnBlock(const DeviceCnn& net, const CrownBoxes& boxes, int64_t box,
                      const CnnMemory& memory)
      : net_(net),
        s_(net.shape),
        pairs_(pairs_of(net.shape)),
        boxes_(boxes),
        box_(box),
        m_(memory),
        region_(memory.region),
        objective_(boxes.objective + box * s_.n_classes) {}

  __device__ void run() {
    region_.load(boxes_, box_);
    const double largest = region_.largest(boxes_, box_);
    const double growth =
        *net_.growth * (largest <= 1 ? 1 : largest) * objective_growth(net_.layers[3], objective_);
    if (!(growth <= kMostGrowth)) return claim_nothing(boxes_, box_);
    slack_ = {net_.slack, kUnderflow * growth};
    for_items((s_.n_features + 2) * s_.first, [&](int64_t item) { bound_first(item); });
    for_items(3 * s_.second * pairs_, [&](int64_t item) { bound_row(item); });
    for_items(s_.second * pairs_, [&](int64_t item) { relax_pair(item); });
    for_items(s_.hidden, [&](int64_t o) { bound_hidden_by_intervals(o); });
    const int64_t n_open = list_open(m_.hidden_low, m_.hidden_high, s_.hidden, m_.open, m_.n_open);
    for (int64_t first = 0; first < n_open; first += kCrownRows) {
      const int64_t count = n_open - first < kCrownRows ? n_open - first : kCrownRows;
      for_items(s_.n_features * kCrownRows, [&](int64_t item) {
        const int64_t row = item % kCrownRows;
        if (row < count) carry_row(item / kCrownRows, row, m_.open[first + row]);
      });
      for_items(count, [&](int64_t row) { bound_hidden(row, m_.open[first + row]); });
    }
    for_items(s_.hidden, [&](int64_t o) { relax_hidden(o); });
    for_items(s_.second * pairs_, [&](int64_t unit) { objective_through_pool(unit); });
    for_items(s_.n_features * s_.first, [&](int64_t item) { objective_through_first(item); });
    for_items(s_.n_features, [&](int64_t i) { objective_to_feature(i); });
    give_objective();
  }

 private:
  __device__ int64_t hidden_at(int64_t o) const { return box_ * s_.hidden + o; }

  // The first convolution: ranges are exact, but for rounding.
  __device__ void bound_first(int64_t item) {
    const int64_t p = item / s_.first - 1, channel = item % s_.first;
    const bool within = p >= 0 && p < s_.n_features;
    const double* weights = net_.layers[0].weight + 3 * channel;
    const double bias = net_.layers[0].bias[channel];
    double low = 0, high = 0, size = 0;
    if (within) {
      const DeviceRange range = region_.range(p - 1, 3, [&](int64_t tap) { return weights[tap]; });
      size = magnitude(bias);
      for (int64_t tap = 0; tap < 3; ++tap) {
        const int64_t x = p - 1 + tap;
        if (x >= 0 && x < s_.n_features) size += magnitude(weights[tap]) * region_.magnitude_at(x);
      }
      low = range.low + bias - slack_.of(size);
      high = range.high + bias + slack_.of(size);
    }
    const Lines lines = relu_lines(low, high);
    m_.low[item] = low;
    m_.high[item] = high;
    m_.size[item] = size;
    m_.lower[item] = within ? lines.lower : 0;
    m_.upper[item] = within ? lines.upper : 0;
    m_.offset[item] = lines.offset;
  }

  enum Kind { kOff, kOn, kNearOn, kNearOff };

  __device__ Kind kind_of(int64_t unit) const {
    if (!(m_.high[unit] > 0)) return kOff;
    return m_.low[unit] >= 0 ? kOn : m_.lower[unit] > 0 ? kNearOn : kNearOff;
  }

  // The weight of a row of a pair, a, b or a - b of a channel, for position q of four.
  __device__ double window_weight(int64_t part, int64_t channel, int64_t below, int64_t q) const {
    const double* taps = net_.layers[1].weight + (channel * s_.first + below) * 3;
    const double left = q < 3 ? taps[q] : 0, right = q > 0 ? taps[q - 1] : 0;
    return part == 0 ? left : part == 1 ? right : left - right;
  }

  // Six features and a constant.
  struct Function {
    double of[7];
  };

  // Adds what row `part` of a pair takes of the units of one kind; `sign`: only its positive
  // weights (1), its negative ones (-1), or all (0).
  __device__ void add_units(int64_t p, int64_t part, int64_t channel, Kind kind, bool chord,
                            int sign, Function& f) const {
#pragma unroll
    for (int q = 0; q < 4; ++q)
      for (int64_t below = 0; below < s_.first; ++below) {
        const int64_t unit = (2 * p + q) * s_.first + below;
        if (kind_of(unit) != kind) continue;
        double w = window_weight(part, channel, below, q);
        w = sign == 0 ? w : sign > 0 ? larger(w, 0.0) : smaller(w, 0.0);
        const double z = chord ? w * m_.upper[unit] : w;
        const double* taps = net_.layers[0].weight + 3 * below;
#pragma unroll
        for (int t = 0; t < 3; ++t) f.of[q + t] += z * taps[t];
        f.of[6] += z * net_.layers[0].bias[below] + (chord ? w * m_.offset[unit] : 0);
      }
  }

  __device__ DeviceRange range_of(int64_t p, const Function& f) const {
    const DeviceRange range = region_.range(2 * p - 2, 6, [&](int64_t i) { return f.of[i]; });
    return {range.low + f.of[6], range.high + f.of[6]};
  }

  // A unit of a pair, or their difference, by the best of three choices of slopes below.
  __device__ void bound_row(int64_t item) {
    const int64_t rows = 3 * s_.second, p = item / rows, row = item % rows;
    const int64_t part = row / s_.second, channel = row % s_.second;
    Function settled{};
    add_units(p, part, channel, kOn, false, 0, settled);
    const double bias = part < 2 ? net_.layers[1].bias[channel] : 0;
    for (int side = 0; side < 2; ++side) {
      const int chords = side == 0 ? -1 : 1;
      Function f = settled;
      add_units(p, part, channel, kNearOn, true, chords, f);
      add_units(p, part, channel, kNearOff, true, chords, f);
      const DeviceRange off = range_of(p, f);
      add_units(p, part, channel, kNearOn, false, -chords, f);
      const DeviceRange nearer = range_of(p, f);
      add_units(p, part, channel, kNearOff, false, -chords, f);
      const DeviceRange on = range_of(p, f);
      if (side == 0)
        m_.pair_low[item] = larger(larger(off.low, nearer.low), on.low) + bias;
      else
        m_.pair_high[item] = smaller(smaller(off.high, nearer.high), on.high) + bias;
    }
  }

  __device__ double second_size(int64_t position, int64_t channel) const {
    double size = magnitude(net_.layers[1].bias[channel]);
    const double* weights = net_.layers[1].weight + channel * s_.first * 3;
    for (int64_t below = 0; below < s_.first; ++below)
      for (int64_t tap = 0; tap < 3; ++tap)
        size += magnitude(weights[below * 3 + tap]) * m_.size[(position + tap) * s_.first + below];
    return size;
  }

  __device__ void relax_pair(int64_t unit) {
    const int64_t channel = unit / pairs_, p = unit % pairs_;
    const double size_a = second_size(2 * p, channel), size_b = second_size(2 * p + 1, channel),
                 size = size_a + size_b;
    const double of_a = slack_.of(size_a), of_b = slack_.of(size_b), of_both = slack_.of(size);
    const double *low = m_.pair_low + 3 * p * s_.second + channel,
                 *high = m_.pair_high + 3 * p * s_.second + channel;
    const one_lane::PairBounds<double> bounds{low[0] - of_a,
                                              high[0] + of_a,
                                              low[s_.second] - of_b,
                                              high[s_.second] + of_b,
                                              low[2 * s_.second] - of_both,
                                              high[2 * s_.second] + of_both};
    const one_lane::PoolPlanes<double> planes = one_lane::pool_planes(bounds);
    m_.pooled_low[unit] = larger(larger(bounds.low_a, bounds.low_b), 0.0);
    m_.pooled_high[unit] = larger(larger(bounds.high_a, bounds.high_b), 0.0);
    m_.pooled_size[unit] = size;
    m_.lower_a[unit] = planes.lower_a;
    m_.lower_b[unit] = planes.lower_b;
    m_.upper_a[unit] = planes.upper_a;
    m_.upper_b[unit] = planes.upper_b;
    m_.plane[unit] = planes.offset;
  }

  __device__ void bound_hidden_by_intervals(int64_t o) {
    const double bias = net_.layers[2].bias[o];
    double low = bias, high = bias, size = magnitude(bias);
    for (int64_t unit = 0; unit < s_.second * pairs_; ++unit) {
      const double w = net_.hidden[unit * s_.hidden + o], plus = larger(w, 0.0),
                   minus = smaller(w, 0.0);
      size += magnitude(w) * m_.pooled_size[unit];
      low += plus * m_.pooled_low[unit] + minus * m_.pooled_high[unit];
      high += plus * m_.pooled_high[unit] + minus * m_.pooled_low[unit];
    }
    low -= slack_.of(size);
    high += slack_.of(size);
    meet_known(boxes_, box_, o, low, high);
    m_.hidden_low[o] = low;
    m_.hidden_high[o] = high;
    m_.hidden_size[o] = size;
  }

  static constexpr int kChannels = 4;  // of the first convolution at a time, in registers

  // What the function of a hidden unit asks of the first convolution at position p, on to three
  // features and a constant; and of the pooled units of pair p, a constant.
  __device__ void carry_row(int64_t p, int64_t row, int64_t hidden) {
    double taps_low[3] = {}, taps_high[3] = {}, low = 0, high = 0;
    for (int64_t first = 0; first < s_.first; first += kChannels) {
      double below[kChannels] = {}, above[kChannels] = {};
      for (int64_t tap = 0; tap < 3; ++tap) {
        const int64_t at = p + 1 - tap, pair = at / 2;
        if (at < 0 || pair >= pairs_) continue;
        const double *lower = at % 2 == 0 ? m_.lower_a : m_.lower_b,
                     *upper = at % 2 == 0 ? m_.upper_a : m_.upper_b;
        for (int64_t channel = 0; channel < s_.second; ++channel) {
          const int64_t unit = channel * pairs_ + pair;
          const double l = lower[unit], u = upper[unit];
          if (l == 0 && u == 0) continue;
          const double w = net_.hidden[unit * s_.hidden + hidden];
          const double of_low = through_line<false>(w, l, u, 0).coefficient,
                       of_high = through_line<true>(w, l, u, 0).coefficient;
          const double* weights = net_.layers[1].weight + (channel * s_.first + first) * 3 + tap;
#pragma unroll
          for (int i = 0; i < kChannels; ++i) {
            if (first + i >= s_.first) break;
            below[i] += weights[3 * i] * of_low;
            above[i] += weights[3 * i] * of_high;
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kChannels; ++i) {
        if (first + i >= s_.first) break;
        const int64_t unit = (p + 1) * s_.first + first + i;
        const double bias = net_.layers[0].bias[first + i];
        const double* weights = net_.layers[0].weight + 3 * (first + i);
        const ThroughLine of_low = through_line<false>(below[i], m_.lower[unit], m_.upper[unit],
                                                       m_.offset[unit]),
                          of_high = through_line<true>(above[i], m_.lower[unit], m_.upper[unit],
                                                       m_.offset[unit]);
        low += of_low.constant + of_low.coefficient * bias;
        high += of_high.constant + of_high.coefficient * bias;
#pragma unroll
        for (int t = 0; t < 3; ++t) {
          taps_low[t] += of_low.coefficient * weights[t];
          taps_high[t] += of_high.coefficient * weights[t];
        }
      }
    }
    if (p < pairs_)
      for (int64_t channel = 0; channel < s_.second; ++channel) {
        const int64_t unit = channel * pairs_ + p;
        const double w = net_.hidden[unit * s_.hidden + hidden],
                     bias = net_.layers[1].bias[channel];
        const auto through = [&]<bool above>(double& constant) {
          const ThroughLine a = through_line<above>(w, m_.lower_a[unit], m_.upper_a[unit],
                                                    m_.plane[unit]),
                            b = through_line<above>(w, m_.lower_b[unit], m_.upper_b[unit], 0);
          constant += a.constant + (a.coefficient + b.coefficient) * bias;
        };
        through.template operator()<false>(low);
        through.template operator()<true>(high);
      }
    double* parts = m_.parts + p * 8 * kCrownRows + row;
#pragma unroll
    for (int t = 0; t < 3; ++t) {
      parts[2 * t * kCrownRows] = taps_low[t];
      parts[(2 * t + 1) * kCrownRows] = taps_high[t];
    }
    parts[6 * kCrownRows] = low;
    parts[7 * kCrownRows] = high;
  }

  // Gathers what the positions ask of the features.
  __device__ void bound_hidden(int64_t row, int64_t o) {
    double bound[2];
    for (int side = 0; side < 2; ++side) {
      const double* parts = m_.parts + side * kCrownRows + row;
      const auto feature = [&](int64_t i) {
        double sum = 0;
        for (int64_t tap = 0; tap < 3; ++tap) {
          const int64_t p = i + 1 - tap;
          if (p >= 0 && p < s_.n_features) sum += parts[(8 * p + 2 * tap) * kCrownRows];
        }
        return sum;
      };
      const DeviceRange range = region_.range(0, s_.n_features, feature);
      double constant = net_.layers[2].bias[o];
      for (int64_t p = 0; p < s_.n_features; ++p) constant += parts[(8 * p + 6) * kCrownRows];
      bound[side] = (side == 0 ? range.low : range.high) + constant;
    }
    const double less = slack_.of(m_.hidden_size[o]);
    m_.hidden_low[o] = larger(m_.hidden_low[o], bound[0] - less);
    m_.hidden_high[o] = smaller(m_.hidden_high[o], bound[1] + less);
  }

  __device__ void relax_hidden(int64_t o) {
    boxes_.new_hidden_lower[hidden_at(o)] = m_.hidden_low[o];
    boxes_.new_hidden_upper[hidden_at(o)] = m_.hidden_high[o];
    double w = 0, size = 0;
    for (int64_t k = 0; k < s_.n_classes; ++k) {
      const double term = objective_[k] * net_.layers[3].weight[k * s_.hidden + o];
      w += term;
      size += magnitude(term);
    }
    const Lines lines = relu_lines(m_.hidden_low[o], m_.hidden_high[o]);
    const ThroughLine z = through_line<false>(w, lines.lower, lines.upper, lines.offset);
    m_.functional[o] = z.coefficient;
    m_.constants[o] = z.constant + z.coefficient * net_.layers[2].bias[o];
    m_.hidden_size[o] *= size;
  }

  __device__ void objective_through_pool(int64_t unit) {
    double w = 0;
    for (int64_t o = 0; o < s_.hidden; ++o)
      w += net_.hidden[unit * s_.hidden + o] * m_.functional[o];
    const ThroughLine a = through_line<false>(w, m_.lower_a[unit], m_.upper_a[unit],
                                              m_.plane[unit]),
                      b = through_line<false>(w, m_.lower_b[unit], m_.upper_b[unit], 0);
    m_.of_a[unit] = a.coefficient;
    m_.of_b[unit] = b.coefficient;
    m_.constants[s_.hidden + unit] =
        a.constant + (a.coefficient + b.coefficient) * net_.layers[1].bias[unit / pairs_];
  }

  __device__ void objective_through_first(int64_t item) {
    const int64_t p = item / s_.first, below = item % s_.first, unit = item + s_.first;
    double c = 0;
    for (int64_t tap = 0; tap < 3; ++tap) {
      const int64_t at = p + 1 - tap, pair = at / 2;
      if (at < 0 || pair >= pairs_) continue;
      const double* of = at % 2 == 0 ? m_.of_a : m_.of_b;
      for (int64_t channel = 0; channel < s_.second; ++channel)
        c += of[channel * pairs_ + pair] *
             net_.layers[1].weight[(channel * s_.first + below) * 3 + tap];
    }
    const ThroughLine z = through_line<false>(c, m_.lower[unit], m_.upper[unit], m_.offset[unit]);
    m_.carried[unit] = z.coefficient;
    m_.constants[s_.hidden + s_.second * pairs_ + item] =
        z.constant + z.coefficient * net_.layers[0].bias[below];
  }

  __device__ void objective_to_feature(int64_t i) {
    double sum = 0;
    for (int64_t tap = 0; tap < 3; ++tap) {
      const int64_t p = i + 1 - tap;
      if (p < 0 || p >= s_.n_features) continue;
      for (int64_t below = 0; below < s_.first; ++below)
        sum += m_.carried[(p + 1) * s_.first + below] * net_.layers[0].weight[3 * below + tap];
    }
    m_.slope[i] = sum;
  }

  __device__ void give_objective() {
    if (threadIdx.x < kWarp) {
      double size = sum_by_warp(m_.hidden_size, s_.hidden);
      double constant =
          sum_by_warp(m_.constants, s_.hidden + s_.second * pairs_ + s_.n_features * s_.first);
      for (int64_t k = 0; k < s_.n_classes; ++k) {
        const double term = objective_[k] * net_.layers[3].bias[k];
        constant += term;
        size += magnitude(term);
      }
      if (threadIdx.x == 0) m_.parts[0] = constant - slack_.of(size);
    }
    __syncthreads();
    give_bound(boxes_, box_, region_, m_.slope, m_.parts[0]);
  }

  const DeviceCnn& net_;
  const CnnShape& s_;
  int64_t pairs_;
  const CrownBoxes& boxes_;
  int64_t box_;
  const CnnMemory& m_;
  DeviceRegion region_;
  DeviceSlack slack_;
  const double* objective_;
};

}  // namespace nnmf_cuda
