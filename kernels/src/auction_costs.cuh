// Costs to integers and back: quantisation, starting prices, and the certificate.

#pragma once
#include "auction_forest.cuh"

constexpr int BITS = 29;               // the largest integer lies between 2**28 and 2**29

// Costs of one problem, to be minimised: integer = rint((cost - low) * scale), where the scale
// 2**shift = factor[0] * factor[1] is a power of two, so that integer costs stay exact.
struct Costs {
  const void* data;  // [n, n] of a stride; float32, or float64 where `wide`
  bool wide;
  i64 stride;
  double sign, low, factor[2];
  int shift;
  __device__ __forceinline__ double at(int i, int j) const {
    const i64 place = i * stride + j;
    return sign * (wide ? static_cast<const double*>(data)[place]
                        : static_cast<double>(static_cast<const float*>(data)[place]));
  }
  __device__ __forceinline__ int integer(double cost) const {
    return static_cast<int>(rint((cost - low) * factor[0] * factor[1]));
  }
};

// Doubles as integers of the same order.
__device__ __forceinline__ u64 ordered(double x) {
  const i64 bits = __double_as_longlong(x);
  return static_cast<u64>(bits) ^ (bits < 0 ? ~0ull : 1ull << 63);
}
__device__ __forceinline__ double unordered(u64 bits) {
  return __longlong_as_double(static_cast<i64>(bits ^ (bits >> 63 ? 1ull << 63 : ~0ull)));
}

// Range and scale of the costs; false if one is NaN or infinite, or so large that sums overflow.
template <class Team>
__device__ bool measure(Team& team, const Problem& s, Costs& costs) {
  Box& box = *s.box;
  if (team.rank == 0) {
    box.low = ~0ull;
    box.high = box.sum = box.squares_low = box.squares_high = 0;
    box.slack = 0;
  }
  team.sync();
  const double largest = 1.7976931348623157e308 / (8.0 * (costs.stride + 1.0));
  u64 low = ~0ull, high = 0;
  bool bad = false;
  for (int i = worker_of(team); i < s.n; i += workers_of(team)) {
    for (int j = lane_of(team); j < s.n; j += Team::LANES) {
      const double cost = costs.at(i, j);
      bad |= !(fabs(cost) <= largest);
      low = min(low, ordered(cost));
      high = max(high, ordered(cost));
    }
  }
  low = reduce<Team::LANES>(low, Lesser());
  high = reduce<Team::LANES>(high, Greater());
  if (lane_of(team) == 0) {
    atomicMin(&box.low, low);
    atomicMax(&box.high, high);
  }
  if (bad) atomicAdd(&box.slack, 1);
  team.sync();
  if (box.slack > 0) return false;
  costs.low = s.n > 0 ? unordered(box.low) : 0.0;
  const double range = s.n > 0 ? unordered(box.high) - costs.low : 0.0;
  int exponent = BITS;
  if (range > 0) frexp(range, &exponent);
  costs.shift = BITS - exponent;
  costs.factor[0] = ldexp(1.0, costs.shift / 2);
  costs.factor[1] = ldexp(1.0, costs.shift - costs.shift / 2);
  return true;
}

// The integers, their sums, and a start from nothing.
template <class Team>
__device__ void make_integers(Team& team, const Problem& s, const Costs& costs) {
  u64 sum = 0, low = 0, high = 0;
  for (int i = worker_of(team); i < s.n; i += workers_of(team)) {
    for (int j = lane_of(team); j < s.padded; j += Team::LANES) {
      const int value = j < s.n ? costs.integer(costs.at(i, j)) : 0;
      const u64 square = static_cast<u64>(value) * static_cast<u64>(value);
      s.q[i * s.row_stride + j] = value;
      sum += value;
      low += square & 0xfffffff;
      high += square >> 28;
    }
  }
  sum = reduce<Team::LANES>(sum, Plus());
  low = reduce<Team::LANES>(low, Plus());
  high = reduce<Team::LANES>(high, Plus());
  if (lane_of(team) == 0) {
    atomicAdd(&s.box->sum, sum);
    atomicAdd(&s.box->squares_low, low);
    atomicAdd(&s.box->squares_high, high);
  }
  for (int j = team.rank; j < s.padded; j += team.size) {
    s.price[j] = j < s.n ? 0 : LARGEST;
    s.reach[j] = -LARGEST;  // padding is never relaxed
    s.col[j] = s.owner[j] = NONE;
  }
  team.sync();
}

