// Problems of up to 64 rows: a warp solves one by shortest augmenting paths, columns in its lanes.
//
// Jonker and Volgenant, "A shortest augmenting path algorithm for dense and sparse linear
// assignment problems", Computing 38, 1987: reduction of the columns, a bounded number of augmenting row
// reductions, then one shortest path for each row that is still free. What a step needs of other
// lanes are a minimum, a vote and a shuffle, so nothing waits for memory that others write.
//
// No overflow in 32 bits without a sign: with costs below R = 2**29, prices of free columns are at
// most R. A column that a row holds is the cheapest for it, so its price is at most 2R while a
// column is free, and at most 3R after that; distances are at most 5R.

#pragma once
#include "auction_costs.cuh"

// A bit for each of up to 32 or 64 rows or columns.
template <int ROWS>
struct BitsOf {
  using Type = u32;
};
template <>
struct BitsOf<64> {
  using Type = u64;
};
__device__ __forceinline__ int first_of(u32 bits) { return __ffs(static_cast<int>(bits)) - 1; }
__device__ __forceinline__ int first_of(u64 bits) { return __ffsll(static_cast<i64>(bits)) - 1; }
__device__ __forceinline__ int count_of(u32 bits) { return __popc(bits); }
__device__ __forceinline__ int count_of(u64 bits) { return __popcll(bits); }

// One problem of n rows, at most ROWS. What belongs to row or column number k lies in the part
// k / WARP of lane k % WARP.
template <int ROWS>
struct Small {
  static constexpr int OWN = ROWS / WARP;  // columns, and rows, of a lane
  static constexpr u32 FAR = ~0u;          // beyond all distances
  static constexpr u32 NEAR = 1 << 19;     // a warm start keeps rows that lose no more than this
  using Bits = typename BitsOf<ROWS>::Type;

  // One value for every row or column, spread over the lanes.
  template <class T>
  struct Spread {
    T own[OWN];
    __device__ __forceinline__ T& operator[](int part) { return own[part]; }
    __device__ __forceinline__ const T& operator[](int part) const { return own[part]; }
  };

  int n, stride;      // an odd stride: lanes that read one column of their rows do not collide
  u32* q;             // [n, stride], shared: the costs as integers
  u32* shown;         // [ROWS], shared: the prices, while rows are looked at
  int* claims;        // [ROWS], shared
  Spread<u32> price;  // of a column: minus its dual
  Spread<int> owner;  // of a column: its row, or NONE
  Spread<int> col;    // of a row: its column, or NONE
  i64 stats[STATS];

  static __device__ __forceinline__ int number_of(int part) {
    return part * WARP + threadIdx.x % WARP;
  }
  static __device__ __forceinline__ Bits bit(int k) { return static_cast<Bits>(1) << k; }
  static __device__ __forceinline__ void sync() { __syncwarp(lanes_mask<WARP>()); }

  // The value of number k, in all lanes.
  template <class T>
  static __device__ __forceinline__ T value_of(const Spread<T>& values, int k) {
    T value = values[0];
#pragma unroll
    for (int part = 1; part < OWN; ++part) value = k / WARP == part ? values[part] : value;
    return __shfl_sync(lanes_mask<WARP>(), value, k % WARP, WARP);
  }

  // A bit for every number that `wanted(part)` is true of, in all lanes.
  template <class Wanted>
  static __device__ __forceinline__ Bits votes_of(Wanted wanted) {
    Bits votes = 0;
#pragma unroll
    for (int part = 0; part < OWN; ++part) {
      votes |= static_cast<Bits>(__ballot_sync(lanes_mask<WARP>(), wanted(part))) << part * WARP;
    }
    return votes;
  }

  // The least of `value(part)`, in all lanes.
  template <class Value>
  static __device__ __forceinline__ u32 least_over(Value value) {
    u32 least = value(0);
#pragma unroll
    for (int part = 1; part < OWN; ++part) least = min(least, value(part));
    return __reduce_min_sync(lanes_mask<WARP>(), least);
  }

  __device__ __forceinline__ Bits everyone() const { return n == ROWS ? ~Bits(0) : bit(n) - 1; }

