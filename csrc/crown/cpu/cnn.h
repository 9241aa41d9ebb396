// ISA source (see isa.h): bounds of a FeatureCNN over one box.
//
// Units of the first convolution lie position by position, [n_features + 2][first_lanes], with a
// position of zeros before the first and after the last: a pair of positions of the second
// convolution sees four of them, and six features.

namespace nnmf_cuda {
namespace NNMF_CUDA_ISA {
namespace {

constexpr int64_t kWindow = 6;  // features that a pair of positions sees
constexpr int64_t kRowVectors = NNMF_CUDA_VECTOR_BYTES == 64 ? 2 : 1;

// Which slopes a unit of the first convolution has below: settled units one (and the same above),
// open ones any from 0 to 1.
enum UnitKind { kOn, kNearOn, kNearOff, kUnitKinds };

// A unit of the first convolution as a pair sees it.
struct WindowUnit {
  const double* column;  // what rows take of it
  double tap[3], bias;
  double chord_tap[3], chord_bias;
};

// Lists of such units, one for each of four positions and each kind.
struct Window {
  WindowUnit* units;
  int64_t capacity;
  int64_t count[kUnitKinds][4];

  const WindowUnit* of(int64_t kind, int64_t position) const {
    return units + (kind * 4 + position) * capacity;
  }
  WindowUnit* of(int64_t kind, int64_t position) {
    return units + (kind * 4 + position) * capacity;
  }
};

// What is carried back from a panel of hidden units through the pooled units at one position of the
// second convolution: rows of what each is multiplied by.
struct PositionList {
  const double **settled, **low, **high;  // [channels of the second convolution]
  int64_t *settled_channel, *open_channel;
  int64_t n_settled, n_open;
};

// Memory of one box.
struct CnnMemory {
  int64_t carve(const PreparedCnn& net, char* memory) {
    MemoryParts parts(memory);
    const CnnShape& s = net.shape;
    const int64_t units = (s.n_features + 2) * net.first_lanes,
                  pooled = s.n_pooled() * net.second_lanes, positions = 2 * s.n_pooled();
    parts.take(region, Region::size(s.n_features));
    for (double** values :
         {&first_low, &first_high, &first_size, &lower, &upper, &offset, &carried})
      parts.take(*values, units);
    parts.take(window.units, kUnitKinds * 4 * s.first);
    window.capacity = s.first;
    parts.take(pair_low, net.rows + kMostLanes);
    parts.take(pair_high, net.rows + kMostLanes);
    for (double** values : {&pooled_size, &pooled_low, &pooled_high, &lower_a, &lower_b, &upper_a,
                            &upper_b, &offset_p})
      parts.take(*values, pooled);
    for (double** values : {&hidden_low, &hidden_high, &hidden_size, &functional})
      parts.take(*values, net.hidden_lanes);
    parts.take(open, s.hidden);
    parts.take(panel, s.n_pooled() * s.second * kPanel);
    parts.take(scaled, 4 * s.n_pooled() * s.second * kPanel);
    parts.take(lists, positions);
    parts.take(rows, positions * 3 * s.second);
    parts.take(channels, positions * 2 * s.second);
    parts.take(list_rows, 3 * 3 * s.second);
    parts.take(list_weights, 2 * 3 * s.second * net.first_lanes);
    parts.take(alive, s.first);
    parts.take(inputs_low, (s.n_features + 2) * kPanel);
    parts.take(inputs_high, (s.n_features + 2) * kPanel);
    parts.take(constant_low, kPanel);
    parts.take(constant_high, kPanel);
    parts.take(slope, s.n_features + 2);
    return parts.used();
  }

  double* region;
  double *first_low, *first_high, *first_size, *lower, *upper, *offset, *carried;
  Window window;
  double *pair_low, *pair_high;
  double *pooled_size, *pooled_low, *pooled_high, *lower_a, *lower_b, *upper_a, *upper_b, *offset_p;
  double *hidden_low, *hidden_high, *hidden_size, *functional;
  int64_t* open;
  double *panel, *scaled;
  PositionList* lists;
  const double** rows;
  int64_t* channels;
  const double** list_rows;
  double* list_weights;
  int64_t* alive;
  double *inputs_low, *inputs_high, *constant_low, *constant_high, *slope;
};

class CnnBox {
 public:
  CnnBox(const PreparedCnn& net, const CrownBoxes& boxes, int64_t box, CnnMemory& memory)
      : net_(net),
        s_(net.shape),
        boxes_(boxes),
        box_(box),
        m_(memory),
        region_(boxes, box, memory.region) {}

