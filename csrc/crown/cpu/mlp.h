// ISA source (see isa.h): bounds of an MLP over one box.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

// Memory of one box: what is known of each hidden layer, and functions on their way back.
struct MlpMemory {
  // Of one hidden layer, a number a unit.
  struct Layer {
    double *low, *high, *size, *lower, *upper, *offset;
  };

  int64_t carve(const PreparedMlp& net, char* memory) {
    MemoryParts parts(memory);
    const int64_t n_hidden = static_cast<int64_t>(net.layers.size()) - 1;
    parts.take(region, Region::size(net.n_features));
    parts.take(layers, n_hidden);
    for (int64_t d = 0; d < n_hidden; ++d) {
      Layer layer{};
      const int64_t lanes = net.layers[static_cast<std::size_t>(d)].out_lanes;
      for (double** values :
           {&layer.low, &layer.high, &layer.size, &layer.lower, &layer.upper, &layer.offset})
        parts.take(*values, lanes);
      if (memory != nullptr) layers[d] = layer;
    }
    parts.take(open, net.width);
    parts.take(alive, net.width);
    for (double** functions : {&settled, &low[0], &low[1], &high[0], &high[1]})
      parts.take(*functions, net.width * kPanel);
    parts.take(rows, 3 * net.width);
    parts.take(units, 2 * net.width);
    parts.take(weights, 2 * net.width * net.width);
    parts.take(constant_low, kPanel);
    parts.take(constant_high, kPanel);
    parts.take(carried[0], net.width);
    parts.take(carried[1], net.width);
    return parts.used();
  }

  double* region;
  Layer* layers;
  int64_t *open, *alive;
  double *settled, *low[2], *high[2];
  const double** rows;
  int64_t* units;
  double *weights, *constant_low, *constant_high, *carried[2];
};

class MlpBox {
 public:
  MlpBox(const PreparedMlp& net, const CrownBoxes& boxes, int64_t box, MlpMemory& memory)
      : net_(net),
        boxes_(boxes),
        box_(box),
        m_(memory),
        region_(boxes, box, memory.region),
        n_hidden_(static_cast<int64_t>(net.layers.size()) - 1) {}

  void run() {
    const double growth = net_.growth * at_least_one(region_.largest) *
                          objective_growth(objective(), last().weight.data(), last().bias.data(),
                                           last().outputs, last().in_lanes);
    if (!(growth <= kMostGrowth)) return claim_nothing(boxes_, box_);
    slack_ = {net_.slack, kUnderflow * growth};
    bound_first();
    for (int64_t d = 0; d < n_hidden_; ++d) {
      if (d > 0) bound_by_intervals(d);
      if (d == n_hidden_ - 1) meet_known(boxes_, box_, m_.layers[d].low, m_.layers[d].high);
      if (d > 0) {
        const int64_t n_open =
            list_open(m_.layers[d].low, m_.layers[d].high, of(d).outputs, m_.open);
        for (int64_t at = 0; at < n_open; at += kPanel)
          bound_panel(d, m_.open + at, n_open - at < kPanel ? n_open - at : kPanel);
      }
      relax(d);
    }
    give_hidden(boxes_, box_, m_.layers[n_hidden_ - 1].low, m_.layers[n_hidden_ - 1].high);
    bound_objective();
  }

 private:
  const MlpLayer& of(int64_t d) const { return net_.layers[static_cast<std::size_t>(d)]; }
  const MlpLayer& last() const { return of(n_hidden_); }
  const double* objective() const { return boxes_.objective + box_ * boxes_.n_classes; }

  // The first layer's ranges are exact, but for rounding.
  void bound_first() {
    const MlpLayer& layer = of(0);
    const MlpMemory::Layer& to = m_.layers[0];
    for (int64_t o = 0; o < layer.out_lanes; o += kLanes) {
      const auto weight = [&](int64_t i) {
        return Real::load(layer.columns.data() + i * layer.out_lanes + o);
      };
      const Lanes bias = Real::load(layer.bias.data() + o);
      const Range range = range_of(region_, 0, layer.inputs, weight);
      Lanes size = magnitude(bias);
      for (int64_t i = 0; i < layer.inputs; ++i)
        size += magnitude(weight(i)) * region_.magnitude_at(i);
      Real::store(to.low + o, range.low + bias - slack_.of(size));
      Real::store(to.high + o, range.high + bias + slack_.of(size));
      Real::store(to.size + o, size);
    }
  }

