// The exact finish: shortest paths from all free rows at once, one augmentation in every tree.
//
// Distances are of reduced costs q + price - potential >= 0, labels are corrected in rounds over
// the nearest waiting rows (Bellman-Ford with the order of Dijkstra). Paths are followed up to the
// distance D within which three of four free columns lie; then, for labels d,
//     price += (D - d)+   of a column,     potential += (D - d)+   of a row,
// keeps every reduced cost >= 0 and makes the trees tight. Trees share no vertex, so each can
// take one path. Integers make all of it exact. See Burkard, Dell'Amico and Martello,
// "Assignment Problems", SIAM, 2009, sections 4.2 and 4.4.
//
// No overflow: a price that has risen is at most R = 2**29 above the smallest one, as it is tight
// on a row; with the smallest price lowered to 0 each phase, prices are at most 1.1 R and
// potentials 2.1 R. The first round reaches every column, so distances are at most 2.1 R, and
// what is compared with them at most 3.1 R, below 2**31.

#pragma once
#include "auction_bids.cuh"

// Rows of a round that are worth a wider, a narrower step.
[[maybe_unused]] constexpr int FEW = 16, MANY = 32;

// Label of column j: the distance, then the row before it; equal distances prefer the rows from
// the column's own diagonal on, so that ties are spread over the trees.
__device__ __forceinline__ u64 label_of(u32 distance, int i, int j, int n) {
  return static_cast<u64>(distance) << 32 | static_cast<u32>(i < j ? i - j + n : i - j);
}
__device__ __forceinline__ u32 distance_of(u64 label) { return static_cast<u32>(label >> 32); }
__device__ __forceinline__ int row_of(u64 label, int j, int n) {
  const int i = static_cast<int>(static_cast<u32>(label)) + j;
  return i < n ? i : i - n;
}

// How far a forest has grown: distances below `floor` are final, rows up to `step` are read next,
// and paths as long as `bound` no longer matter, which is LARGEST at first.
struct Reach {
  int floor, step, bound;
};

// What a thread has found for four neighbouring columns: the smallest distance minus price, and
// the place in the list of the row it comes by, or NONE and what an offer must be below.
struct Offers {
  int low[4], at[4];
};

// What counts as an offer: only a strictly shorter path than last round's, so that no cycle of
// length zero arises, and none as long as `bound`.
__device__ __forceinline__ Offers no_offers(const Problem& s, int j, int bound) {
  const int4 reach = *reinterpret_cast<const int4*>(s.reach + j);
  const int4 price = *reinterpret_cast<const int4*>(s.price + j);
  return {{min(reach.x, bound - price.x), min(reach.y, bound - price.y),
           min(reach.z, bound - price.z), min(reach.w, bound - price.w)},
          {NONE, NONE, NONE, NONE}};
}

// Whether row i comes before row `other` where both offer column j the same.
__device__ __forceinline__ bool comes_first(int i, int other, int j, int n) {
  return label_of(0, i, j, n) < label_of(0, other, j, n);
}

// Read columns j to j + 3 of the rows at places k, k + step, ... below m.
template <int LANES>
__device__ __forceinline__ void read_rows(
    const Problem& s, Offers& best, int j, int k, int step, int m) {
  constexpr int FLIGHT = 4, BEYOND = LARGEST - (1 << 29) - 1;  // above all labels, with any cost
  const int4* column = reinterpret_cast<const int4*>(s.q + j);
  const u32 stride = static_cast<u32>(s.row_stride / 4);
#pragma unroll 1
  for (; k < m; k += FLIGHT * step) {
    int4 costs[FLIGHT];
#pragma unroll
    for (int f = 0; f < FLIGHT; ++f) {  // past the end the last row again
      costs[f] = column[static_cast<u32>(s.list[min(k + f * step, m - 1)]) * stride];
    }
    // All of these loads shall be under way before the first is waited for. The compiler moves no
    // read of memory over this, so none of the sums below either.
    __syncwarp(lanes_mask<LANES>());
#pragma unroll
    for (int f = 0; f < FLIGHT; ++f) {
      const int here = k + f * step;
      const int base = here < m ? s.base[here] : BEYOND;
      const int values[4] = {base + costs[f].x, base + costs[f].y, base + costs[f].z,
                             base + costs[f].w};
      bool tied = false;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        tied |= values[e] == best.low[e];
        best.at[e] = values[e] < best.low[e] ? here : best.at[e];
        best.low[e] = min(best.low[e], values[e]);
      }
      if (!tied) continue;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (values[e] > best.low[e] || best.at[e] < 0) continue;
        if (comes_first(s.list[here], s.list[best.at[e]], j + e, s.n)) best.at[e] = here;
      }
    }
  }
}