  void run() {
    const double growth = net_.growth * at_least_one(region_.largest) *
                          objective_growth(objective(), net_.last.data(), net_.last_bias.data(),
                                           s_.n_classes, net_.hidden_lanes);
    if (!(growth <= kMostGrowth)) return claim_nothing(boxes_, box_);
    slack_ = {net_.slack, kUnderflow * growth};
    bound_first();
    for (int64_t p = 0; p < s_.n_pooled(); ++p) bound_pair(p);
    bound_hidden_by_intervals();
    meet_known(boxes_, box_, m_.hidden_low, m_.hidden_high);
    const int64_t n_open = list_open(m_.hidden_low, m_.hidden_high, s_.hidden, m_.open);
    for (int64_t at = 0; at < n_open; at += kPanel)
      bound_panel(m_.open + at, n_open - at < kPanel ? n_open - at : kPanel);
    give_hidden(boxes_, box_, m_.hidden_low, m_.hidden_high);
    bound_objective();
  }

 private:
  const double* objective() const { return boxes_.objective + box_ * s_.n_classes; }

  // The first convolution: ranges are exact, but for rounding.
  void bound_first() {
    const double* weights = net_.first.data();
    const int64_t lanes = net_.first_lanes;
    const auto zero = [&](int64_t position) {
      for (double* of : {m_.first_low, m_.first_high, m_.first_size, m_.lower, m_.upper, m_.offset})
        __builtin_memset(of + position * lanes, 0,
                         sizeof(double) * static_cast<std::size_t>(lanes));
    };
    zero(0);
    zero(s_.n_features + 1);
    for (int64_t p = 0; p < s_.n_features; ++p)
      for (int64_t i = 0; i < lanes; i += kLanes) {
        const Lanes bias = Real::load(weights + 3 * lanes + i);
        const Range range = range_of(
            region_, p - 1, 3, [&](int64_t tap) { return Real::load(weights + tap * lanes + i); });
        Lanes size = magnitude(bias);
        for (int64_t tap = 0; tap < 3; ++tap) {
          const int64_t x = p - 1 + tap;
          if (x < 0 || x >= s_.n_features) continue;
          size += magnitude(Real::load(weights + tap * lanes + i)) * region_.magnitude_at(x);
        }
        const Lanes low = range.low + bias - slack_.of(size),
                    high = range.high + bias + slack_.of(size);
        const ReluLines<Lanes> lines = relu_lines(low, high);
        const int64_t at = (p + 1) * lanes + i;
        Real::store(m_.first_low + at, low);
        Real::store(m_.first_high + at, high);
        Real::store(m_.first_size + at, size);
        Real::store(m_.lower + at, lines.lower);
        Real::store(m_.upper + at, lines.upper);
        Real::store(m_.offset + at, lines.offset);
      }
  }

  // The units that pair p sees, by position and kind.
  Window& list_window(int64_t p) {
    Window& window = m_.window;
    const double* weights = net_.first.data();
    const int64_t lanes = net_.first_lanes;
    for (int64_t q = 0; q < 4; ++q) {
      for (int64_t kind = 0; kind < kUnitKinds; ++kind) window.count[kind][q] = 0;
      for (int64_t i = 0; i < s_.first; ++i) {
        const int64_t at = (2 * p + q) * lanes + i;
        if (!(m_.first_high[at] > 0)) continue;
        const int64_t kind = m_.first_low[at] >= 0 ? kOn : m_.lower[at] > 0 ? kNearOn : kNearOff;
        WindowUnit& unit = window.of(kind, q)[window.count[kind][q]++];
        const double chord = m_.upper[at];
        unit.column = net_.windows.data() + (q * s_.first + i) * net_.rows;
        for (int64_t tap = 0; tap < 3; ++tap) {
          unit.tap[tap] = weights[tap * lanes + i];
          unit.chord_tap[tap] = chord * unit.tap[tap];
        }
        unit.bias = weights[3 * lanes + i];
        unit.chord_bias = chord * unit.bias + m_.offset[at];
      }
    }
    return window;
  }

