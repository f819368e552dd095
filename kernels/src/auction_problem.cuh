// What a team keeps of an assignment problem in memory, and how one row is read.

#pragma once

#include "teams.cuh"

constexpr int LARGEST = 0x7fffffff;
// Price of padding: above all sums of real ones.
[[maybe_unused]] constexpr int PADDING = 3 * (1 << 29) - 1;
[[maybe_unused]] constexpr u64 NO_LABEL = ~0ull;
constexpr int NONE = -1;

// What is counted for each problem, in this order in the output.
enum Stat { BID_ROUNDS, FOREST_ROUNDS, FOREST_PHASES, SCANS, STATS };

// What a round of a forest has found: rows to read next, the nearest column that waits, the nearest
// one that is not read next, and how many free columns are final or at least reached.
struct Wave {
  int count, nearest, beyond, final, reached;
};

// Scalars that a team shares. Each is reset at least one sync before it is used again.
struct Box {
  u64 low, high;                       // range of the costs, as ordered bits
  u64 sum, squares;                    // of the leading bits of the integers
  u64 dual;                            // largest old dual, as ordered bits
  i64 stats[STATS];
  Wave waves[2];                       // of the last round of a forest, and of this one
  int count[3], least, far, slack;     // slack: rows whose pair is not tight
};
constexpr int BOX_BYTES = 144;
static_assert(sizeof(Box) <= BOX_BYTES, "auction.py reserves BOX_BYTES");

// One problem: n rows, every array padded to a multiple of four.
struct Problem {
  int n, padded;
  u64 row_stride;
  int* q;          // [n, row_stride], and TILE more: the costs as integers, 0 .. 2**29; padding is 0
  u64* key;        // [padded] of a column: best bid, or nearest path: (value, row)
  int* price;      // [padded + TILE] of a column, >= 0: minus its dual
  int* potential;  // [padded] of a row: its dual
  int* col;        // [padded] of a row: its column; negative where it is free
  int* owner;      // [padded] of a column: its row, or NONE
  int* reach;      // [padded] of a column: its distance minus its price
  int* list;       // [padded] rows to read next
  int* base;       // [padded] of a listed row: its distance minus its potential
  int* mark;       // [padded] a second list; columns whose row waits
  u64* offers;     // [parts - 1, padded] labels that parts of the listed rows offer to the columns
  int parts;       // in which the listed rows are read
  Box* box;
};

constexpr int MOST_PARTS = 8;
template <class Team>
constexpr int TILE = 4 * Team::LANES;  // columns that a worker reads side by side

// Lay the arrays of a problem of up to `n` rows out from `memory`.
template <class Team>
__device__ Problem lay_out(const Team& team, unsigned char* memory, int n) {
  const int padded = (n + 3) & ~3, tiles = (padded + TILE<Team> - 1) / TILE<Team>;
  Problem s;
  s.parts = min(MOST_PARTS, max(1, workers_of(team) / max(1, tiles)));
  s.n = n;
  s.padded = padded;
  s.row_stride = padded;
  s.box = reinterpret_cast<Box*>(memory);
  s.key = reinterpret_cast<u64*>(memory + BOX_BYTES);
  s.price = reinterpret_cast<int*>(s.key + padded);
  s.potential = s.price + padded + TILE<Team>;
  s.col = s.potential + padded;
  s.owner = s.col + padded;
  s.reach = s.owner + padded;
  s.list = s.reach + padded;
  s.base = s.list + padded;
  s.mark = s.base + padded;
  s.offers = reinterpret_cast<u64*>(s.mark + padded);
  s.q = reinterpret_cast<int*>(s.offers + (s.parts - 1) * padded);
  return s;
}

// Add to what is counted for a problem.
template <class Team>
__device__ __forceinline__ void note(const Team& team, const Problem& s, Stat which, i64 amount) {
  if (team.rank == 0) s.box->stats[which] += amount;
}

// The smallest value of a worker's lanes: one instruction where the worker is a warp.
template <int LANES>
__device__ __forceinline__ int least_of(int value) {
  if constexpr (LANES == WARP) return __reduce_min_sync(lanes_mask<LANES>(), value);
  return reduce<LANES>(value, Lesser());
}

__device__ __forceinline__ int sum_of_warp(int value) {
  return __reduce_add_sync(lanes_mask<WARP>(), value);
}

// Append `value` where `wanted`, with one atomic for a warp, all of whose threads take part. The
// order of the list depends on timing, so no result may. Returns the place in the list.
__device__ __forceinline__ int append(bool wanted, int value, int* list, int* count) {
  const u32 votes = __ballot_sync(lanes_mask<WARP>(), wanted);
  if (votes == 0) return NONE;
  const int lane = threadIdx.x % WARP, leader = __ffs(static_cast<int>(votes)) - 1;
  int first = lane == leader ? atomicAdd(count, __popc(votes)) : 0;
  first = __shfl_sync(lanes_mask<WARP>(), first, leader, WARP);
  const int place = first + __popc(votes & ((1u << lane) - 1));
  if (wanted) list[place] = value;
  return place;
}

