// The exact finish: shortest paths from all free rows at once, one augmentation in every tree.
//
// Distances are of reduced costs q + price - potential >= 0, labels are corrected in rounds over
// the nearest waiting rows (Bellman-Ford with the order of Dijkstra). Paths are followed up to the
// distance D within which nine of ten free columns lie; then, for labels d,
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

constexpr int NEAREST = 32;  // rows read in a round, more only where bins or ties are wide

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

// Bin of a distance in a histogram that starts at `floor` and is finest there.
template <class Team>
__device__ __forceinline__ int bin_of(u32 distance, u32 floor) {
  constexpr int SUBBITS = Team::SUBBITS;
  const u32 d = distance > floor ? distance - floor : 0;
  if (d < 1u << SUBBITS) return static_cast<int>(d);
  const int exponent = 31 - __clz(static_cast<int>(d));
  const u32 fraction = d >> (exponent - SUBBITS) & ((1u << SUBBITS) - 1);
  return static_cast<int>(((exponent - SUBBITS + 1) << SUBBITS) + fraction);
}

// First bin with at least `wanted` entries, or nine of ten where `all`, in it and below; NONE where
// there is no entry. By one worker, all lanes of which get it.
template <class Team>
__device__ int choose_bin(const Team& team, const u32* bins, u32 wanted, bool all) {
  constexpr int LANES = Team::LANES, SHARE = (BINS<Team> + LANES - 1) / LANES;
  const int me = lane_of(team), first = me * SHARE;
  u32 counts[SHARE], own = 0;
#pragma unroll
  for (int b = 0; b < SHARE; ++b) {
    counts[b] = first + b < BINS<Team> ? bins[first + b] : 0;
    own += counts[b];
  }
  u32 before = 0, total = own;
#pragma unroll
  for (int k = 1; k < LANES; k *= 2) {  // total: of 2k neighbouring lanes; before: of those below
    const u32 other = exchange<LANES>(total, k);
    if (me & k) before += other;
    total += other;
  }
  wanted = all ? (3 * total + 3) / 4 : min(wanted, total);
  int chosen = LARGEST;
#pragma unroll
  for (int b = 0; b < SHARE; ++b) {
    if (before < wanted && wanted <= before + counts[b]) chosen = first + b;
    before += counts[b];
  }
  chosen = least_of<LANES>(chosen);
  return chosen < LARGEST ? chosen : NONE;
}

// The bin up to which rows are read next, and that of the distance D.
struct Bins {
  int nearest, last;
};
template <class Team>
__device__ Bins choose_bins(Team& team, const Problem& s) {
  // A block waits for two of its warps; blocks that would wait for each other choose for themselves.
  const bool columns = team.rank - lane_of(team) < s.n;
  const int second = workers_of(team) > 1 ? 1 : 0;
  Bins bins = {NONE, NONE};
  if (Team::SPANS_BLOCKS ? columns : worker_of(team) == 0) {
    bins.nearest = choose_bin(team, s.bins[0], NEAREST, false);
  }
  if (Team::SPANS_BLOCKS ? columns : worker_of(team) == second) {
    bins.last = choose_bin(team, s.bins[1], 0, true);
  }
  if (Team::SPANS_BLOCKS) return bins;
  if (team.rank == 0) s.box->bin[0] = bins.nearest;
  if (team.rank == second * Team::LANES) s.box->bin[1] = bins.last;
  team.sync();
  return {s.box->bin[0], s.box->bin[1]};
}

// What a thread has found for four neighbouring columns: the smallest distance minus price, and
// the place in the list of the row it comes by, or NONE.
struct Offers {
  int low[4], at[4];
};

// What counts as an offer: only a strictly shorter path than last round's, so that no cycle of
// length zero arises, and none as long as `bound`.
__device__ __forceinline__ Offers no_offers(const Problem& s, int j, u32 bound) {
  const int4 reach = *reinterpret_cast<const int4*>(s.reach + j);
  const int4 price = *reinterpret_cast<const int4*>(s.price + j);
  const int limit = static_cast<int>(min(bound, static_cast<u32>(LARGEST)));
  return {{min(reach.x, limit - price.x) - 1, min(reach.y, limit - price.y) - 1,
           min(reach.z, limit - price.z) - 1, min(reach.w, limit - price.w) - 1},
          {NONE, NONE, NONE, NONE}};
}