  // What column number_of(part) costs row i.
  __device__ __forceinline__ u32 reduced(int i, int part) const {
    const int j = number_of(part);
    return j < n ? q[i * stride + j] + price[part] : FAR;
  }
  __device__ __forceinline__ Bits free_columns() const {
    return votes_of([&](int part) { return number_of(part) < n && owner[part] < 0; });
  }
  __device__ __forceinline__ Bits free_rows() const {
    return votes_of([&](int part) { return number_of(part) < n && col[part] < 0; });
  }
  __device__ __forceinline__ void match(int i, int j) {
#pragma unroll
    for (int part = 0; part < OWN; ++part) {
      if (number_of(part) == i) col[part] = j;
      if (number_of(part) == j) owner[part] = i;
    }
  }
  __device__ __forceinline__ void release(int i) {
#pragma unroll
    for (int part = 0; part < OWN; ++part) {
      if (number_of(part) == i) col[part] = NONE;
    }
  }

  // Read the costs, choose their scale and make them integers; false if a cost is not finite. Each
  // lane reads and writes its own columns.
  template <class T, class O>
  __device__ bool load(Costs& costs) {
    const T* data = static_cast<const T*>(costs.data);
    O low = ~static_cast<O>(0), high = 0;
#pragma unroll
    for (int part = 0; part < OWN; ++part) {
      const int j = number_of(part);
      if (j >= n) continue;
#pragma unroll 8
      for (int i = 0; i < n; ++i) {
        const T cost = data[i * costs.stride + j];
        if constexpr (sizeof(T) == 4) q[i * stride + j] = __float_as_uint(cost);
        low = min(low, ordered(cost));
        high = max(high, ordered(cost));
      }
    }
    low = reduce<WARP>(low, Lesser());
    high = reduce<WARP>(high, Greater());
    if (!choose_scale(unordered(low), unordered(high), costs)) return false;
#pragma unroll
    for (int part = 0; part < OWN; ++part) {
      const int j = number_of(part);
      if (j >= n) continue;
#pragma unroll 8
      for (int i = 0; i < n; ++i) {
        u32& place = q[i * stride + j];
        if constexpr (sizeof(T) == 4) {
          place = costs.integer(__uint_as_float(place));
        } else {
          place = costs.integer(data[i * costs.stride + j]);
        }
      }
    }
    return true;
  }

  // Start from nothing: prices that make the cheapest entries of all columns equal.
  __device__ __forceinline__ void start_cold() {
    Spread<u32> least;
#pragma unroll
    for (int part = 0; part < OWN; ++part) {
      const int j = number_of(part);
      least[part] = FAR;
      for (int i = 0; j < n && i < n; ++i) least[part] = min(least[part], q[i * stride + j]);
      col[part] = NONE;
    }
    const u32 most =
        ~least_over([&](int part) { return number_of(part) < n ? ~least[part] : FAR; });
#pragma unroll
    for (int part = 0; part < OWN; ++part) price[part] = most - least[part];
  }

  // Start from duals of the columns [n] and, where given, columns of the rows [n]. Values that make
  // no sense are as good as any: they cost steps, never the optimum.
  __device__ __forceinline__ void start_warm(
      const Costs& costs, const double* dual, const i64* pairs) {
    u64 most = 0;
#pragma unroll
    for (int part = 0; part < OWN; ++part) {
      if (number_of(part) >= n) continue;
      const double value = costs.sign * dual[number_of(part)];
      if (fabs(value) < 1e308) most = max(most, ordered(value));
    }
    const double highest = unordered(reduce<WARP>(most, Greater()));
#pragma unroll
    for (int part = 0; part < OWN; ++part) {
      const int k = number_of(part);
      price[part] = 0;
      col[part] = NONE;
      if (k >= n) continue;
      const double given = (highest - costs.sign * dual[k]) * costs.factor[0] * costs.factor[1];
      if (given >= 0) price[part] = static_cast<u32>(rint(min(given, 536870912.0)));
      if (pairs && pairs[k] >= 0 && pairs[k] < n) col[part] = static_cast<int>(pairs[k]);
    }
  }

  // Make the smallest price 0: as every row holds its cheapest column, no price is then above R.
  __device__ __forceinline__ void lower_prices() {
    const u32 least = least_over([&](int part) { return number_of(part) < n ? price[part] : FAR; });
#pragma unroll
    for (int part = 0; part < OWN; ++part) price[part] -= least;
  }

  // Show the prices to all lanes.
  __device__ __forceinline__ void show_prices() {
    sync();
#pragma unroll
    for (int part = 0; part < OWN; ++part) shown[number_of(part)] = price[part];
    sync();
  }