// Offer every column the best path through the listed rows. Columns have owners, so there are no
// atomics: part 0 of the rows writes to the keys, the others beside them.
template <class Team>
__device__ void relax_rows(const Team& team, const Problem& s, int m, int bound) {
  const int tiles = (s.padded + TILE<Team> - 1) / TILE<Team>;
  for (int w = worker_of(team); w < tiles * s.parts; w += workers_of(team)) {
    const int part = w / tiles, own = w % tiles * TILE<Team> + 4 * lane_of(team);
    const int j = min(own, s.padded - 4);  // beyond the last column a lane only keeps step
    Offers best = no_offers(s, j, bound);
    read_rows<Team::LANES>(s, best, j, part, s.parts, m);
    if (own > j) continue;
    u64* offers = part == 0 ? s.key + j : s.offers + (part - 1) * s.padded + j;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (best.at[e] >= 0) {
        const int i = s.list[best.at[e]];
        offers[e] = label_of(best.low[e] + s.price[j + e], i, j + e, s.n);
      } else if (part > 0) {
        offers[e] = NO_LABEL;
      }
    }
  }
}

// The label of column j after a round: the best of what the parts of the rows have offered.
__device__ __forceinline__ u64 best_offer(const Problem& s, int j) {
  u64 label = s.key[j];
#pragma unroll
  for (int part = 1; part < MOST_PARTS; ++part) {
    if (part < s.parts) label = min(label, s.offers[(part - 1) * s.padded + j]);
  }
  return label;
}

// Settle the labels of a round; list the rows of the waiting columns up to `reach.step`.
template <class Team>
__device__ void settle_labels(const Team& team, const Problem& s, const Reach& reach, Wave& wave) {
  int nearest = LARGEST, beyond = LARGEST, final = 0, reached = 0;
  for (int j = team.rank; j < whole_warps(s.n); j += team.size) {
    bool listed = false;
    int i = NONE, d = 0;
    if (j < s.n) {
      const u64 label = best_offer(s, j);
      i = s.owner[j];
      d = static_cast<int>(distance_of(label));
      const int less = d - s.price[j];
      const bool waits = i >= 0 && (s.mark[j] || less != s.reach[j]);
      listed = waits && d <= reach.step;
      s.key[j] = label;
      s.reach[j] = less;
      s.mark[j] = waits && !listed;
      if (waits) nearest = min(nearest, d);
      if (waits && !listed) beyond = min(beyond, d);
      final += i < 0 && d <= reach.floor;
      reached += i < 0 && d <= reach.step;
    }
    const int place = append(listed, i, s.list, &wave.count);
    if (listed) s.base[place] = d - s.potential[i];
  }
  nearest = least_of<WARP>(nearest);
  beyond = least_of<WARP>(beyond);
  final = sum_of_warp(final);
  reached = sum_of_warp(reached);
  if (threadIdx.x % WARP > 0) return;
  if (nearest < LARGEST) atomicMin(&wave.nearest, nearest);
  if (beyond < LARGEST) atomicMin(&wave.beyond, beyond);
  if (final > 0) atomicAdd(&wave.final, final);
  if (reached > 0) atomicAdd(&wave.reached, reached);
}

// The largest label of a free column, all of which are final.
template <class Team>
__device__ int farthest_free(Team& team, const Problem& s) {
  if (team.rank == 0) s.box->far = 0;
  team.sync();
  int far = 0;
  for (int j = team.rank; j < s.n; j += team.size) {
    if (s.owner[j] < 0) far = max(far, static_cast<int>(distance_of(s.key[j])));
  }
  far = -least_of<WARP>(-far);
  if (threadIdx.x % WARP == 0) atomicMax(&s.box->far, far);
  team.sync();
  return s.box->far;
}

