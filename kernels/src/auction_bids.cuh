// The auction: free rows bid for their cheapest column, all at once, at falling epsilon.
//
// Bertsekas, "The auction algorithm: a distributed relaxation method for the assignment problem",
// Annals of Operations Research 14, 1988. It only prepares the forest: each phase is cut when
// few rows are left, because nearly all rounds of a complete auction serve its last rows.
//
// No overflow: q <= R = 2**29 and epsilon <= R / 10. An owned column costs its row at most epsilon
// more than any other, so once the smallest price is 0 no price exceeds R + epsilon. While two
// columns are free, the second best entry of a row is at most R + (R + epsilon), so a bid is at
// most 2R + 2 epsilon, and q + price stays below 2**31.

#pragma once
#include "auction_problem.cuh"

// Make the smallest price 0; where `shift_rows`, move the rows' potentials with it.
template <class Team>
__device__ void lower_prices(Team& team, const Problem& s, bool shift_rows) {
  if (team.rank == 0) s.box->least = LARGEST;
  team.sync();
  int least = LARGEST;
  for (int j = team.rank; j < s.n; j += team.size) least = min(least, s.price[j]);
  least = least_of<Team::LANES>(least);
  if (lane_of(team) == 0) atomicMin(&s.box->least, least);
  team.sync();
  least = s.box->least;
  for (int j = team.rank; j < s.n; j += team.size) {
    s.price[j] -= least;
    if (shift_rows) s.potential[j] -= least;
  }
}

// Append to `list` the free rows; returns how many. Takes `count[0]`, which must be 0.
template <class Team>
__device__ int gather_free_rows(Team& team, const Problem& s, int* list) {
  for (int i = team.rank; i < whole_warps(s.n); i += team.size) {
    append(i < s.n && s.col[i] < 0, i, list, &s.box->count[0]);
  }
  team.sync();
  return s.box->count[0];
}

template <class Team>
__device__ void reset_counts(const Team& team, const Problem& s) {
  if (team.rank < 3) s.box->count[team.rank] = 0;
  if (team.size < 3 && team.rank == 0) s.box->count[1] = s.box->count[2] = 0;
}

// Free the rows whose column costs over epsilon more than their cheapest; then free rows take their
// cheapest column where that is free. Every row's potential is what its cheapest column costs.
template <class Team>
__device__ void review_pairs(Team& team, const Problem& s, int epsilon) {
  for (int j = team.rank; j < s.n; j += team.size) s.mark[j] = LARGEST;
  team.sync();
  note(team, s, SCANS, s.n);
  for (int i = worker_of(team); i < s.n; i += workers_of(team)) {
    const Best best = scan_row(team, s, i);
    if (best.at < 0) continue;
    const int j = s.col[i];
    s.potential[i] = best.low;
    s.list[i] = best.at;
    if (j >= 0 && s.q[i * s.row_stride + j] + s.price[j] > best.low + epsilon) {
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

// Every listed row bids. While it waits for the outcome, col[i] = ~(column bid for).
template <class Team>
__device__ void place_bids(const Team& team, const Problem& s, const int* list, int m, int epsilon) {
  for (int k = worker_of(team); k < m; k += workers_of(team)) {
    const int i = list[k];
    const Best best = scan_row(team, s, i);
    if (best.at >= 0) {
      const u32 bid = s.price[best.at] + (best.second - best.low) + epsilon;
      s.col[i] = ~best.at;
      // Equal bids: the lowest row wins. A bid is above the price, so above all before it. To
      // look first spares most of the attempts in which an atomic of 64 bits consists.
      const u64 key = static_cast<u64>(bid) << 32 | static_cast<u32>(~i);
      if (key > peek(&s.key[best.at])) atomicMax(&s.key[best.at], key);
    }
  }
}

// Winners take their columns; losers and the rows they replace go to `next`.
template <class Team>
__device__ void award_columns(
    const Team& team, const Problem& s, const int* list, int m, int* next, int* count) {
  for (int k = team.rank; k < whole_warps(m); k += team.size) {
    int loser = NONE;
    if (k < m) {
      const int i = list[k], j = ~s.col[i];
      const u64 best = s.key[j];
      loser = i;
      if (static_cast<int>(~static_cast<u32>(best)) == i) {
        loser = s.owner[j];
        s.owner[j] = i;
        s.price[j] = static_cast<int>(best >> 32);
        s.col[i] = j;
        if (loser >= 0) s.col[loser] = NONE;
      }
    }
    append(loser >= 0, loser, next, count);
  }
}

// Prepare a phase at a fixed epsilon; returns how many rows are free, which s.list then holds.
template <class Team>
__device__ int start_phase(Team& team, const Problem& s, int epsilon, bool has_prices) {
  lower_prices(team, s, false);
  for (int j = team.rank; j < s.n; j += team.size) s.key[j] = 0;
  reset_counts(team, s);
  team.sync();
  if (has_prices) review_pairs(team, s, epsilon);
  return gather_free_rows(team, s, s.list);
}

// One phase, until `cut` of the `m` rows of s.list are free or `limit` rounds have passed.
template <class Team>
__device__ void bid(Team& team, const Problem& s, int epsilon, int m, int cut, int limit) {
  int *list = s.list, *next = s.mark;
  for (int round = 0; m > cut && round < limit; ++round) {
    const int now = (round + 1) % 3;
    // Round after next counts here; nobody reads it any more.
    if (team.rank == 0) s.box->count[(round + 2) % 3] = 0;
    place_bids(team, s, list, m, epsilon);
    team.sync();
    note(team, s, BID_ROUNDS, 1);
    note(team, s, SCANS, m);
    award_columns(team, s, list, m, next, &s.box->count[now]);
    team.sync();
    m = s.box->count[now];
    int* swap = list;
    list = next;
    next = swap;
  }
  team.sync();
}

// Forget prices and pairs.
template <class Team>
__device__ void forget(Team& team, const Problem& s) {
  team.sync();
  for (int j = team.rank; j < s.n; j += team.size) {
    s.price[j] = 0;
    s.col[j] = s.owner[j] = NONE;
  }
  team.sync();
}

// Phases from 0.2 standard deviations down to 0.008, each epsilon a fifth of the one before. A
// warm start needs the last phase only, unless over three rows of ten are without a column that
// suits them: then old prices are worse than none, and the problem starts cold.
template <class Team>
__device__ void auction(Team& team, const Problem& s, double deviation, bool warm, i64 limit) {
  const int last = max(1, static_cast<int>(rint(8e-3 * deviation)));
  const int cut = max(1, s.n / 16);
  // Where all matchings nearly tie, a phase would last for thousands of rounds; elsewhere one
  // that is cut too early leaves a forest of too many trees.
  const int rounds = static_cast<int>(min(limit, 256ll + s.n));
  int epsilon = max(last, static_cast<int>(rint(0.2 * deviation)));
  if (warm) epsilon = last;
  for (bool has_prices = warm;;) {
    const int m = start_phase(team, s, epsilon, has_prices);
    if (warm && 10 * m > 3 * s.n) {
      forget(team, s);
      warm = has_prices = false;
      epsilon = max(last, static_cast<int>(rint(0.2 * deviation)));
      continue;
    }
    bid(team, s, epsilon, m, cut, rounds);
    if (epsilon == last) break;
    has_prices = true;
    epsilon = max(last, static_cast<int>(rint(epsilon / 5.0)));
  }
}
