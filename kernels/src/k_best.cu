// The k best matchings of many assignment problems: kernels/README.md says how and why.
//
// Murty's method with the work of all children shared, as gpu_align/_assignment/_k_best.py has it
// and with the same matchings in the same order, ties too. A matching turns into another one along
// a cycle of arcs: the arc from row i to row j stands for the column of i passing to j. One block
// does all ranks of a problem; only the matrix of paths is in shared memory. What a rank needs
// again, its paths, is computed again, up to the row that is asked for.
//
// Costs are integers below 2**51 in float64, so that every sum is exact and infinity is itself.

#include "teams.cuh"

constexpr int MOST_WARPS = 16;
constexpr int FLIGHT = 4;  // rows that a thread loads before it compares

// One problem. A matching is found with the rows after its last free one fixed, and with some
// columns banned from that row.
struct Ranking {
  int n;
  i64 k;
  const double* cost;  // [n, n] of column j and row i at (j, i); infinite where no match may be
  i64* col_ind;        // [k, n] of each rank
  double* total;       // [k] its costs
  double* child;       // [k, n] of the best matching that keeps the rows after i but not i itself;
                       // infinite if there is none or it is taken
  int* banned;         // [k, n] whether a column is
  int* last_free;      // [k]
  double* shortest;    // [n, n] in shared memory, as are the next ones: arcs, then paths
  double* own;         // [n] costs of the rows in the matching whose arcs these are
  double* least;       // [MOST_WARPS] of each warp
  i64* least_at;       // [MOST_WARPS]
  int* col;            // [n] that matching
  int* after;          // [n] the row after each row on a cycle, the row itself off the cycle
};

struct Child {
  double total;
  i64 at;
};

__device__ __forceinline__ double infinity() { return __longlong_as_double(0x7ff0000000000000ll); }

__device__ __forceinline__ Child better(Child a, Child b) {
  return b.total < a.total || (b.total == a.total && b.at < a.at) ? b : a;
}

// What it costs that the column of row i passes to row j.
__device__ __forceinline__ double arc(const Ranking& s, i64 rank, int last, int i, int j) {
  const int column = s.col[i];
  if (i == j || (j == last && s.banned[rank * s.n + column])) return infinity();
  return s.cost[static_cast<i64>(column) * s.n + j] - s.own[j];
}

// Shorten the paths to row j from rows i, i + stride, ... through row m; all are loaded before one
// is stored.
__device__ __forceinline__ void pass_through(
    Ranking& s, int m, int j, int i, int rows, int stride) {
  const double onward = s.shortest[m * s.n + j];
  double direct[FLIGHT], through[FLIGHT];
#pragma unroll
  for (int c = 0; c < FLIGHT; ++c) {
    const int from = (i + c * stride) * s.n;
    if (i + c * stride < rows) {
      direct[c] = s.shortest[from + j];
      through[c] = s.shortest[from + m] + onward;
    }
  }
#pragma unroll
  for (int c = 0; c < FLIGHT; ++c) {
    const bool shorter = i + c * stride < rows && through[c] < direct[c];
    if (shorter) s.shortest[(i + c * stride) * s.n + j] = through[c];
  }
}

// Take the matching of a rank, and find the shortest paths from each of its first rows to each
// other through rows before both: rows are eliminated from the first one on, as Floyd does, but
// never looking back. Entry (i, i) is then the shortest cycle through i and rows before i.
template <class Team>
__device__ void find_paths(Team& team, Ranking& s, i64 rank, int rows) {
  for (int i = team.rank; i < s.n; i += team.size) {
    s.col[i] = static_cast<int>(s.col_ind[rank * s.n + i]);
    s.own[i] = s.cost[static_cast<i64>(s.col[i]) * s.n + i];
    s.after[i] = i;
  }
  team.sync();
  const int last = s.last_free[rank], workers = workers_of(team);
  for (int i = worker_of(team); i < rows; i += workers) {
    for (int j = lane_of(team); j < rows; j += Team::LANES) {
      s.shortest[i * s.n + j] = arc(s, rank, last, i, j);
    }
  }
  team.sync();
  for (int m = 0; m < rows - 1; ++m) {
    for (int j = m + 1 + lane_of(team); j < rows; j += Team::LANES) {
      for (int i = m + 1 + worker_of(team); i < rows; i += FLIGHT * workers) {
        pass_through(s, m, j, i, rows, workers);
      }
    }
    team.sync();
  }
}

// Write what the children of a rank cost, whose paths have been found.
template <class Team>
__device__ void write_children(Team& team, Ranking& s, i64 rank, int rows) {
  for (int i = team.rank; i < s.n; i += team.size) {
    const double detour = i < rows ? s.shortest[i * s.n + i] : infinity();
    s.child[rank * s.n + i] = s.total[rank] + detour;
  }
  team.sync();
}