// Read columns j to j + 3 of the rows at places k, k + step, ... below m. False where two rows
// offer the same: then labels must decide.
template <int LANES>
__device__ __forceinline__ bool read_rows(
    const Problem& s, Offers& best, int j, int k, int step, int m) {
  constexpr int FLIGHT = 4, BEYOND = LARGEST - (1 << 29) - 1;  // above all labels, with any cost
  const int4* column = reinterpret_cast<const int4*>(s.q + j);
  const u32 stride = static_cast<u32>(s.row_stride / 4);
  bool tied = false;
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
    int values[FLIGHT][4];
#pragma unroll
    for (int f = 0; f < FLIGHT; ++f) {
      const int here = k + f * step;
      const int base = here < m ? s.base[here] : BEYOND;
      values[f][0] = base + costs[f].x;
      values[f][1] = base + costs[f].y;
      values[f][2] = base + costs[f].z;
      values[f][3] = base + costs[f].w;
    }
#pragma unroll
    for (int f = 0; f < FLIGHT; ++f) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        tied |= values[f][e] == best.low[e];
        best.at[e] = values[f][e] <= best.low[e] ? k + f * step : best.at[e];
        best.low[e] = min(best.low[e], values[f][e]);
      }
    }
  }
  return !tied;
}

// The same, where equal offers are decided by label.
__device__ __forceinline__ void read_rows_with_ties(
    const Problem& s, Offers& best, int j, int k, int step, int m) {
#pragma unroll 1
  for (; k < m; k += step) {
    const int i = s.list[k];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int value = s.base[k] + s.q[i * s.row_stride + j + e];
      if (value > best.low[e]) continue;
      const bool equal = value == best.low[e] && best.at[e] >= 0;
      if (equal && label_of(0, i, j + e, s.n) > label_of(0, s.list[best.at[e]], j + e, s.n)) continue;
      best.low[e] = value;
      best.at[e] = k;
    }
  }
}