  // Layer d, where each unit below is anywhere within its bounds.
  void bound_by_intervals(int64_t d) {
    const MlpLayer& layer = of(d);
    const MlpMemory::Layer &to = m_.layers[d], &from = m_.layers[d - 1];
    for (int64_t o = 0; o < layer.out_lanes; o += kLanes) {
      const Lanes bias = Real::load(layer.bias.data() + o);
      Lanes low = bias, high = bias, size = magnitude(bias);
      const double* weights = layer.columns.data() + o;
      for (int64_t i = 0; i < layer.inputs; ++i, weights += layer.out_lanes) {
        const Lanes w = Real::load(weights);
        size += magnitude(w) * from.size[i];
        if (!(from.high[i] > 0)) continue;
        const Lanes plus = larger(w, Lanes{}), minus = smaller(w, Lanes{});
        const double least = larger(from.low[i], 0.0);
        low += plus * least + minus * from.high[i];
        high += plus * from.high[i] + minus * least;
      }
      Real::store(to.low + o, low - slack_.of(size));
      Real::store(to.high + o, high + slack_.of(size));
      Real::store(to.size + o, size);
    }
  }

  void relax(int64_t d) {
    const MlpMemory::Layer& layer = m_.layers[d];
    for (int64_t o = 0; o < of(d).out_lanes; o += kLanes) {
      const ReluLines<Lanes> lines =
          relu_lines(Real::load(layer.low + o), Real::load(layer.high + o));
      Real::store(layer.lower + o, lines.lower);
      Real::store(layer.upper + o, lines.upper);
      Real::store(layer.offset + o, lines.offset);
    }
  }

  // Functions of the units of a layer, one a row: those of units that are on are the same below and
  // above, as long as no open unit has been met.
  struct Functions {
    const double **settled, **low, **high;
    int64_t *settled_unit, *open_unit;
    int64_t n_settled, n_open;
  };

  // Bounds of up to kPanel units of layer d by functions that are carried back to the features.
  void bound_panel(int64_t d, const int64_t* open, int64_t count) {
    const MlpLayer& layer = of(d);
    const int64_t width = blocks_of(count, kLanes) * kLanes;
    for (double* constants : {m_.constant_low, m_.constant_high})
      for (int64_t r = 0; r < width; ++r)
        constants[r] = r < count ? layer.bias[static_cast<std::size_t>(open[r])] : 0;
    Functions f{m_.rows,  m_.rows + net_.width,  m_.rows + 2 * net_.width,
                m_.units, m_.units + net_.width, 0,
                0};
    start(d, open, count, width, f);
    int64_t now = 0;
    for (int64_t at = d - 1; at > 0; --at, now ^= 1) step_back(at, width, now, f);
    const double *low = m_.low[now], *high = m_.high[now];
    to_features(width, now, f);
    for (int64_t r = 0; r < width; r += kLanes) {
      const auto range = [&](const double* inputs, const double* constants) {
        const Range of = range_of(region_, 0, net_.n_features,
                                  [&](int64_t i) { return Real::load(inputs + i * kPanel + r); });
        const Lanes constant = Real::load(constants + r);
        return Range{of.low + constant, of.high + constant};
      };
      improve(range(low, m_.constant_low).low, range(high, m_.constant_high).high, slack_,
              m_.layers[d].size, open + r, count - r, m_.layers[d].low, m_.layers[d].high);
    }
  }