  // Every row, from the column that col names, takes that one where no column is cheaper, else its
  // cheapest one; the rows that came first in this order keep theirs. Returns how many rows have
  // no column and would lose more than NEAR by the one named.
  __device__ __forceinline__ int match_rows() {
    show_prices();
#pragma unroll
    for (int part = 0; part < OWN; ++part) claims[number_of(part)] = LARGEST;
    sync();
    Spread<int> far;
#pragma unroll
    for (int part = 0; part < OWN; ++part) {
      const int i = number_of(part), named = col[part];
      far[part] = false;
      if (i >= n) continue;
      u32 low = FAR;
      int at = NONE;
#pragma unroll 8
      for (int j = 0; j < n; ++j) {
        const u32 value = q[i * stride + j] + shown[j];
        at = value < low ? j : at;
        low = min(low, value);
      }
      const u32 lost = named < 0 ? FAR : q[i * stride + named] + shown[named] - low;
      far[part] = lost > NEAR;
      col[part] = lost == 0 ? named : at;
      atomicMin(&claims[col[part]], lost == 0 ? i : ROWS + i);
    }
    sync();
#pragma unroll
    for (int part = 0; part < OWN; ++part) {
      const int k = number_of(part), claim = claims[k];
      owner[part] = claim == LARGEST ? NONE : claim % ROWS;
      if (k < n && claims[col[part]] % ROWS != k) col[part] = NONE;
    }
    stats[SCANS] += n;
    return count_of(votes_of([&](int part) { return far[part] && col[part] < 0; }));
  }

  // Free rows take their cheapest column and raise its price to that of the second; who had it
  // looks for another one. At most `most` rows are looked at, and none twice that two columns suit.
  __device__ __forceinline__ void reduce_rows(int most) {
    Bits waiting = free_rows(), free = free_columns();
    for (int step = 0; waiting != 0 && step < most; ++step) {
      const int i = first_of(waiting);
      waiting &= ~bit(i);
      Spread<u32> cost;
#pragma unroll
      for (int part = 0; part < OWN; ++part) cost[part] = reduced(i, part);
      const u32 low = least_over([&](int part) { return cost[part]; });
      const Bits ties = votes_of([&](int part) { return cost[part] == low; });
      const int j = first_of(ties & free ? ties & free : ties);
      const u32 second =
          least_over([&](int part) { return number_of(part) == j ? FAR : cost[part]; });
      stats[BID_ROUNDS] += 1;
      stats[SCANS] += 1;
      const int loser = value_of(owner, j);
      if (loser >= 0 && second == low) continue;
      if (loser >= 0) {
        release(loser);
        waiting |= bit(loser);
      }
      match(i, j);
      free &= ~bit(j);
#pragma unroll
      for (int part = 0; part < OWN; ++part) {
        if (number_of(part) == j && second < FAR) price[part] += second - low;
      }
    }
  }

  // Match row `root` along the shortest path to a free column, and move the prices.
  __device__ __forceinline__ void augment(int root, Bits free) {
    Spread<u32> distance;
    Spread<int> before;  // of a column: the row that its path comes by
#pragma unroll
    for (int part = 0; part < OWN; ++part) {
      distance[part] = reduced(root, part);
      before[part] = root;
    }
    Bits final = ~everyone();
    u32 near;
    int j;
    for (;;) {
      near = least_over([&](int part) {
        return final >> number_of(part) & 1 ? FAR : distance[part];
      });
      const Bits ties = ~final & votes_of([&](int part) { return distance[part] == near; });
      stats[FOREST_ROUNDS] += 1;
      stats[SCANS] += 1;
      if (ties & free) {
        j = first_of(ties & free);
        break;
      }
      j = first_of(ties);
      final |= bit(j);
      const int i = value_of(owner, j);
      Spread<u32> cost;
#pragma unroll
      for (int part = 0; part < OWN; ++part) cost[part] = reduced(i, part);
      const u32 base = near - value_of(cost, j);
#pragma unroll
      for (int part = 0; part < OWN; ++part) {
        if (final >> number_of(part) & 1 || base + cost[part] >= distance[part]) continue;
        distance[part] = base + cost[part];
        before[part] = i;
      }
    }
#pragma unroll
    for (int part = 0; part < OWN; ++part) {
      const int k = number_of(part);
      if (k < n && final >> k & 1) price[part] += near - distance[part];
    }
    for (int i = NONE; i != root;) {
      i = value_of(before, j);
      const int next = value_of(col, i);
      match(i, j);
      j = next;
    }
  }

