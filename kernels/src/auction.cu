// Many linear assignment problems at once, exactly: kernels/README.md says how and why.
//
//     minimise  sum_i c[i, col[i]]  over the permutations col of each problem
//
// Costs become integers (auction_costs.cuh), an auction matches nearly all rows
// (auction_bids.cuh), a shortest-path forest the rest (auction_forest.cuh), and the result is
// certified on the original costs. One kernel per size of the team that shares a problem
// (teams.cuh) and type of cost; launched by auction.py.

#include "auction_problem.cuh"

#include "auction_bids.cuh"

#include "auction_forest.cuh"

#include "auction_costs.cuh"

// Where a batch is read from and written to; n is the size of the largest problem.
struct Batch {
  const void* cost;         // [b, n, n], float32, or float64 where `wide`
  i64 wide;
  const i64* sizes;         // [b], or null
  const double* old_dual;   // [b, n] duals of the columns to start from, NaN first in the row of a
                            // problem that starts cold; or null
  const i64* old_col;       // [b, n] columns of the rows to start from, or null
  i64 batch, n;
  double sign;              // -1 to maximise
  i64 limit;                // rounds
  i64* col_ind;             // [b, n]
  double* row_dual;         // [b, n]
  double* col_dual;         // [b, n]
  double* objective;        // [b]
  double* gap;              // [b]
  i64* status;              // [b]
  i64* stats;               // [b, STATS]
};

enum Status { SOLVED, NOT_FINITE, ROUND_LIMIT, INEXACT, WRONG_SIZE };

// Padding, and all of a failed problem, hold the identity; the duals there are `dual`.
template <class Team>
__device__ void write_identity(
    const Team& team, const Batch& batch, i64 p, int begin, double dual) {
  for (i64 i = begin + team.rank; i < batch.n; i += team.size) {
    batch.col_ind[p * batch.n + i] = i;
    batch.row_dual[p * batch.n + i] = batch.col_dual[p * batch.n + i] = dual;
  }
}

template <class Team>
__device__ int solve(
    Team& team, Problem& s, Costs& costs, const Batch& batch, i64 p) {
  if (s.n == 0) {  // every thread of the team: no sync is missed
    if (team.rank == 0) batch.objective[p] = batch.gap[p] = 0;
    return SOLVED;
  }
  measure(team, s, costs);
  if (!choose_scale(s, costs)) return NOT_FINITE;
  make_integers(team, s, costs);
  const bool warm = batch.old_dual && !isnan(batch.old_dual[p * batch.n]);
  if (warm) {
    const i64* pairs = batch.old_col ? batch.old_col + p * batch.n : nullptr;
    start_from(team, s, costs, batch.old_dual + p * batch.n, pairs);
  }
  const double deviation = standard_deviation(s);
  team.sync();
  auction(team, s, deviation, warm, batch.limit);
  if (!forest(team, s, deviation, batch.limit)) return ROUND_LIMIT;
  choose_scale(s, costs);  // once more: it is not kept in registers meanwhile
  const bool tight = certify(team, s, costs, batch.row_dual + p * batch.n,
                             batch.col_dual + p * batch.n, batch.objective + p, batch.gap + p);
  return tight ? SOLVED : INEXACT;
}

// Solve problem p in `memory`; `q`, where given, is outside of it.
template <class Team>
__device__ void run(Team& team, unsigned char* memory, int* q, const Batch& batch, i64 p) {
  const i64 rows = batch.sizes ? batch.sizes[p] : batch.n;
  const bool fits = rows >= 0 && rows <= batch.n;
  Problem s = lay_out(team, memory, fits ? static_cast<int>(rows) : 0);
  if (Team::MATRIX_OUTSIDE) s.q = q;
  if (team.rank == 0) {
    for (int k = 0; k < STATS; ++k) s.box->stats[k] = 0;
  }
  const i64 offset = p * batch.n * batch.n * (batch.wide ? 8 : 4);
  Costs costs;
  costs.data = static_cast<const unsigned char*>(batch.cost) + offset;
  costs.wide = batch.wide != 0;
  costs.stride = batch.n;
  costs.sign = batch.sign;
  const int status = fits ? solve(team, s, costs, batch, p) : WRONG_SIZE;
  const double nan = __longlong_as_double(0x7ff8000000000000ll);
  if (status == SOLVED) {
    for (int i = team.rank; i < s.n; i += team.size) {
      batch.col_ind[p * batch.n + i] = s.col[i];
    }
    write_identity(team, batch, p, s.n, 0.0);
  } else {
    team.sync();
    write_identity(team, batch, p, 0, nan);
  }
  if (team.rank == 0) {
    if (status != SOLVED) batch.objective[p] = batch.gap[p] = nan;
    batch.status[p] = status;
    for (int k = 0; k < STATS; ++k) batch.stats[p * STATS + k] = s.box->stats[k];
  }
  team.sync();
}

#define PARAMETERS                                                                              \
  const void *cost, i64 wide, const i64 *sizes, const double *old_dual, const i64 *old_col, i64 b, \
      i64 n, double sign, i64 limit, i64 *col_ind, double *row_dual, double *col_dual,          \
      double *objective, double *gap, i64 *status, i64 *stats
#define BATCH                                                                           \
  {cost,  wide,    sizes,    old_dual, old_col,   b,   n,      sign, \
   limit, col_ind, row_dual, col_dual, objective, gap, status, stats}

// Without KERNEL all of them are compiled.
#ifndef KERNEL
#define KERNEL -1
#endif

#if KERNEL == 0 || KERNEL < 0
// One warp for each problem, `bytes` of shared memory for each warp.
extern "C" __global__ void __launch_bounds__(256, 2) auction_warp(PARAMETERS, i64 bytes) {
  DYNAMIC_SHARED(memory);
  const Batch batch = BATCH;
  const i64 warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  WarpTeam team;
  for (i64 p = blockIdx.x * warps + warp; p < b; p += gridDim.x * warps) {
    run(team, memory + warp * bytes, nullptr, batch, p);
  }
}
#endif

#if KERNEL == 1 || KERNEL < 0
// One block for each problem, everything in shared memory.
extern "C" __global__ void __launch_bounds__(512, 1) auction_shared(PARAMETERS) {
  DYNAMIC_SHARED(memory);
  const Batch batch = BATCH;
  BlockTeam<false> team;
  for (i64 p = blockIdx.x; p < b; p += gridDim.x) run(team, memory, nullptr, batch, p);
}
#endif

#if KERNEL == 2 || KERNEL < 0
// One block for each problem, the integers in `scratch`, `integers` of them for each block.
extern "C" __global__ void __launch_bounds__(BLOCK_THREADS)
    auction_block(PARAMETERS, int* scratch, i64 integers) {
  DYNAMIC_SHARED(memory);
  const Batch batch = BATCH;
  BlockTeam<true> team;
  int* q = scratch + blockIdx.x * integers;
  for (i64 p = blockIdx.x; p < b; p += gridDim.x) run(team, memory, q, batch, p);
}
#endif

#if KERNEL == 3 || KERNEL < 0
// `blocks` blocks for each problem, everything in `scratch`, `bytes` for each team.
extern "C" __global__ void __launch_bounds__(GRID_THREADS)
    auction_grid(PARAMETERS, unsigned char* scratch, i64 bytes, u64* arrivals, i64 blocks) {
  const Batch batch = BATCH;
  const i64 me = blockIdx.x / blocks, teams = gridDim.x / blocks;
  GridTeam team(static_cast<int>(blocks), arrivals + me);
  for (i64 p = me; p < b; p += teams) run(team, scratch + me * bytes, nullptr, batch, p);
}
#endif