// The end of a strided loop in which all threads of a warp go on to the last round.
__device__ __forceinline__ int whole_warps(int n) { return (n + WARP - 1) / WARP * WARP; }

// The cheapest entry of a row at the present prices, and the next one.
struct Best {
  int low;     // smallest q + price
  int second;  // the smallest among the other columns
  int at;      // its column, in one lane of the worker; NONE in the others
};

// What one lane has seen of a row: its smallest entry, in which vector, and the smallest of the
// other vectors.
struct Seen {
  int low, vector, second;
};

// Read COUNT vectors at once, LANES apart. Only the smallest entry of each is compared, so that
// an entry costs one instruction.
template <int COUNT, int LANES>
__device__ __forceinline__ void read_vectors(
    const int4* q, const int4* price, int vector, Seen& seen) {
  int4 a[COUNT];
#pragma unroll
  for (int c = 0; c < COUNT; ++c) a[c] = q[vector + c * LANES];
#pragma unroll
  for (int c = 0; c < COUNT; ++c) {
    const int4 b = price[vector + c * LANES];
    const int low = min(min(a[c].x + b.x, a[c].y + b.y), min(a[c].z + b.z, a[c].w + b.w));
    seen.second = min(seen.second, max(seen.low, low));
    seen.vector = low < seen.low ? vector + c * LANES : seen.vector;
    seen.low = min(seen.low, low);
  }
}

// Among equal entries a row takes the first from its own diagonal on, cyclically, so that rows
// with many ties (dead units) do not all want the same column. Returns that column to all lanes.
template <class Team>
__device__ int first_of_ties(const Team& team, const Problem& s, int i, int low) {
  const int* q = s.q + i * s.row_stride;
  int first = LARGEST;
#pragma unroll 3
  for (int k = 4 * lane_of(team); k < s.padded; k += TILE<Team>) {
    const int4 a = *reinterpret_cast<const int4*>(q + k);
    const int4 b = *reinterpret_cast<const int4*>(s.price + k);
    const int values[4] = {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {  // padding costs more than any column
      const int j = k + e;
      if (values[e] == low) first = min(first, j < i ? j - i + s.n : j - i);
    }
  }
  first = least_of<Team::LANES>(first) + i;
  return first < s.n ? first : first - s.n;
}

// Read row i by one worker. The padding of prices and matrix lets it read whole tiles.
template <class Team>
__device__ Best scan_row(const Team& team, const Problem& s, int i) {
  constexpr int LANES = Team::LANES;
  constexpr int FLIGHT = 4;  // vectors that a thread loads before it looks at one
  const int4* q = reinterpret_cast<const int4*>(s.q + i * s.row_stride);
  const int4* price = reinterpret_cast<const int4*>(s.price);
  Seen seen = {LARGEST, 0, LARGEST};
  int vector = lane_of(team);
  int left = (s.padded / 4 + LANES - 1) / LANES;  // vectors of this lane
#pragma unroll 1
  for (; left >= FLIGHT; left -= FLIGHT, vector += FLIGHT * LANES) {
    read_vectors<FLIGHT, LANES>(q, price, vector, seen);
  }
  if (left >= 2) {
    read_vectors<2, LANES>(q, price, vector, seen);
    left -= 2;
    vector += 2 * LANES;
  }
  if (left >= 1) read_vectors<1, LANES>(q, price, vector, seen);
  const int low = least_of<LANES>(seen.low);
  const bool alone = __popc(__ballot_sync(lanes_mask<LANES>(), seen.low == low)) == 1;
  int at = NONE, second = seen.low;
  if (alone && seen.low == low) {  // one lane
    const int4 a = q[seen.vector], b = price[seen.vector];
    const int x = a.x + b.x, y = a.y + b.y, z = a.z + b.z, w = a.w + b.w;
    const bool left = min(x, y) == low, odd = left ? x != low : z != low;
    at = 4 * seen.vector + (left ? 0 : 2) + odd;
    // The other one of the pair, and the smaller one of the other pair.
    second = min(left ? max(x, y) : max(z, w), left ? min(z, w) : min(x, y));
    second = min(second, seen.second);
  }
  second = least_of<LANES>(second);
  if (second == low) {  // a tie
    const int first = first_of_ties(team, s, i, low);
    at = lane_of(team) == 0 ? first : NONE;
  }
  return {low, second, at};
}
