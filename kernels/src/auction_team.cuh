// Who works on a problem, what it keeps in memory, and how one row is read.
//
// A team solves one problem: a warp, a thread block, or several blocks of a cooperative grid. All
// device code is written as strided loops between `team.sync()`; a *worker* is the team's unit
// that reads a row together, LANES threads of one warp. What a loop computes never depends on the
// number of threads: sums, minima and maxima are of integers, ties are broken by position. So a
// host compiler can build the same text with one thread (tests/auction_host.h).

#pragma once

#ifndef GPU_ALIGN_HOST
#define WARP 32
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

template <class T>
__device__ __forceinline__ T peek(const T* place) {
  return *static_cast<const volatile T*>(place);
}
#endif

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

constexpr int LARGEST = 0x7fffffff;      // also the price of padding
constexpr u32 UNREACHED = 0xffffffffu;   // no path yet
constexpr u64 NO_LABEL = ~0ull;
constexpr int NONE = -1;

// What is counted for each problem, in this order in the output.
enum Stat { BID_ROUNDS, FOREST_ROUNDS, FOREST_PHASES, SCANS, STATS };

// Scalars that a team shares. Each is reset at least one sync before it is used again.
struct Box {
  u64 low, high;                       // range of the costs, as ordered bits
  u64 sum, squares_low, squares_high;  // of the integers; the squares in two parts
  u32 nearest[2], far;                 // nearest waiting column; farthest free one of the half
  int count[3], least, bin[2], slack;  // slack: rows whose pair is not tight
};
constexpr int BOX_BYTES = 96;
static_assert(sizeof(Box) <= BOX_BYTES, "auction.py reserves BOX_BYTES");

// A warp; a block holds several of them.
struct WarpTeam {
  static constexpr int LANES = WARP >= 4 ? WARP / 4 : 1;
  static constexpr int SUBBITS = 1;
  int rank, size;
  __device__ WarpTeam() : rank(threadIdx.x % WARP), size(WARP) {}
  __device__ void sync() { __syncwarp(); }
};

struct BlockTeam {
  static constexpr int LANES = WARP;
  static constexpr int SUBBITS = 3;
  int rank, size;
  __device__ BlockTeam() : rank(threadIdx.x), size(blockDim.x) {}
  __device__ void sync() { __syncthreads(); }
};

// Some neighbouring blocks of a cooperative launch, all of them resident.
struct GridTeam {
  static constexpr int LANES = WARP;
  static constexpr int SUBBITS = 3;
  int rank, size;
  u64 blocks, *arrivals;  // arrivals only ever counts up
  __device__ GridTeam(int count, u64* counter)
      : rank(blockIdx.x % count * blockDim.x + threadIdx.x),
        size(count * blockDim.x),
        blocks(count),
        arrivals(counter) {}
  __device__ void sync() {
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      const u64 ticket = atomicAdd(arrivals, 1ull);
      const u64 complete = (ticket / blocks + 1) * blocks;
      while (peek(arrivals) < complete) __nanosleep(32);
      __threadfence();
    }
    __syncthreads();
  }
};

// A worker's number, the number of workers, and a thread's place in its worker.
template <class Team>
__device__ __forceinline__ int worker_of(const Team& team) { return team.rank / Team::LANES; }
template <class Team>
__device__ __forceinline__ int workers_of(const Team& team) { return team.size / Team::LANES; }
template <class Team>
__device__ __forceinline__ int lane_of(const Team& team) { return team.rank % Team::LANES; }

// Bins of a histogram of distances: the leading bit and SUBBITS bits below it.
template <class Team>
constexpr int BINS = (32 - Team::SUBBITS + 1) << Team::SUBBITS;

// One problem: n rows, every array padded to a multiple of four.
struct Problem {
  int n, padded;
  u64 row_stride;
  int* q;          // [n, row_stride] the costs as integers, 0 .. 2**29; padding columns are 0
  u64* key;        // [padded] of a column: best bid, or nearest path: (value, row)
  int* price;      // [padded] of a column, >= 0: minus its dual
  int* potential;  // [padded] of a row: its dual
  int* col;        // [padded] of a row: its column; negative where it is free
  int* owner;      // [padded] of a column: its row, or NONE
  int* reach;      // [padded] of a column: its distance minus its price
  int* list;       // [padded] rows to read next
  int* mark;       // [padded] a second list; columns whose row waits
  u32* bins[2];    // [BINS] histograms of the waiting columns and of the free ones
  Box* box;
};
constexpr int VECTOR_BYTES = 36;