  // Takes rows of layer d's weights through the lines of the layer below.
  void start(int64_t d, const int64_t* open, int64_t count, int64_t width, Functions& f) {
    const MlpLayer &layer = of(d), &below = of(d - 1);
    const MlpMemory::Layer& lines = m_.layers[d - 1];
    for (int64_t k = 0; k < layer.inputs; ++k) {
      if (!(lines.high[k] > 0)) continue;
      double* rows = m_.settled + k * kPanel;
      const double* weights = layer.columns.data() + k * layer.out_lanes;
      for (int64_t r = 0; r < count; ++r) rows[r] = weights[open[r]];
      for (int64_t r = count; r < width; ++r) rows[r] = 0;
      const double bias = below.bias[static_cast<std::size_t>(k)];
      if (lines.low[k] >= 0) {
        f.settled[f.n_settled] = rows;
        f.settled_unit[f.n_settled++] = k;
        for (int64_t r = 0; r < width; r += kLanes) {
          const Lanes w = Real::load(rows + r);
          add(m_.constant_low + r, w * bias);
          add(m_.constant_high + r, w * bias);
        }
        continue;
      }
      double *low = m_.low[1] + k * kPanel, *high = m_.high[1] + k * kPanel;
      for (int64_t r = 0; r < width; r += kLanes) {
        const Lanes w = Real::load(rows + r);
        relax_row<false>(w, lines, k, bias, low + r, m_.constant_low + r);
        relax_row<true>(w, lines, k, bias, high + r, m_.constant_high + r);
      }
      f.low[f.n_open] = low;
      f.high[f.n_open] = high;
      f.open_unit[f.n_open++] = k;
    }
  }

  // Through the line of one unit, whose bias the constants get.
  template <bool above>
  static NNMF_CUDA_INLINE void relax_row(const Lanes& c, const MlpMemory::Layer& lines,
                                         int64_t unit, double bias, double* to, double* constant) {
    const Lanes relaxed = above ? larger(c, Lanes{}) : smaller(c, Lanes{});
    const Lanes z = c * lines.lower[unit] + relaxed * (lines.upper[unit] - lines.lower[unit]);
    Real::store(to, z);
    add(constant, relaxed * lines.offset[unit] + z * bias);
  }

  // finish(which of `alive`, row, vector below, vector above) for all functions taken through the
  // weights of layer `at` to those units below it that `alive` lists.
  template <class Finish>
  NNMF_CUDA_INLINE void multiply_back(int64_t at, const int64_t* alive, int64_t n_alive,
                                      int64_t width, const Functions& f, const Finish& finish) {
    const MlpLayer& layer = of(at);
    double *settled_weights = m_.weights, *open_weights = m_.weights + net_.width * net_.width;
    const auto pack = [&](const int64_t* units, int64_t n, double* to) {
      for (int64_t k = 0; k < n; ++k, to += n_alive) {
        const double* weights = layer.weight.data() + units[k] * layer.in_lanes;
        for (int64_t i = 0; i < n_alive; ++i) to[i] = weights[alive[i]];
      }
    };
    pack(f.settled_unit, f.n_settled, settled_weights);
    pack(f.open_unit, f.n_open, open_weights);
    const auto tiles = [&]<int64_t vectors>(int64_t row) {
      int64_t o = 0;
      const auto tile = [&]<int64_t count>() {
        for (; o + count <= n_alive; o += count) {
          Lanes below[count][vectors] = {};
          add_products(f.settled, row, settled_weights + o, n_alive, f.n_settled, below);
          Lanes above[count][vectors];
          __builtin_memcpy(above, below, sizeof(below));
          add_products(f.low, row, open_weights + o, n_alive, f.n_open, below);
          add_products(f.high, row, open_weights + o, n_alive, f.n_open, above);
          for (int64_t i = 0; i < count; ++i)
            for (int64_t v = 0; v < vectors; ++v)
              finish(o + i, row + v * kLanes, below[i][v], above[i][v]);
        }
      };
      tile.template operator()<kTile>();
      if constexpr (kTile > 4) tile.template operator()<4>();
      tile.template operator()<2>();
      tile.template operator()<1>();
    };
    int64_t row = 0;
    for (; row + 2 * kLanes <= width; row += 2 * kLanes) tiles.template operator()<2>(row);
    if (row < width) tiles.template operator()<1>(row);
  }

