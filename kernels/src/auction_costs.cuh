// Costs to integers and back: quantisation, starting prices, and the certificate.

#pragma once
#include "auction_batch.cuh"
#include "auction_forest.cuh"

constexpr int BITS = 29;               // the largest integer lies between 2**28 and 2**29

// Costs of one problem, to be minimised: integer = rint((cost - low) * scale), where the scale
// 2**shift = factor[0] * factor[1] is a power of two, so that integer costs stay exact.
struct Costs {
  const void* data;  // [n, n] of a stride; float32, or float64 where `wide`
  bool wide;
  i64 stride;
  double sign, low, factor[2];  // of float32 costs the second factor is 1
  int shift;
  __device__ __forceinline__ double at(int i, int j) const {
    const i64 place = i * stride + j;
    return sign * (wide ? static_cast<const double*>(data)[place]
                        : static_cast<double>(static_cast<const float*>(data)[place]));
  }
  // Whether four neighbouring float32 costs, from every fourth on, are one load.
  __device__ __forceinline__ bool aligned() const {
    return stride % 4 == 0 && reinterpret_cast<u64>(data) % 16 == 0;
  }
  // The integer of a cost as given. rint by the addition of 1.5 * 2**52: the integer is then in the
  // low bits. Signs and powers of two round nothing.
  template <class T>
  __device__ __forceinline__ int integer(T cost) const {
    double shifted = static_cast<double>(cost) - sign * low;
    if constexpr (sizeof(T) == 8) shifted *= factor[1];
    shifted = __fma_rn(shifted, sign * factor[0], 6755399441055744.0);
    return static_cast<int>(__double_as_longlong(shifted));
  }
};

// Numbers as integers of the same order; infinity and NaN are beyond all others.
__device__ __forceinline__ u64 ordered(double x) {
  const i64 bits = __double_as_longlong(x);
  return static_cast<u64>(bits) ^ (bits < 0 ? ~0ull : 1ull << 63);
}
__device__ __forceinline__ u32 ordered(float x) {
  const int bits = __float_as_int(x);
  return static_cast<u32>(bits) ^ (bits < 0 ? ~0u : 1u << 31);
}
__device__ __forceinline__ double unordered(u64 bits) {
  return __longlong_as_double(static_cast<i64>(bits ^ (bits >> 63 ? 1ull << 63 : ~0ull)));
}
__device__ __forceinline__ double unordered(u32 bits) {
  return __int_as_float(static_cast<int>(bits ^ (bits >> 31 ? 1u << 31 : ~0u)));
}

// Four costs of a row from column j on; columns past the last one, n - 1, cost `beyond`. Read-only
// loads, which the compiler may move over the stores of others.
template <class T>
__device__ __forceinline__ void load_four(
    const T* row, int j, int n, bool aligned, T beyond, T (&costs)[4]) {
  if constexpr (sizeof(T) == 4) {
    if (aligned) {
      const float4 four = __ldg(reinterpret_cast<const float4*>(row + j));
      costs[0] = four.x;
      costs[1] = j + 1 < n ? four.y : beyond;
      costs[2] = j + 2 < n ? four.z : beyond;
      costs[3] = j + 3 < n ? four.w : beyond;
      return;
    }
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) costs[e] = j + e < n ? __ldg(row + j + e) : beyond;
}

// Smallest and largest cost, into the box; T is the type of the costs, O its ordered integer.
template <class T, class O, class Team>
__device__ void find_range(const Team& team, const Problem& s, const Costs& costs) {
  O low = ~static_cast<O>(0), high = 0;
  for (int i = worker_of(team); i < s.n; i += workers_of(team)) {
    const T* row = static_cast<const T*>(costs.data) + i * costs.stride;
    const T first = __ldg(row);
#pragma unroll 16 / sizeof(T)
    for (int j = 4 * lane_of(team); j < s.n; j += TILE<Team>) {
      T four[4];
      load_four(row, j, s.n, costs.aligned(), first, four);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        low = min(low, ordered(four[e]));
        high = max(high, ordered(four[e]));
      }
    }
  }
  low = reduce<Team::LANES>(low, Lesser());
  high = reduce<Team::LANES>(high, Greater());
  if (lane_of(team) > 0 || low > high) return;
  atomicMin(&s.box->low, ordered(unordered(low)));
  atomicMax(&s.box->high, ordered(unordered(high)));
}