  // Functions of the features that a pair sees, and their constants.
  struct Functions {
    Lanes of[kWindow + 1][kRowVectors];
  };

  // Adds what is carried back through units of one kind: part(c) of their columns.
  template <bool chord, class Part>
  static NNMF_CUDA_INLINE void add_units(const Window& window, int64_t kind, int64_t row,
                                         const Part& part, Functions& f) {
#pragma GCC unroll 4
    for (int64_t q = 0; q < 4; ++q) {
      const WindowUnit* unit = window.of(kind, q);
      for (const WindowUnit* end = unit + window.count[kind][q]; unit != end; ++unit) {
        const double *tap = chord ? unit->chord_tap : unit->tap,
                     bias = chord ? unit->chord_bias : unit->bias;
#pragma GCC unroll 2
        for (int64_t v = 0; v < kRowVectors; ++v) {
          const Lanes c = part(Real::load_once(unit->column + row + v * kLanes));
#pragma GCC unroll 3
          for (int64_t t = 0; t < 3; ++t) f.of[q + t][v] += c * tap[t];
          f.of[kWindow][v] += c * bias;
        }
      }
    }
  }

  // Both units of pair p and their difference, by the best of three choices of slopes below: the
  // nearer, all 0, all 1. Then planes around the pooled unit.
  void bound_pair(int64_t p) {
    const Window& window = list_window(p);
    const auto all = [](const Lanes& c) { return c; };
    const auto plus = [](const Lanes& c) { return larger(c, Lanes{}); };
    const auto minus = [](const Lanes& c) { return smaller(c, Lanes{}); };
    for (int64_t row = 0; row < net_.rows; row += kRowVectors * kLanes) {
      Functions settled{};
      add_units<false>(window, kOn, row, all, settled);
      Lanes low[kRowVectors], high[kRowVectors];
      const auto ranges = [&](const Functions& f, bool first, bool above) {
        for (int64_t v = 0; v < kRowVectors; ++v) {
          const Range range =
              range_of(region_, 2 * p - 2, kWindow, [&](int64_t i) { return f.of[i][v]; });
          const Lanes constant = f.of[kWindow][v];
          if (above) {
            const Lanes value = range.high + constant;
            high[v] = first ? value : smaller(high[v], value);
          } else {
            const Lanes value = range.low + constant;
            low[v] = first ? value : larger(low[v], value);
          }
        }
      };
      const auto directions = [&](bool above, const auto& chords, const auto& slopes) {
        Functions f = settled;
        add_units<true>(window, kNearOn, row, chords, f);
        add_units<true>(window, kNearOff, row, chords, f);
        ranges(f, true, above);
        add_units<false>(window, kNearOn, row, slopes, f);
        ranges(f, false, above);
        add_units<false>(window, kNearOff, row, slopes, f);
        ranges(f, false, above);
      };
      directions(false, minus, plus);
      directions(true, plus, minus);
      for (int64_t v = 0; v < kRowVectors; ++v) {
        const int64_t at = row + v * kLanes;
        const Lanes bias = Real::load(net_.row_bias.data() + at);
        Real::store(m_.pair_low + at, low[v] + bias);
        Real::store(m_.pair_high + at, high[v] + bias);
      }
    }
    relax_pair(p);
  }

  // The magnitudes of one position of the second convolution.
  Lanes second_size(int64_t position, int64_t c) const {
    Lanes size = magnitude(Real::load(net_.second_bias.data() + c));
    const double *sizes = m_.first_size + position * net_.first_lanes,
                 *weights = net_.magnitudes.data() + c;
    for (int64_t tap = 0; tap < 3; ++tap, sizes += net_.first_lanes)
      for (int64_t i = 0; i < s_.first; ++i, weights += net_.second_lanes)
        size += Real::load(weights) * sizes[i];
    return size;
  }