// Lay the arrays of a problem of up to `n` rows out from `memory`.
template <class Team>
__device__ Problem lay_out(unsigned char* memory, int n) {
  const int padded = (n + 3) & ~3;
  Problem s;
  s.n = n;
  s.padded = padded;
  s.row_stride = padded;
  s.box = reinterpret_cast<Box*>(memory);
  s.key = reinterpret_cast<u64*>(memory + BOX_BYTES);
  s.price = reinterpret_cast<int*>(s.key + padded);
  s.potential = s.price + padded;
  s.col = s.potential + padded;
  s.owner = s.col + padded;
  s.reach = s.owner + padded;
  s.list = s.reach + padded;
  s.mark = s.list + padded;
  s.bins[0] = reinterpret_cast<u32*>(memory + BOX_BYTES + VECTOR_BYTES * padded);
  s.bins[1] = s.bins[0] + BINS<Team>;
  s.q = reinterpret_cast<int*>(s.bins[1] + BINS<Team>);
  return s;
}

// The value of the lane whose number differs in bit `k`, within a worker.
template <int LANES, class T>
__device__ __forceinline__ T exchange(T value, int k) {
  constexpr u32 ALL = LANES == 32 ? 0xffffffffu : (1u << (LANES % 32)) - 1;
  return __shfl_xor_sync(ALL << (threadIdx.x % WARP / LANES * LANES), value, k, LANES);
}

// Reduce over the lanes of a worker; every lane gets the result.
template <int LANES, class T, class Op>
__device__ __forceinline__ T reduce(T value, Op op) {
#pragma unroll
  for (int k = LANES / 2; k > 0; k /= 2) value = op(value, exchange<LANES>(value, k));
  return value;
}

struct Lesser {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const { return b < a ? b : a; }
};
struct Greater {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const { return a < b ? b : a; }
};
struct Plus {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const { return a + b; }
};

// The cheapest entry of a row at the present prices, and the next one.
struct Best {
  int low;     // smallest q + price
  int at;      // its column
  int second;  // the smallest among the other columns
};

__device__ __forceinline__ void offer(int value, int place, int& low, int& at, int& second) {
  if (value < second) {
    if (value < low) {
      second = low;
      low = value;
      at = place;
    } else {
      second = value;
    }
  }
}

// Read row i by one worker. Among equal entries a row takes the first from its own diagonal on,
// cyclically, so that rows with many ties (dead units) don't all want the same column.
template <class Team>
__device__ Best scan_row(const Team& team, const Problem& s, int i) {
  constexpr int LANES = Team::LANES;
  const int4* q = reinterpret_cast<const int4*>(s.q + i * s.row_stride);
  const int4* price = reinterpret_cast<const int4*>(s.price);
  const int vectors = s.padded / 4, start = i / 4;
  int low = LARGEST, at = LARGEST, second = LARGEST;
#pragma unroll 2
  for (int k = lane_of(team); k < vectors; k += LANES) {
    const int v = start + k < vectors ? start + k : start + k - vectors;
    const int4 a = q[v], b = price[v];
    offer(a.x + b.x, 4 * k, low, at, second);
    offer(a.y + b.y, 4 * k + 1, low, at, second);
    offer(a.z + b.z, 4 * k + 2, low, at, second);
    offer(a.w + b.w, 4 * k + 3, low, at, second);
  }
  const u64 own = static_cast<u64>(low) << 32 | static_cast<u32>(at);
  const u64 first = reduce<LANES>(own, Lesser());
  const int place = static_cast<int>(first);
  second = reduce<LANES>(place == at ? second : low, Lesser());
  const int v = start + place / 4 < vectors ? start + place / 4 : start + place / 4 - vectors;
  return {static_cast<int>(first >> 32), 4 * v + place % 4, second};
}
