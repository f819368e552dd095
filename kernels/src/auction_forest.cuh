// The exact finish: shortest paths from all free rows at once, one augmentation in every tree.
//
// Distances are of reduced costs q + price - potential >= 0, labels are corrected in rounds over
// the nearest waiting rows (Bellman-Ford with the order of Dijkstra). Paths are followed up to the
// distance D of the median free column only; then, for labels d,
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

constexpr int NEAREST = 64;  // rows read in a round, more only where bins or ties are wide
constexpr int CHUNK = 1024;  // columns of a row that a worker reads at a time

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

// First bin with at least `wanted` entries (or half of all) in it and below; by one worker.
template <class Team>
__device__ void choose_bin(const Team& team, const u32* bins, u32 wanted, bool half, int* chosen) {
  constexpr int LANES = Team::LANES, SHARE = (BINS<Team> + LANES - 1) / LANES;
  const int me = lane_of(team), first = me * SHARE, end = min(first + SHARE, BINS<Team>);
  u32 own = 0;
  for (int b = first; b < end; ++b) own += bins[b];
  u32 before = 0, total = own;
#pragma unroll
  for (int k = 1; k < LANES; k *= 2) {  // total: of 2k neighbouring lanes; before: of those below
    const u32 other = exchange<LANES>(total, k);
    if (me & k) before += other;
    total += other;
  }
  wanted = half ? (total + 1) / 2 : min(wanted, total);
  if (wanted > before && wanted <= before + own) {
    int b = first;
    for (u32 sum = before + bins[b]; sum < wanted; sum += bins[b]) ++b;
    *chosen = b;
  }
}

// Offer column j a path. Only a strictly shorter one than last round's is taken, so that no
// cycle of length zero arises; among the offers of one round the smallest label wins.
__device__ __forceinline__ void relax(const Problem& s, int value, int reach, int i, int j) {
  if (value >= reach) return;
  const u64 label = label_of(value + s.price[j], i, j, s.n);
  if (label < peek(&s.key[j])) atomicMin(&s.key[j], label);
}

// Relax every edge from the listed rows; a row's distance is as of the last round.
template <class Team>
__device__ void relax_rows(const Team& team, const Problem& s, int m) {
  const int chunks = (s.padded + CHUNK - 1) / CHUNK;
  for (int k = worker_of(team); k < m * chunks; k += workers_of(team)) {
    const int i = s.list[k / chunks], from = s.col[i];
    const int begin = k % chunks * CHUNK, end = min(begin + CHUNK, s.padded);
    const int distance = from < 0 ? 0 : s.reach[from] + s.price[from];
    const int base = distance - s.potential[i];
    const int* q = s.q + i * s.row_stride;
#pragma unroll 2
    for (int j = begin + 4 * lane_of(team); j < end; j += 4 * Team::LANES) {
      const int4 a = *reinterpret_cast<const int4*>(q + j);
      const int4 r = *reinterpret_cast<const int4*>(s.reach + j);
      relax(s, base + a.x, r.x, i, j);
      relax(s, base + a.y, r.y, i, j + 1);
      relax(s, base + a.z, r.z, i, j + 2);
      relax(s, base + a.w, r.w, i, j + 3);
    }
  }
}


// Labels settled by the last round, and histograms of what waits and of the free columns.
template <class Team>
__device__ void settle_labels(const Team& team, const Problem& s, u32 floor, u32 bound, u32* nearest) {
  for (int j = team.rank; j < s.n; j += team.size) {
    const u32 d = distance_of(s.key[j]);
    const bool is_free = s.owner[j] < 0;
    const int reach = static_cast<int>(d) - s.price[j];
    if (reach != s.reach[j]) {
      s.reach[j] = reach;
      s.mark[j] = !is_free;
    }
    if (is_free) {
      atomicAdd(&s.bins[1][bin_of<Team>(d, floor)], 1u);
    } else if (s.mark[j] && d < bound) {
      atomicAdd(&s.bins[0][bin_of<Team>(d, floor)], 1u);
      if (d < peek(nearest)) atomicMin(nearest, d);
    }
  }
}