// Labels of all columns up to distance D from the `m` listed free rows; returns D. Rows are read
// from the nearest on, in steps of such a width `delta` that a round has neither few nor many.
template <class Team>
__device__ int grow_forest(Team& team, const Problem& s, int m, int& delta) {
  const int wanted = (3 * m + 3) / 4;
  Reach reach = {0, delta, LARGEST};
  for (int k = team.rank; k < m; k += team.size) s.base[k] = -s.potential[s.list[k]];
  team.sync();
  for (int round = 0;; ++round) {
    Wave& wave = s.box->waves[round % 2];
    if (team.rank == 0) wave = {0, LARGEST, LARGEST, 0, 0};
    note(team, s, FOREST_ROUNDS, 1);
    note(team, s, SCANS, m);
    relax_rows(team, s, m, reach.bound);
    team.sync();
    settle_labels(team, s, reach, wave);
    team.sync();
    m = wave.count;
    if (wave.final >= wanted) return reach.floor;
    if (wave.reached >= wanted) reach.bound = reach.step;
    if (m == 0) return reach.bound < LARGEST ? reach.bound : farthest_free(team, s);
    reach.floor = wave.nearest;
    if (reach.bound < LARGEST) continue;
    if (m < FEW) delta = min(2 * delta, 1 << 28);
    if (m > MANY) delta = max(1, delta / 2);
    reach.step = (wave.beyond < LARGEST ? wave.beyond : reach.step) + delta;
  }
}

// Move the duals by the distances; every free column within D finds the root of its tree.
template <class Team>
__device__ void move_duals(const Team& team, const Problem& s, int D) {
  for (int j = team.rank; j < s.n; j += team.size) {
    const u32 d = distance_of(s.key[j]);
    const int gain = d < static_cast<u32>(D) ? D - static_cast<int>(d) : 0;
    s.price[j] += gain;
    if (s.owner[j] >= 0) {
      s.potential[s.owner[j]] += gain;
      continue;
    }
    s.reach[j] = NONE;
    if (d > static_cast<u32>(D)) continue;
    int root = row_of(s.key[j], j, s.n);
    while (s.col[root] >= 0) root = row_of(s.key[s.col[root]], s.col[root], s.n);
    s.reach[j] = root;
    atomicMin(&s.list[root], static_cast<int>(d));
  }
  for (int i = team.rank; i < s.n; i += team.size) {
    if (s.col[i] < 0) s.potential[i] += D;
  }
}

// Augment along the path to the nearest free column of each tree.
template <class Team>
__device__ void augment_trees(Team& team, const Problem& s) {
  for (int j = team.rank; j < s.n; j += team.size) {
    if (s.owner[j] >= 0 || s.reach[j] < 0) continue;
    const int root = s.reach[j], d = static_cast<int>(distance_of(s.key[j]));
    if (d == s.list[root]) atomicMin(&s.mark[root], j);
  }
  team.sync();
  for (int root = team.rank; root < s.n; root += team.size) {
    int j = s.mark[root];
    if (j == LARGEST) continue;
    for (int i = NONE; i != root;) {
      i = row_of(s.key[j], j, s.n);
      s.owner[j] = i;
      const int next = s.col[i];
      s.col[i] = j;
      j = next;
    }
  }
  team.sync();
}

// Complete the matching; false where `limit` rounds did not do.
template <class Team>
__device__ bool forest(Team& team, const Problem& s, double deviation, i64 limit) {
  int delta = max(1, static_cast<int>(8e-3 * deviation));
  lower_prices(team, s, false);
  review_pairs(team, s, 0);  // its first sync comes before it reads prices
  for (;;) {
    lower_prices(team, s, true);
    reset_counts(team, s);
    for (int j = team.rank; j < s.n; j += team.size) {
      s.key[j] = NO_LABEL;
      s.reach[j] = LARGEST;
      s.mark[j] = 0;
    }
    team.sync();
    const int m = gather_free_rows(team, s, s.list);
    if (m == 0) return true;
    // Read by itself: the compiler would load its neighbour with it, which changes next.
    if (peek(&s.box->stats[FOREST_ROUNDS]) >= limit) return false;
    note(team, s, FOREST_PHASES, 1);
    const int D = grow_forest(team, s, m, delta);
    for (int i = team.rank; i < s.n; i += team.size) s.list[i] = s.mark[i] = LARGEST;
    team.sync();
    move_duals(team, s, D);
    team.sync();
    augment_trees(team, s);
  }
}