// The costs of problem p, whose scale is not chosen yet.
__device__ __forceinline__ Costs costs_of(const Batch& batch, i64 p) {
  Costs costs;
  const i64 offset = p * batch.n * batch.n * (batch.wide ? 8 : 4);
  costs.data = static_cast<const unsigned char*>(batch.cost) + offset;
  costs.wide = batch.wide != 0;
  costs.stride = batch.n;
  costs.sign = batch.sign;
  return costs;
}

// The scale, from the range; false if a cost is NaN or infinite, or so large that sums overflow.
__device__ __forceinline__ bool choose_scale(double lowest, double highest, Costs& costs) {
  const double largest = 1.7976931348623157e308 / (8.0 * (costs.stride + 1.0));
  if (!(fabs(lowest) <= largest && fabs(highest) <= largest)) return false;
  costs.low = costs.sign < 0 ? -highest : lowest;
  int exponent = BITS;
  if (highest > lowest) frexp(highest - lowest, &exponent);
  costs.shift = BITS - exponent;
  const int half = costs.wide ? costs.shift / 2 : 0;
  costs.factor[0] = ldexp(1.0, costs.shift - half);
  costs.factor[1] = ldexp(1.0, half);
  return true;
}

__device__ __forceinline__ bool choose_scale(const Box* box, Costs& costs) {
  return choose_scale(unordered(box->low), unordered(box->high), costs);
}

// Find the range of the costs.
template <class Team>
__device__ void measure(Team& team, const Problem& s, const Costs& costs) {
  if (team.rank == 0) {
    s.box->low = ~0ull;
    s.box->high = s.box->sum = s.box->squares = s.box->dual = 0;
  }
  team.sync();
  if (costs.wide) {
    find_range<double, u64>(team, s, costs);
  } else {
    find_range<float, u32>(team, s, costs);
  }
  team.sync();
}

constexpr int COARSE = 12;  // bits that statistics leave out, so that squares need no more than 64

// The integers, and their sums.
template <class T, class Team>
__device__ void round_costs(const Team& team, const Problem& s, const Costs& costs) {
  u64 sum = 0, squares = 0;
  for (int i = worker_of(team); i < s.n; i += workers_of(team)) {
    const T* row = static_cast<const T*>(costs.data) + i * costs.stride;
    int* q = s.q + i * s.row_stride;
#pragma unroll 16 / sizeof(T)
    for (int j = 4 * lane_of(team); j < s.n; j += TILE<Team>) {
      T four[4];
      load_four(row, j, s.n, costs.aligned(), static_cast<T>(0), four);
      int values[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        values[e] = j + e < s.n ? costs.integer(four[e]) : 0;
        const u32 coarse = static_cast<u32>(values[e]) >> COARSE;
        sum += coarse;
        squares += static_cast<u64>(coarse) * coarse;
      }
      *reinterpret_cast<int4*>(q + j) = {values[0], values[1], values[2], values[3]};
    }
  }
  sum = reduce<Team::LANES>(sum, Plus());
  squares = reduce<Team::LANES>(squares, Plus());
  if (lane_of(team) == 0) {
    atomicAdd(&s.box->sum, sum);
    atomicAdd(&s.box->squares, squares);
  }
}

// The integers, their sums, and a start from nothing.
template <class Team>
__device__ void make_integers(Team& team, const Problem& s, const Costs& costs) {
  if (costs.wide) {
    round_costs<double>(team, s, costs);
  } else {
    round_costs<float>(team, s, costs);
  }
  for (u64 j = team.rank; j < TILE<Team>; j += team.size) s.q[s.n * s.row_stride + j] = 0;
  for (int j = s.n + team.rank; j < s.padded + TILE<Team>; j += team.size) s.price[j] = PADDING;
  for (int j = team.rank; j < s.padded; j += team.size) {
    if (j < s.n) s.price[j] = 0;
    s.reach[j] = -LARGEST;  // padding is never relaxed
    s.col[j] = s.owner[j] = NONE;
  }
  team.sync();
}