// List the rows of the nearest waiting columns, and find the farthest free column of the half.
template <class Team>
__device__ void list_nearest(const Team& team, const Problem& s, u32 floor, u32 bound) {
  const int nearest_bin = s.box->bin[0], median_bin = s.box->bin[1];
  for (int j = team.rank; j < s.n; j += team.size) {
    const u32 d = distance_of(s.key[j]);
    const int bin = bin_of<Team>(d, floor);
    if (s.owner[j] < 0) {
      if (bin <= median_bin && d > peek(&s.box->far)) atomicMax(&s.box->far, d);
    } else if (s.mark[j] && d < bound && bin <= nearest_bin) {
      s.mark[j] = 0;
      s.list[atomicAdd(&s.box->count[0], 1)] = s.owner[j];
    }
  }
}

// Labels of all columns up to distance D from the `m` listed free rows; returns D.
template <class Team>
__device__ u32 grow_forest(Team& team, const Problem& s, int m, i64* stats) {
  u32 bound = UNREACHED, floor = 0;
  for (int round = 0; m > 0; ++round) {
    relax_rows(team, s, m);
    stats[FOREST_ROUNDS] += 1;
    stats[SCANS] += m;
    for (int b = team.rank; b < BINS<Team>; b += team.size) s.bins[0][b] = s.bins[1][b] = 0;
    u32* nearest = &s.box->nearest[round % 2];
    if (team.rank == 0) *nearest = UNREACHED;
    team.sync();
    if (team.rank == 0) {
      s.box->count[0] = 0;
      s.box->far = 0;
      s.box->bin[0] = s.box->bin[1] = NONE;
    }
    settle_labels(team, s, floor, bound, nearest);
    team.sync();
    const int second = workers_of(team) > 1 ? 1 : 0;
    if (worker_of(team) == 0) choose_bin(team, s.bins[0], NEAREST, false, &s.box->bin[0]);
    if (worker_of(team) == second) choose_bin(team, s.bins[1], 0, true, &s.box->bin[1]);
    team.sync();
    list_nearest(team, s, floor, bound);
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

// Row potentials from the prices; pairs that are not tight end, and free rows take their
// cheapest column where that is free.
template <class Team>
__device__ void start_forest(Team& team, const Problem& s) {
  lower_prices(team, s, false);
  for (int j = team.rank; j < s.n; j += team.size) s.mark[j] = LARGEST;
  team.sync();
  for (int i = worker_of(team); i < s.n; i += workers_of(team)) {
    const Best best = scan_row(team, s, i);
    if (lane_of(team) > 0) continue;
    const int j = s.col[i];
    s.potential[i] = best.low;
    s.list[i] = best.at;
    if (j >= 0 && s.q[i * s.row_stride + j] + s.price[j] > best.low) {
      s.col[i] = NONE;
      s.owner[j] = NONE;
    }
  }
  team.sync();
  for (int i = team.rank; i < s.n; i += team.size) {
    if (s.col[i] < 0 && s.owner[s.list[i]] < 0) atomicMin(&s.mark[s.list[i]], i);
  }
  team.sync();
  for (int j = team.rank; j < s.n; j += team.size) {
    if (s.mark[j] == LARGEST) continue;
    s.owner[j] = s.mark[j];
    s.col[s.mark[j]] = j;
  }
  team.sync();
}

// Complete the matching; false where `limit` rounds did not do.
template <class Team>
__device__ bool forest(Team& team, const Problem& s, i64 limit, i64* stats) {
  start_forest(team, s);
  stats[SCANS] += s.n;
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
    if (stats[FOREST_ROUNDS] >= limit) return false;
    stats[FOREST_PHASES] += 1;
    const u32 D = grow_forest(team, s, m, stats);
    for (int i = team.rank; i < s.n; i += team.size) s.list[i] = s.mark[i] = LARGEST;
    team.sync();
    move_duals(team, s, D);
    team.sync();
    augment_trees(team, s);
  }
}