  void relax_pair(int64_t p) {
    for (int64_t c = 0; c < net_.second_lanes; c += kLanes) {
      const Lanes size_a = second_size(2 * p, c), size_b = second_size(2 * p + 1, c),
                  size = size_a + size_b;
      const auto load = [&](const double* from, int64_t part) {
        return Real::load(from + part * s_.second + c);
      };
      const Lanes of_a = slack_.of(size_a), of_b = slack_.of(size_b), of_both = slack_.of(size);
      const PairBounds<Lanes> bounds{
          load(m_.pair_low, 0) - of_a,    load(m_.pair_high, 0) + of_a,
          load(m_.pair_low, 1) - of_b,    load(m_.pair_high, 1) + of_b,
          load(m_.pair_low, 2) - of_both, load(m_.pair_high, 2) + of_both};
      const PoolPlanes<Lanes> planes = pool_planes(bounds);
      const int64_t at = p * net_.second_lanes + c;
      Real::store(m_.pooled_size + at, size);
      Real::store(m_.lower_a + at, planes.lower_a);
      Real::store(m_.lower_b + at, planes.lower_b);
      Real::store(m_.upper_a + at, planes.upper_a);
      Real::store(m_.upper_b + at, planes.upper_b);
      Real::store(m_.offset_p + at, planes.offset);
      const Lanes zero{};
      Real::store(m_.pooled_low + at, larger(larger(bounds.low_a, bounds.low_b), zero));
      Real::store(m_.pooled_high + at, larger(larger(bounds.high_a, bounds.high_b), zero));
    }
  }

  // Every hidden unit, where each pooled unit is anywhere within its bounds.
  void bound_hidden_by_intervals() {
    const int64_t lanes = net_.hidden_lanes;
    for (int64_t o = 0; o < lanes; o += kLanes) {
      const Lanes bias = Real::load(net_.hidden_bias.data() + o);
      Lanes low = bias, high = bias, size = magnitude(bias);
      const double* weights = net_.hidden.data() + o;
      for (int64_t p = 0; p < s_.n_pooled(); ++p)
        for (int64_t c = 0; c < s_.second; ++c, weights += lanes) {
          const int64_t at = p * net_.second_lanes + c;
          const Lanes w = Real::load(weights);
          size += magnitude(w) * m_.pooled_size[at];
          if (!(m_.pooled_high[at] > 0)) continue;
          const Lanes plus = larger(w, Lanes{}), minus = smaller(w, Lanes{});
          low += plus * m_.pooled_low[at] + minus * m_.pooled_high[at];
          high += plus * m_.pooled_high[at] + minus * m_.pooled_low[at];
        }
      Real::store(m_.hidden_low + o, low - slack_.of(size));
      Real::store(m_.hidden_high + o, high + slack_.of(size));
      Real::store(m_.hidden_size + o, size);
    }
  }

  // Bounds of up to kPanel hidden units by functions that are carried back to the features.
  void bound_panel(const int64_t* open, int64_t count) {
    const int64_t width = blocks_of(count, kLanes) * kLanes;
    constexpr int64_t kSize = sizeof(double);
    for (double* constants : {m_.constant_low, m_.constant_high})
      for (int64_t r = 0; r < width; ++r)
        constants[r] = r < count ? net_.hidden_bias[static_cast<std::size_t>(open[r])] : 0;
    const auto zero = [&](double* inputs) {
      __builtin_memset(inputs, 0, static_cast<std::size_t>((s_.n_features + 2) * width * kSize));
    };
    zero(m_.inputs_low);
    zero(m_.inputs_high);
    for (int64_t p = 0; p < s_.n_pooled(); ++p) back_through_pool(p, open, count, width);
    for (int64_t p = 0; p < s_.n_features; ++p) back_through_position(p, width);
    for (int64_t r = 0; r < width; r += kLanes) {
      const auto range = [&](const double* inputs, const double* constants) {
        const Range range = range_of(region_, 0, s_.n_features, [&](int64_t i) {
          return Real::load(inputs + (i + 1) * width + r);
        });
        const Lanes constant = Real::load(constants + r);
        return Range{range.low + constant, range.high + constant};
      };
      improve(range(m_.inputs_low, m_.constant_low).low,
              range(m_.inputs_high, m_.constant_high).high, slack_, m_.hidden_size, open + r,
              count - r, m_.hidden_low, m_.hidden_high);
    }
  }

