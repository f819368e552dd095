// Many linear assignment problems at once, exactly: kernels/README.md says how and why.
//
//     minimise  sum_i c[i, col[i]]  over the permutations col of each problem
//
// Costs become integers (auction_costs.cuh), an auction matches nearly all rows
// (auction_bids.cuh), a shortest-path forest the rest (auction_forest.cuh), and the result is
// certified on the original costs. Up to 64 rows are one warp's, by shortest paths alone
// (auction_warp.cuh). One kernel per size of the team that shares a problem (teams.cuh);
// launched by auction.py.

#include "auction_problem.cuh"

#include "auction_bids.cuh"

#include "auction_forest.cuh"

#include "auction_costs.cuh"

#include "auction_warp.cuh"

template <class Team>
__device__ int solve(
    Team& team, Problem& s, Costs& costs, const Batch& batch, i64 p) {
  if (s.n == 0) {  // every thread of the team: no sync is missed
    if (team.rank == 0) batch.objective[p] = batch.gap[p] = 0;
    return SOLVED;
  }
  measure(team, s, costs);
  if (!choose_scale(s.box, costs)) return NOT_FINITE;
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
  choose_scale(s.box, costs);  // once more: it is not kept in registers meanwhile
  const bool tight = certify(team, s, costs, batch.row_dual + p * batch.n,
                             batch.col_dual + p * batch.n, batch.objective + p, batch.gap + p);
  return tight ? SOLVED : INEXACT;
}

// Solve problem p in `memory`; `q`, where given, is outside of it.
template <class Team>
__device__ void run(Team& team, unsigned char* memory, int* q, const Batch& batch, i64 p) {
  const int rows = batch.rows_of(p);
  Problem s = lay_out(team, memory, max(0, rows));
  if (Team::MATRIX_OUTSIDE) s.q = q;
  if (team.rank == 0) {
    for (int k = 0; k < STATS; ++k) s.box->stats[k] = 0;
  }
  Costs costs = costs_of(batch, p);
  const int status = rows < 0 ? WRONG_SIZE : solve(team, s, costs, batch, p);
  if (status == SOLVED) {
    for (int i = team.rank; i < s.n; i += team.size) batch.col_ind[p * batch.n + i] = s.col[i];
  }
  team.sync();
  conclude(team, batch, p, s.n, status, s.box->stats);
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

// One warp for each problem, `bytes` of shared memory for each warp.
template <int ROWS>
__device__ __forceinline__ void run_warps(const Batch& batch, i64 bytes) {
  DYNAMIC_SHARED(memory);
  const i64 warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  for (i64 p = blockIdx.x * warps + warp; p < batch.batch; p += gridDim.x * warps) {
    run_small<ROWS>(memory + warp * bytes, batch, p);
  }
}

#if KERNEL == 0 || KERNEL < 0
// Problems of up to 32 rows.
extern "C" __global__ void __launch_bounds__(256, 4) auction_warp(PARAMETERS, i64 bytes) {
  run_warps<32>(BATCH, bytes);
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

#if KERNEL == 4 || KERNEL < 0
// Problems of up to 64 rows.
extern "C" __global__ void __launch_bounds__(128, 3) auction_warp_64(PARAMETERS, i64 bytes) {
  run_warps<64>(BATCH, bytes);
}
#endif