// Offer every column the best path through the listed rows. Columns have owners, so there are no
// atomics: part 0 of the rows writes to the keys, the others beside them.
template <class Team>
__device__ void relax_rows(const Team& team, const Problem& s, int m, u32 bound) {
  const int tiles = (s.padded + TILE<Team> - 1) / TILE<Team>;
  for (int w = worker_of(team); w < tiles * s.parts; w += workers_of(team)) {
    const int part = w / tiles, own = w % tiles * TILE<Team> + 4 * lane_of(team);
    const int j = min(own, s.padded - 4);  // beyond the last column a lane only keeps step
    Offers best = no_offers(s, j, bound);
    if (!read_rows<Team::LANES>(s, best, j, part, s.parts, m)) {
      best = no_offers(s, j, bound);
      read_rows_with_ties(s, best, j, part, s.parts, m);
    }
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

// Labels settled by the last round, and histograms of what waits and of the free columns.
template <class Team>
__device__ void settle_labels(
    const Team& team, const Problem& s, u32 floor, u32 bound, u32* nearest) {
  int least = LARGEST;
  for (int j = team.rank; j < s.n; j += team.size) {
    u64 label = s.key[j];
    for (int part = 1; part < s.parts; ++part) {
      label = min(label, s.offers[(part - 1) * s.padded + j]);
    }
    s.key[j] = label;
    const u32 d = distance_of(label);
    const bool is_free = s.owner[j] < 0;
    const int reach = d == UNREACHED ? LARGEST : static_cast<int>(d) - s.price[j];
    if (reach != s.reach[j]) {
      s.reach[j] = reach;
      s.mark[j] = !is_free;
    }
    if (is_free) {
      atomicAdd(&s.bins[1][bin_of<Team>(d, floor)], 1u);
    } else if (s.mark[j] && d < bound) {
      atomicAdd(&s.bins[0][bin_of<Team>(d, floor)], 1u);
      least = min(least, static_cast<int>(d));
    }
  }
  least = least_of<WARP>(least);
  if (threadIdx.x % WARP == 0 && least < LARGEST) atomicMin(nearest, static_cast<u32>(least));
}

// List the rows of the nearest waiting columns, and find the farthest free column of the nine tenths.
template <class Team>
__device__ void list_nearest(
    const Team& team, const Problem& s, u32 floor, u32 bound, Bins bins) {
  int far = 0;
  for (int j = team.rank; j < whole_warps(s.n); j += team.size) {
    bool wanted = false;
    u32 d = 0;
    int i = NONE;
    if (j < s.n) {
      d = distance_of(s.key[j]);
      i = s.owner[j];
      const int bin = bin_of<Team>(d, floor);
      if (i < 0 && bin <= bins.last) far = max(far, static_cast<int>(d));
      wanted = i >= 0 && s.mark[j] && d < bound && bin <= bins.nearest;
    }
    const int place = append(wanted, i, s.list, &s.box->count[0]);
    if (wanted) {
      s.mark[j] = 0;
      s.base[place] = static_cast<int>(d) - s.potential[i];
    }
  }
  far = -least_of<WARP>(-far);
  if (threadIdx.x % WARP == 0 && far > 0) atomicMax(&s.box->far, static_cast<u32>(far));
}

// Labels of all columns up to distance D from the `m` listed free rows; returns D.
template <class Team>
__device__ u32 grow_forest(Team& team, const Problem& s, int m) {
  u32 bound = UNREACHED, floor = 0;
  for (int k = team.rank; k < m; k += team.size) s.base[k] = -s.potential[s.list[k]];
  team.sync();
  for (int round = 0; m > 0; ++round) {
    relax_rows(team, s, m, bound);
    note(team, s, FOREST_ROUNDS, 1);
    note(team, s, SCANS, m);
    for (int b = team.rank; b < BINS<Team>; b += team.size) s.bins[0][b] = s.bins[1][b] = 0;
    u32* nearest = &s.box->nearest[round % 2];
    if (team.rank == 0) *nearest = UNREACHED;
    team.sync();
    if (team.rank == 0) {
      s.box->count[0] = 0;
      s.box->far = 0;
    }
    settle_labels(team, s, floor, bound, nearest);
    team.sync();
    list_nearest(team, s, floor, bound, choose_bins(team, s));
    team.sync();
    m = s.box->count[0];
    bound = min(bound, s.box->far);
    floor = min(*nearest, bound);
  }
  return bound;
}

// Move the duals by the distances; every free column within D finds the root of its tree.
template <class Team>
__device__ void move_duals(const Team& team, const Problem& s, u32 D) {
  for (int j = team.rank; j < s.n; j += team.size) {
    const u32 d = distance_of(s.key[j]);
    const int gain = d < D ? static_cast<int>(D - d) : 0;
    s.price[j] += gain;
    if (s.owner[j] >= 0) {
      s.potential[s.owner[j]] += gain;
      continue;
    }
    s.reach[j] = NONE;
    if (d > D) continue;
    int root = row_of(s.key[j], j, s.n);
    while (s.col[root] >= 0) root = row_of(s.key[s.col[root]], s.col[root], s.n);
    s.reach[j] = root;
    atomicMin(&s.list[root], static_cast<int>(d));
  }
  for (int i = team.rank; i < s.n; i += team.size) {
    if (s.col[i] < 0) s.potential[i] += static_cast<int>(D);
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
__device__ bool forest(Team& team, const Problem& s, i64 limit) {
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
    if (s.box->stats[FOREST_ROUNDS] >= limit) return false;
    note(team, s, FOREST_PHASES, 1);
    const u32 D = grow_forest(team, s, m);
    for (int i = team.rank; i < s.n; i += team.size) s.list[i] = s.mark[i] = LARGEST;
    team.sync();
    move_duals(team, s, D);
    team.sync();
    augment_trees(team, s);
  }
}