  // The pooled units of pair p become lists of rows at its two positions.
  void back_through_pool(int64_t p, const int64_t* open, int64_t count, int64_t width) {
    PositionList* lists = m_.lists + 2 * p;
    for (int64_t side = 0; side < 2; ++side) {
      const int64_t at = 2 * p + side;
      PositionList& list = lists[side];
      list.settled = m_.rows + at * 3 * s_.second;
      list.low = list.settled + s_.second;
      list.high = list.low + s_.second;
      list.settled_channel = m_.channels + at * 2 * s_.second;
      list.open_channel = list.settled_channel + s_.second;
      list.n_settled = list.n_open = 0;
    }
    for (int64_t c = 0; c < s_.second; ++c) {
      const int64_t at = p * net_.second_lanes + c, unit = p * s_.second + c;
      const double lower[2] = {m_.lower_a[at], m_.lower_b[at]},
                   upper[2] = {m_.upper_a[at], m_.upper_b[at]}, offset = m_.offset_p[at];
      if (!(m_.pooled_high[at] > 0)) continue;
      double* rows = m_.panel + unit * kPanel;
      const double* weights = net_.hidden.data() + unit * net_.hidden_lanes;
      for (int64_t r = 0; r < count; ++r) rows[r] = weights[open[r]];
      for (int64_t r = count; r < width; ++r) rows[r] = 0;
      const double bias = net_.second_bias[static_cast<std::size_t>(c)];
      if (lower[0] == upper[0] && lower[1] == upper[1] && offset == 0) {
        PositionList& list = lists[lower[0] > 0 ? 0 : 1];
        list.settled[list.n_settled] = rows;
        list.settled_channel[list.n_settled++] = c;
        for (int64_t r = 0; r < width; r += kLanes) {
          const Lanes w = Real::load(rows + r);
          add(m_.constant_low + r, w * bias);
          add(m_.constant_high + r, w * bias);
        }
        continue;
      }
      double* scaled = m_.scaled + unit * 4 * kPanel;
      for (int64_t r = 0; r < width; r += kLanes) {
        const Lanes w = Real::load(rows + r), plus = larger(w, Lanes{}),
                    minus = smaller(w, Lanes{});
        Lanes low = minus * offset, high = plus * offset;
        for (int64_t side = 0; side < 2; ++side) {
          const Lanes of_low = plus * lower[side] + minus * upper[side],
                      of_high = plus * upper[side] + minus * lower[side];
          Real::store(scaled + 2 * side * kPanel + r, of_low);
          Real::store(scaled + (2 * side + 1) * kPanel + r, of_high);
          low += of_low * bias;
          high += of_high * bias;
        }
        add(m_.constant_low + r, low);
        add(m_.constant_high + r, high);
      }
      for (int64_t side = 0; side < 2; ++side) {
        if (lower[side] == 0 && upper[side] == 0) continue;
        PositionList& list = lists[side];
        list.low[list.n_open] = scaled + 2 * side * kPanel;
        list.high[list.n_open] = scaled + (2 * side + 1) * kPanel;
        list.open_channel[list.n_open++] = c;
      }
    }
  }