  // The sum over all rows, in the same order whatever the number of lanes.
  __device__ __forceinline__ double sum_of(Spread<double> terms) {
#pragma unroll
    for (int k = ROWS / 2; k > 0; k /= 2) {
      const Spread<double> old = terms;
#pragma unroll
      for (int part = 0; part < OWN; ++part) {
        terms[part] += k < WARP ? exchange<WARP>(old[part], k % WARP) : old[part ^ (k / WARP)];
      }
    }
    return terms[0];
  }

  // Write the matching, and duals, objective and gap on the original costs:
  //     row_dual_i = min_j (c_ij - col_dual_j),   gap = sum_i (c_i,col(i) - col_dual - row_dual_i).
  // An integer is at most half a unit from its cost, so the smallest difference belongs to an entry
  // within one unit of the smallest integer, and only those are evaluated. True if also every pair
  // is tight on the integers, so that their gap is exactly 0.
  __device__ __forceinline__ bool write_certified(const Costs& costs, const Batch& batch, i64 p) {
    show_prices();
    const double unit = ldexp(1.0, -costs.shift);
    Spread<double> paid, slack;
    Spread<int> loose;
#pragma unroll
    for (int part = 0; part < OWN; ++part) {
      const int i = number_of(part);
      paid[part] = slack[part] = 0;
      loose[part] = false;
      if (i >= n) continue;
      const int j = col[part];
      const u32* row = q + i * stride;
      u32 low = FAR;
#pragma unroll 8
      for (int k = 0; k < n; ++k) low = min(low, row[k] + shown[k]);
      double least = 1.7976931348623157e308;
#pragma unroll 8
      for (int k = 0; k < n; ++k) {
        if (row[k] + shown[k] <= low + 1) least = min(least, costs.at(i, k) + shown[k] * unit);
      }
      paid[part] = costs.at(i, j);
      slack[part] = paid[part] + shown[j] * unit - least;
      loose[part] = row[j] + shown[j] != low;
      batch.col_ind[p * batch.n + i] = j;
      batch.row_dual[p * batch.n + i] = costs.sign * least;
      batch.col_dual[p * batch.n + i] = costs.sign * -(price[part] * unit);
    }
    const double total = sum_of(paid), gap = sum_of(slack);
    if (number_of(0) == 0) {
      batch.objective[p] = costs.sign * total;
      batch.gap[p] = gap;
    }
    return votes_of([&](int part) { return loose[part]; }) == 0;
  }

  // Solve problem p of a batch, n > 0 rows, whose costs are read by `costs`.
  __device__ int solve(Costs& costs, const Batch& batch, i64 p) {
    const bool finite = costs.wide ? load<double, u64>(costs) : load<float, u32>(costs);
    if (!finite) return NOT_FINITE;
    bool warm = batch.old_dual && !isnan(batch.old_dual[p * batch.n]);
    if (warm) {
      start_warm(costs, batch.old_dual + p * batch.n,
                 batch.old_col ? batch.old_col + p * batch.n : nullptr);
      // Where over three rows of ten have lost their column, old prices are worse than none.
      warm = 10 * match_rows() <= 3 * n;
    }
    if (!warm) {
      start_cold();
      match_rows();
    }
    reduce_rows(2 * n);
    for (Bits rows = free_rows(); rows != 0; rows &= rows - 1) {
      if (stats[FOREST_ROUNDS] >= batch.limit) return ROUND_LIMIT;
      stats[FOREST_PHASES] += 1;
      augment(first_of(rows), free_columns());
    }
    lower_prices();
    return write_certified(costs, batch, p) ? SOLVED : INEXACT;
  }
};

// Solve problem p in `memory`, 4 (2 ROWS + n (n | 1)) bytes for a batch of up to n rows.
template <int ROWS>
__device__ void run_small(unsigned char* memory, const Batch& batch, i64 p) {
  const WarpTeam team;
  const int rows = batch.rows_of(p);
  Small<ROWS> s;
  s.n = max(0, rows);
  s.stride = static_cast<int>(batch.n) | 1;
  s.shown = reinterpret_cast<u32*>(memory);
  s.claims = reinterpret_cast<int*>(s.shown + ROWS);
  s.q = reinterpret_cast<u32*>(s.claims + ROWS);
  for (int k = 0; k < STATS; ++k) s.stats[k] = 0;
  Costs costs = costs_of(batch, p);
  int status = rows < 0 ? WRONG_SIZE : SOLVED;
  if (rows > 0) status = s.solve(costs, batch, p);
  if (rows == 0 && team.rank == 0) batch.objective[p] = batch.gap[p] = 0;
  conclude(team, batch, p, s.n, status, s.stats);
  s.sync();
}