// The best child of all ranks before this one, the first of equal ones, for every thread.
template <class Team>
__device__ Child best_child(Team& team, Ranking& s, i64 rank) {
  Child best = {infinity(), 0};
  for (i64 at = team.rank; at < rank * s.n; at += team.size) {
    best = better(best, {s.child[at], at});
  }
#pragma unroll
  for (int k = WARP / 2; k > 0; k /= 2) {
    best = better(best, {exchange<WARP>(best.total, k), exchange<WARP>(best.at, k)});
  }
  if (lane_of(team) == 0) {
    s.least[worker_of(team)] = best.total;
    s.least_at[worker_of(team)] = best.at;
  }
  team.sync();
  for (int w = 0; w < workers_of(team); ++w) best = better(best, {s.least[w], s.least_at[w]});
  return best;
}

// Follow the shortest cycle through `row` and rows before it; one thread. A path that is no arc is
// split at the first row that makes it as short as it is.
__device__ void follow_cycle(Ranking& s, i64 rank, int row) {
  const int last = s.last_free[rank];
  int i = row;
  for (int step = 0; step < 2 * s.n; ++step) {  // as many splits as rows, and as many arcs, at most
    const int end = s.after[i];
    if (i != end && s.shortest[i * s.n + end] == arc(s, rank, last, i, end)) {
      i = end;
      if (i == row) return;
      continue;
    }
    int middle = 0;
    double least = infinity();
    for (int m = 0; m < min(i, end); ++m) {
      const double through = s.shortest[i * s.n + m] + s.shortest[m * s.n + end];
      if (through < least) {
        least = through;
        middle = m;
      }
    }
    s.after[middle] = end;
    s.after[i] = middle;
  }
}

// Make the child of `parent` that changes `row` the matching of this rank.
template <class Team>
__device__ void take(Team& team, Ranking& s, i64 rank, i64 parent, int row, double total) {
  find_paths(team, s, parent, row + 1);
  if (team.rank == 0) follow_cycle(s, parent, row);
  team.sync();
  const bool same_row = row == s.last_free[parent];
  for (int i = team.rank; i < s.n; i += team.size) {
    s.col_ind[rank * s.n + s.after[i]] = s.col[i];
    const bool was_banned = same_row && s.banned[parent * s.n + i];
    s.banned[rank * s.n + i] = i == s.col[row] || was_banned;
  }
  if (team.rank == 0) {
    s.total[rank] = total;
    s.last_free[rank] = row;
    s.child[parent * s.n + row] = infinity();
  }
  team.sync();
}

// Fill the ranks from this one on: no matching is left, or the first one was not the best.
template <class Team>
__device__ void fill(Team& team, Ranking& s, i64 rank, double total) {
  for (i64 at = rank * s.n + team.rank; at < s.k * s.n; at += team.size) {
    s.col_ind[at] = s.col_ind[at % s.n];
  }
  for (i64 r = rank + team.rank; r < s.k; r += team.size) s.total[r] = total;
}

// Make the given matching rank 0.
template <class Team>
__device__ void start(Team& team, Ranking& s, const i64* best) {
  for (int i = team.rank; i < s.n; i += team.size) {
    s.col_ind[i] = best[i];
    s.banned[i] = 0;
    s.own[i] = s.cost[best[i] * s.n + i];
  }
  team.sync();
  if (team.rank == 0) {
    double total = 0;
    for (int i = 0; i < s.n; ++i) total += s.own[i];
    s.total[0] = total;
    s.last_free[0] = s.n - 1;
  }
  team.sync();
}

template <class Team>
__device__ void run(Team& team, Ranking& s, const i64* best) {
  start(team, s, best);
  int rows = s.n;  // that the matching of the last rank leaves free
  for (i64 rank = 1; rank < s.k; ++rank) {
    find_paths(team, s, rank - 1, rows);
    write_children(team, s, rank - 1, rows);
    const Child next = best_child(team, s, rank);
    if (next.total == infinity() || next.total < s.total[rank - 1]) {
      fill(team, s, rank, next.total);
      return;
    }
    const i64 parent = next.at / s.n;
    rows = static_cast<int>(next.at - parent * s.n) + 1;
    take(team, s, rank, parent, rows - 1, next.total);
  }
}

// One block for each problem.
extern "C" __global__ void __launch_bounds__(WARP * MOST_WARPS, 1)
    k_best(const double* cost, const i64* best, i64 b, i64 n, i64 k, i64* col_ind, double* total,
           double* child, int* banned, int* last_free) {
  DYNAMIC_SHARED(memory);
  BlockTeam<true> team;
  Ranking s;
  s.n = static_cast<int>(n);
  s.k = k;
  s.shortest = reinterpret_cast<double*>(memory);
  s.own = s.shortest + n * n;
  s.least = s.own + n;
  s.least_at = reinterpret_cast<i64*>(s.least + MOST_WARPS);
  s.col = reinterpret_cast<int*>(s.least_at + MOST_WARPS);
  s.after = s.col + n;
  for (i64 p = blockIdx.x; p < b; p += gridDim.x) {
    s.cost = cost + p * n * n;
    s.col_ind = col_ind + p * k * n;
    s.total = total + p * k;
    s.child = child + p * k * n;
    s.banned = banned + p * k * n;
    s.last_free = last_free + p * k;
    run(team, s, best + p * n);
  }
}