  // From the second convolution to the units of the first at position p, and from those to
  // features.
  void back_through_position(int64_t p, int64_t width) {
    const int64_t lanes = net_.first_lanes;
    int64_t n_alive = 0;
    for (int64_t i = 0; i < s_.first; ++i)
      if (m_.first_high[(p + 1) * lanes + i] > 0) m_.alive[n_alive++] = i;
    if (n_alive == 0) return;
    const int64_t most = 3 * s_.second;
    const double **settled = m_.list_rows, **low = settled + most, **high = low + most;
    double *settled_weights = m_.list_weights, *open_weights = settled_weights + most * lanes;
    int64_t n_settled = 0, n_open = 0;
    for (int64_t tap = 0; tap < 3; ++tap) {
      const int64_t from = p + 1 - tap;
      if (from < 0 || from >= 2 * s_.n_pooled()) continue;
      const PositionList& list = m_.lists[from];
      const auto pack = [&](int64_t c, double* to) {
        const double* weights = net_.second.data() + (c * 3 + tap) * lanes;
        for (int64_t i = 0; i < n_alive; ++i) to[i] = weights[m_.alive[i]];
      };
      for (int64_t k = 0; k < list.n_settled; ++k, ++n_settled) {
        settled[n_settled] = list.settled[k];
        pack(list.settled_channel[k], settled_weights + n_settled * n_alive);
      }
      for (int64_t k = 0; k < list.n_open; ++k, ++n_open) {
        low[n_open] = list.low[k];
        high[n_open] = list.high[k];
        pack(list.open_channel[k], open_weights + n_open * n_alive);
      }
    }
    const auto tiles = [&]<int64_t vectors>(int64_t row) {
      int64_t o = 0;
      const auto of = [&]<int64_t count>() {
        for (; o + count <= n_alive; o += count) {
          Lanes below[count][vectors] = {};
          add_products(settled, row, settled_weights + o, n_alive, n_settled, below);
          Lanes above[count][vectors];
          __builtin_memcpy(above, below, sizeof(below));
          add_products(low, row, open_weights + o, n_alive, n_open, below);
          to_features<false>(p, o, row, width, below, m_.inputs_low, m_.constant_low);
          add_products(high, row, open_weights + o, n_alive, n_open, above);
          to_features<true>(p, o, row, width, above, m_.inputs_high, m_.constant_high);
        }
      };
      of.template operator()<kTile>();
      if constexpr (kTile > 4) of.template operator()<4>();
      of.template operator()<2>();
      of.template operator()<1>();
    };
    int64_t row = 0;
    for (; row + 2 * kLanes <= width; row += 2 * kLanes) tiles.template operator()<2>(row);
    if (row < width) tiles.template operator()<1>(row);
  }

  // Takes functions of units of the first convolution through their lines to three features.
  template <bool above, int64_t count, int64_t vectors>
  NNMF_CUDA_INLINE void to_features(int64_t p, int64_t first, int64_t row, int64_t width,
                                    const Lanes (&of_units)[count][vectors], double* inputs,
                                    double* constants) const {
    const int64_t lanes = net_.first_lanes;
#pragma GCC unroll 2
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t at = row + v * kLanes;
      Lanes tap[3] = {}, constant = Real::load(constants + at);
#pragma GCC unroll 8
      for (int64_t i = 0; i < count; ++i) {
        const int64_t channel = m_.alive[first + i], unit = (p + 1) * lanes + channel;
        const double* weights = net_.first.data() + channel;
        const Lanes c = of_units[i][v];
        const Lanes relaxed = above ? larger(c, Lanes{}) : smaller(c, Lanes{});
        const Lanes z = c * m_.lower[unit] + relaxed * (m_.upper[unit] - m_.lower[unit]);
        constant += relaxed * m_.offset[unit] + z * weights[3 * lanes];
#pragma GCC unroll 3
        for (int64_t t = 0; t < 3; ++t) tap[t] += z * weights[t * lanes];
      }
      Real::store(constants + at, constant);
#pragma GCC unroll 3
      for (int64_t t = 0; t < 3; ++t) add(inputs + (p + t) * width + at, tap[t]);
    }
  }

  // The objective itself: one function, so that lanes are units.
  void bound_objective() {
    const double* objective = this->objective();
    Lanes constant{}, size{};
    double plain = 0, plain_size = 0;
    for (int64_t k = 0; k < s_.n_classes; ++k) {
      plain += objective[k] * net_.last_bias[static_cast<std::size_t>(k)];
      plain_size += magnitude(objective[k] * net_.last_bias[static_cast<std::size_t>(k)]);
    }
    for (int64_t o = 0; o < net_.hidden_lanes; o += kLanes) {
      Lanes w{}, of_sizes{};
      for (int64_t k = 0; k < s_.n_classes; ++k) {
        const Lanes term = objective[k] * Real::load(net_.last.data() + k * net_.hidden_lanes + o);
        w += term;
        of_sizes += magnitude(term);
      }
      const ReluLines<Lanes> lines =
          relu_lines(Real::load(m_.hidden_low + o), Real::load(m_.hidden_high + o));
      const Lanes minus = smaller(w, Lanes{}),
                  z = w * lines.lower + minus * (lines.upper - lines.lower);
      Real::store(m_.functional + o, z);
      constant += minus * lines.offset + z * Real::load(net_.hidden_bias.data() + o);
      size += of_sizes * Real::load(m_.hidden_size + o);
    }
    plain += Real::sum(constant);
    plain_size += Real::sum(size);
    plain += objective_through_pool();
    plain += objective_to_features();
    give_bound(boxes_, box_, region_, m_.slope + 1, plain - slack_.of(plain_size));
  }