// Standard deviation of the integers.
__device__ __forceinline__ double standard_deviation(const Problem& s) {
  const double count = max(1.0, static_cast<double>(s.n) * s.n);
  const double mean = s.box->sum / count;
  const double squares = s.box->squares_high / count * 268435456.0 + s.box->squares_low / count;
  return sqrt(max(0.0, squares - mean * mean));
}

// Start from duals of the columns [n] and, where given, columns of the rows [n]. Values that
// make no sense are as good as any: they cost rounds, never the optimum.
template <class Team>
__device__ void start_from(
    Team& team, const Problem& s, const Costs& costs, const double* dual, const i64* pairs) {
  if (team.rank == 0) s.box->high = 0;
  team.sync();
  for (int j = team.rank; j < s.n; j += team.size) {
    const double value = costs.sign * dual[j];
    if (fabs(value) < 1e308) atomicMax(&s.box->high, ordered(value));
    if (pairs && pairs[j] >= 0 && pairs[j] < s.n) atomicMax(&s.owner[pairs[j]], j);
  }
  team.sync();
  const double highest = unordered(s.box->high);
  for (int j = team.rank; j < s.n; j += team.size) {
    const double price = (highest - costs.sign * dual[j]) * costs.factor[0] * costs.factor[1];
    s.price[j] = price >= 0 ? static_cast<int>(rint(min(price, 536870912.0))) : 0;
    const i64 column = pairs ? pairs[j] : NONE;
    if (column >= 0 && column < s.n && s.owner[column] == j) s.col[j] = static_cast<int>(column);
  }
}

// Duals and objective on the original costs, and the gap between them, row by row:
//     row_dual_i = min_j (c_ij - col_dual_j),   gap = sum_i (c_i,col(i) - col_dual - row_dual_i).
// True if also every pair is tight on the integers, so that their gap is exactly 0.
template <class Team>
__device__ bool certify(Team& team, const Problem& s, const Costs& costs, double* row_dual,
                        double* col_dual, double* objective, double* gap) {
  double* slack = reinterpret_cast<double*>(s.key);
  if (team.rank == 0) s.box->slack = 0;
  for (int j = team.rank; j < s.n; j += team.size) {
    col_dual[j] = costs.sign * ldexp(-static_cast<double>(s.price[j]), -costs.shift);
  }
  team.sync();
  for (int i = worker_of(team); i < s.n; i += workers_of(team)) {
    double low = 1.7976931348623157e308;
    int integer_low = LARGEST;
    for (int j = lane_of(team); j < s.n; j += Team::LANES) {
      const double cost = costs.at(i, j);
      low = min(low, cost - costs.sign * col_dual[j]);
      integer_low = min(integer_low, costs.integer(cost) + s.price[j]);
    }
    low = reduce<Team::LANES>(low, Lesser());
    integer_low = reduce<Team::LANES>(integer_low, Lesser());
    if (lane_of(team) > 0) continue;
    const int j = s.col[i];
    const double cost = costs.at(i, j);
    row_dual[i] = costs.sign * low;
    slack[i] = cost - costs.sign * col_dual[j] - low;
    if (costs.integer(cost) + s.price[j] != integer_low || s.owner[j] != i) {
      atomicAdd(&s.box->slack, 1);
    }
  }
  team.sync();
  if (worker_of(team) == 0) {  // in a fixed order: the same sum every time
    double total = 0, lack = 0;
    for (int i = lane_of(team); i < s.n; i += Team::LANES) {
      total += costs.at(i, s.col[i]);
      lack += slack[i];
    }
    total = reduce<Team::LANES>(total, Plus());
    lack = reduce<Team::LANES>(lack, Plus());
    if (lane_of(team) == 0) {
      *objective = costs.sign * total;
      *gap = lack;
    }
  }
  return s.box->slack == 0;
}
