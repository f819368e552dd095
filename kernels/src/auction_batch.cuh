// A batch of problems: where it is read from and written to.

#pragma once
#include "auction_problem.cuh"

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
  // How many rows problem p has, or -1 where its size makes no sense.
  __device__ __forceinline__ int rows_of(i64 p) const {
    const i64 rows = sizes ? sizes[p] : n;
    return rows >= 0 && rows <= n ? static_cast<int>(rows) : NONE;
  }
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

// Write what is left of problem p, whose `rows` first rows are written where it is solved.
template <class Team>
__device__ void conclude(
    const Team& team, const Batch& batch, i64 p, int rows, int status, const i64* stats) {
  const double nan = __longlong_as_double(0x7ff8000000000000ll);
  if (status == SOLVED) {
    write_identity(team, batch, p, rows, 0.0);
  } else {
    write_identity(team, batch, p, 0, nan);
  }
  if (team.rank > 0) return;
  if (status != SOLVED) batch.objective[p] = batch.gap[p] = nan;
  batch.status[p] = status;
#pragma unroll
  for (int k = 0; k < STATS; ++k) batch.stats[p * STATS + k] = stats[k];
}