  // From layer `at` to the one below, and through its lines.
  void step_back(int64_t at, int64_t width, int64_t now, Functions& f) {
    const MlpMemory::Layer& lines = m_.layers[at - 1];
    int64_t n_alive = 0;
    for (int64_t i = 0; i < of(at).inputs; ++i)
      if (lines.high[i] > 0) m_.alive[n_alive++] = i;
    multiply_back(at, m_.alive, n_alive, width, f,
                  [&](int64_t i, int64_t row, const Lanes& below, const Lanes& above) {
                    const int64_t unit = m_.alive[i];
                    const double bias = of(at - 1).bias[static_cast<std::size_t>(unit)];
                    relax_row<false>(below, lines, unit, bias, m_.low[now] + i * kPanel + row,
                                     m_.constant_low + row);
                    relax_row<true>(above, lines, unit, bias, m_.high[now] + i * kPanel + row,
                                    m_.constant_high + row);
                  });
    f.n_settled = 0;
    f.n_open = n_alive;
    for (int64_t i = 0; i < n_alive; ++i) {
      f.low[i] = m_.low[now] + i * kPanel;
      f.high[i] = m_.high[now] + i * kPanel;
      f.open_unit[i] = m_.alive[i];
    }
  }

  void to_features(int64_t width, int64_t now, const Functions& f) {
    for (int64_t i = 0; i < net_.n_features; ++i) m_.alive[i] = i;
    multiply_back(0, m_.alive, net_.n_features, width, f,
                  [&](int64_t i, int64_t row, const Lanes& below, const Lanes& above) {
                    Real::store(m_.low[now] + i * kPanel + row, below);
                    Real::store(m_.high[now] + i * kPanel + row, above);
                  });
  }

  // The objective itself: one function, so that lanes are units.
  void bound_objective() {
    const double* objective = this->objective();
    double constant = 0, size = 0;
    for (int64_t k = 0; k < last().outputs; ++k) {
      const double term = objective[k] * last().bias[static_cast<std::size_t>(k)];
      constant += term;
      size += magnitude(term);
    }
    const double* c = objective;
    for (int64_t d = n_hidden_; d >= 0; --d) {
      const MlpLayer& layer = of(d);
      double* to = m_.carried[d % 2];
      Lanes constants{}, sizes{};
      for (int64_t i = 0; i < layer.in_lanes; i += kLanes) {
        Lanes sum{}, of_sizes{};
        for (int64_t k = 0; k < layer.outputs; ++k) {
          const Lanes term = c[k] * Real::load(layer.weight.data() + k * layer.in_lanes + i);
          sum += term;
          of_sizes += magnitude(term);
        }
        if (d > 0) {
          const MlpMemory::Layer& lines = m_.layers[d - 1];
          if (d == n_hidden_) sizes += of_sizes * Real::load(lines.size + i);
          const Lanes minus = smaller(sum, Lanes{}), lower = Real::load(lines.lower + i);
          sum = sum * lower + minus * (Real::load(lines.upper + i) - lower);
          constants +=
              minus * Real::load(lines.offset + i) + sum * Real::load(of(d - 1).bias.data() + i);
        }
        Real::store(to + i, sum);
      }
      constant += Real::sum(constants);
      size += Real::sum(sizes);
      c = to;
    }
    give_bound(boxes_, box_, region_, c, constant - slack_.of(size));
  }

  const PreparedMlp& net_;
  const CrownBoxes& boxes_;
  int64_t box_;
  MlpMemory& m_;
  Region region_;
  int64_t n_hidden_;
  Slack slack_{};
};

int64_t mlp_memory(const PreparedMlp& net) {
  return MlpMemory{}.carve(net, nullptr);
}

void bound_mlp(const PreparedMlp& net, const CrownBoxes& boxes, int64_t box, char* memory) {
  MlpMemory parts{};
  parts.carve(net, memory);
  MlpBox(net, boxes, box, parts).run();
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