  // m_.carried gets the objective as a function of the first convolution's units; its constant is
  // returned.
  double objective_through_pool() {
    const int64_t lanes = net_.first_lanes;
    __builtin_memset(m_.carried, 0,
                     sizeof(double) * static_cast<std::size_t>((s_.n_features + 2) * lanes));
    double constant = 0;
    for (int64_t p = 0; p < s_.n_pooled(); ++p)
      for (int64_t c = 0; c < s_.second; ++c) {
        const int64_t at = p * net_.second_lanes + c;
        if (!(m_.pooled_high[at] > 0)) continue;
        const double* weights = net_.hidden.data() + (p * s_.second + c) * net_.hidden_lanes;
        Lanes sum{};
        for (int64_t o = 0; o < net_.hidden_lanes; o += kLanes)
          sum += Real::load(weights + o) * Real::load(m_.functional + o);
        const double w = Real::sum(sum);
        const bool below = w >= 0;
        if (!below) constant += w * m_.offset_p[at];
        const double of[2] = {w * (below ? m_.lower_a : m_.upper_a)[at],
                              w * (below ? m_.lower_b : m_.upper_b)[at]};
        for (int64_t side = 0; side < 2; ++side) {
          if (of[side] == 0) continue;
          constant += of[side] * net_.second_bias[static_cast<std::size_t>(c)];
          const double* taps = net_.second.data() + c * 3 * lanes;
          double* to = m_.carried + (2 * p + side) * lanes;
          for (int64_t i = 0; i < 3 * lanes; i += kLanes)
            add(to + i, of[side] * Real::load(taps + i));
        }
      }
    return constant;
  }

  // m_.slope gets the objective as a function of the features, one zero before and after them; its
  // constant is returned.
  double objective_to_features() {
    const int64_t lanes = net_.first_lanes;
    for (int64_t i = 0; i < s_.n_features + 2; ++i) m_.slope[i] = 0;
    Lanes constant{};
    for (int64_t p = 0; p < s_.n_features; ++p) {
      Lanes tap[3] = {};
      for (int64_t i = 0; i < lanes; i += kLanes) {
        const int64_t at = (p + 1) * lanes + i;
        const double* weights = net_.first.data() + i;
        const Lanes c = Real::load(m_.carried + at), minus = smaller(c, Lanes{}),
                    lower = Real::load(m_.lower + at), upper = Real::load(m_.upper + at);
        const Lanes z = c * lower + minus * (upper - lower);
        constant += minus * Real::load(m_.offset + at) + z * Real::load(weights + 3 * lanes);
        for (int64_t t = 0; t < 3; ++t) tap[t] += z * Real::load(weights + t * lanes);
      }
      for (int64_t t = 0; t < 3; ++t) m_.slope[p + t] += Real::sum(tap[t]);
    }
    return Real::sum(constant);
  }

  const PreparedCnn& net_;
  const CnnShape& s_;
  const CrownBoxes& boxes_;
  int64_t box_;
  CnnMemory& m_;
  Region region_;
  Slack slack_{};
};

int64_t cnn_memory(const PreparedCnn& net) {
  return CnnMemory{}.carve(net, nullptr);
}

void bound_cnn(const PreparedCnn& net, const CrownBoxes& boxes, int64_t box, char* memory) {
  CnnMemory parts{};
  parts.carve(net, memory);
  CnnBox(net, boxes, box, parts).run();
}

}  // namespace
}  // namespace NNMF_CUDA_ISA
}  // namespace nnmf_cuda