// Standard deviation of the integers.
__device__ __forceinline__ double standard_deviation(const Problem& s) {
  const double count = max(1.0, static_cast<double>(s.n) * s.n);
  const double mean = s.box->sum / count, square = s.box->squares / count;
  return (1 << COARSE) * sqrt(max(0.0, square - mean * mean));
}

// Start from duals of the columns [n] and, where given, columns of the rows [n]. Values that
// make no sense are as good as any: they cost rounds, never the optimum.
template <class Team>
__device__ void start_from(
    Team& team, const Problem& s, const Costs& costs, const double* dual, const i64* pairs) {
  u64 most = 0;
  for (int j = team.rank; j < s.n; j += team.size) {
    const double value = costs.sign * dual[j];
    if (fabs(value) < 1e308) most = max(most, ordered(value));
    if (pairs && pairs[j] >= 0 && pairs[j] < s.n) atomicMax(&s.owner[pairs[j]], j);
  }
  most = reduce<Team::LANES>(most, Greater());
  if (lane_of(team) == 0) atomicMax(&s.box->dual, most);
  team.sync();
  const double highest = unordered(s.box->dual);
  for (int j = team.rank; j < s.n; j += team.size) {
    const double price = (highest - costs.sign * dual[j]) * costs.factor[0] * costs.factor[1];
    s.price[j] = price >= 0 ? static_cast<int>(rint(min(price, 536870912.0))) : 0;
    const i64 column = pairs ? pairs[j] : NONE;
    if (column >= 0 && column < s.n && s.owner[column] == j) s.col[j] = static_cast<int>(column);
  }
}

// The row's dual min_j (c_ij - col_dual_j) on the original costs, by one worker; `low` is
// min_j (q_ij + price_j). An integer is at most half a unit from its cost, so the smallest
// difference belongs to an entry within one unit of `low`, and only those are evaluated.
template <class Team>
__device__ double row_dual_of(
    const Team& team, const Problem& s, const Costs& costs, int i, int low, const double* col_dual) {
  double least = 1.7976931348623157e308;
  const int* q = s.q + i * s.row_stride;
  for (int j = 4 * lane_of(team); j < s.padded; j += TILE<Team>) {
    const int4 a = *reinterpret_cast<const int4*>(q + j);
    const int4 b = *reinterpret_cast<const int4*>(s.price + j);
    const int values[4] = {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
    if (min(min(values[0], values[1]), min(values[2], values[3])) > low + 1) continue;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (values[e] <= low + 1) {
        least = min(least, costs.at(i, j + e) - costs.sign * col_dual[j + e]);
      }
    }
  }
  return reduce<Team::LANES>(least, Lesser());
}

// Duals and objective on the original costs, and the gap between them, row by row:
//     row_dual_i = min_j (c_ij - col_dual_j),   gap = sum_i (c_i,col(i) - col_dual - row_dual_i).
// True if also every pair is tight on the integers, so that their gap is exactly 0.
template <class Team>
__device__ bool certify(Team& team, const Problem& s, const Costs& costs, double* row_dual,
                        double* col_dual, double* objective, double* gap) {
  double* slack = reinterpret_cast<double*>(s.key);
  double* paid = reinterpret_cast<double*>(s.list);  // and s.base, which follows
  if (team.rank == 0) s.box->slack = 0;
  for (int j = team.rank; j < s.n; j += team.size) {
    col_dual[j] = costs.sign * ldexp(-static_cast<double>(s.price[j]), -costs.shift);
  }
  team.sync();
  for (int i = worker_of(team); i < s.n; i += workers_of(team)) {
    const int low = scan_row(team, s, i).low;
    const double least = row_dual_of(team, s, costs, i, low, col_dual);
    if (lane_of(team) > 0) continue;
    const int j = s.col[i];
    const double cost = costs.at(i, j);
    row_dual[i] = costs.sign * least;
    paid[i] = cost;
    slack[i] = cost - costs.sign * col_dual[j] - least;
    if (s.q[i * s.row_stride + j] + s.price[j] != low || s.owner[j] != i) {
      atomicAdd(&s.box->slack, 1);
    }
  }
  team.sync();
  if (worker_of(team) == 0) {  // in a fixed order: the same sum every time
    double total = 0, lack = 0;
    for (int i = lane_of(team); i < s.n; i += Team::LANES) {
      total += paid[i];
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
