// Where threads meet: barriers, and exchanges between the lanes of a warp.
//
// The threads of a meeting must come to the same place in the kernel; those that are named and
// never come leave the others waiting, which is reported when nobody can go on.

#include <algorithm>

#include "fibers.h"

namespace simulator {

void see(Fiber& fiber, const Ticks& ticks) {
  const Ticks& seen = *fiber.seen;
  bool all_seen = true;
  for (size_t t = 0; t < ticks.size(); ++t) all_seen &= ticks[t] <= seen[t];
  if (all_seen) return;
  auto all = std::make_shared<Ticks>(*fiber.seen);
  for (size_t t = 0; t < ticks.size(); ++t) (*all)[t] = std::max((*all)[t], ticks[t]);
  fiber.seen = std::move(all);
}

namespace {

using Group = std::vector<Fiber*>;

const char* const NAMES[] = {
    "__syncwarp", "__shfl_sync", "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync",
    "__ballot_sync", "__any_sync", "__all_sync", "count", "__reduce_add_sync", "__reduce_min_sync",
    "__reduce_max_sync", "__reduce_min_sync", "__reduce_max_sync",
};

// All have seen what each has seen.
void order(const Group& group) {
  auto all = std::make_shared<Ticks>(*group[0]->seen);
  const Ticks* merged = group[0]->seen.get();  // most often they share it
  for (const Fiber* fiber : group) {
    if (fiber->seen.get() != merged) {
      merged = fiber->seen.get();
      for (size_t t = 0; t < all->size(); ++t) (*all)[t] = std::max((*all)[t], (*merged)[t]);
    }
  }
  for (const Fiber* fiber : group) (*all)[fiber->id] = fiber->now;
  for (Fiber* fiber : group) {
    fiber->seen = all;
    ++fiber->now;
  }
}

std::string name_of(const Fiber& fiber) {
  const bool plain = fiber.meeting == SIM_SYNC;
  if (fiber.at_block) return plain ? "__syncthreads" : "__syncthreads with a predicate";
  return NAMES[fiber.meeting];
}

// The lane that a shuffle reads; its own where that lies outside of the segment.
int source_of(const Fiber& fiber) {
  const int first = fiber.lane() & ~(fiber.width - 1), last = first + fiber.width - 1;
  int source = fiber.lane();
  switch (fiber.meeting) {
    case SIM_SHUFFLE: return first + (fiber.detail & (fiber.width - 1));
    case SIM_SHUFFLE_UP: source -= fiber.detail; return source < first ? fiber.lane() : source;
    case SIM_SHUFFLE_DOWN: source += fiber.detail; break;
    default: source ^= fiber.detail; break;
  }
  return source > last ? fiber.lane() : source;
}

void shuffle(const Group& group) {
  for (Fiber* fiber : group) {
    const int source = source_of(*fiber);
    const auto found = std::find_if(group.begin(), group.end(),
                                    [&](const Fiber* other) { return other->lane() == source; });
    if (found == group.end()) {
      report("a lane that takes no part is read: " + name_of(*fiber) + " " + place(fiber->site));
    }
    fiber->result = (found == group.end() ? fiber : *found)->given;
  }
}

uint64_t combine(int meeting, const Group& group) {
  uint64_t sum = 0, ballot = 0;
  uint32_t least = UINT32_MAX, largest = 0;
  int32_t lowest = INT32_MAX, highest = INT32_MIN;
  for (const Fiber* fiber : group) {
    const uint32_t value = static_cast<uint32_t>(fiber->given);
    sum += fiber->given;
    ballot |= fiber->given << fiber->lane();
    least = std::min(least, value);
    largest = std::max(largest, value);
    lowest = std::min(lowest, static_cast<int32_t>(value));
    highest = std::max(highest, static_cast<int32_t>(value));
  }
  switch (meeting) {
    case SIM_BALLOT: return ballot;
    case SIM_ANY: return sum > 0;
    case SIM_ALL: return sum == group.size();
    case SIM_REDUCE_MIN: return static_cast<uint32_t>(lowest);
    case SIM_REDUCE_MAX: return static_cast<uint32_t>(highest);
    case SIM_REDUCE_MIN_UNSIGNED: return least;
    case SIM_REDUCE_MAX_UNSIGNED: return largest;
    default: return sum;  // of counts and of 32 bits
  }
}

// All have come: compute, and let them go on.
void meet(const Group& group, bool orders) {
  const Fiber& first = *group[0];
  for (const Fiber* fiber : group) {
    if (fiber->site == first.site && fiber->meeting == first.meeting) continue;
    const bool swap = fiber->site < first.site;
    const Fiber &a = swap ? *fiber : first, &b = swap ? first : *fiber;
    report("divergent: " + name_of(a) + " " + place(a.site) + " meets " + name_of(b) + " " +
           place(b.site));
    break;
  }
  if (first.meeting >= SIM_SHUFFLE && first.meeting <= SIM_SHUFFLE_XOR) {
    shuffle(group);
  } else {
    const uint64_t result = combine(first.meeting, group);
    for (Fiber* fiber : group) fiber->result = result;
  }
  if (orders) order(group);
  for (Fiber* fiber : group) set_state(*fiber, READY);
}

void wait(int meeting, unsigned mask, bool at_block, uint64_t given, Site site) {
  Fiber& fiber = *grid.current;
  note_progress();
  fiber.meeting = meeting;
  fiber.mask = mask;
  fiber.at_block = at_block;
  fiber.given = given;
  fiber.site = site;
  set_state(fiber, WAITING);
}

uint64_t meet_block(int meeting, uint64_t given, Site site) {
  if (is_left_out(site)) return given;
  let_others_run();
  wait(meeting, 0, true, given, site);
  Block& block = grid.blocks[grid.current->block];
  block.arrived.push_back(grid.current);
  if (block.arrived.size() == block.fibers.size()) {
    const Group group = std::move(block.arrived);
    block.arrived.clear();
    meet(group, true);
  }
  leave();
  return grid.current->result;
}

// Of the fibers that `fiber` waits for, one that is not there.
const Fiber* missing(const Fiber& fiber) {
  for (const Fiber* other : grid.blocks[fiber.block].fibers) {
    const bool same_warp = other->thread / WARP == fiber.thread / WARP;
    if (!fiber.at_block && !(same_warp && fiber.mask >> other->lane() & 1)) continue;
    const bool there = other->state == WAITING && other->at_block == fiber.at_block &&
                       other->mask == fiber.mask;
    if (!there) return other;
  }
  return nullptr;
}

}  // namespace

void report_waiting() {
  for (const Fiber& fiber : grid.fibers) {
    if (fiber.state != WAITING) continue;
    const Fiber* other = missing(fiber);
    std::string text = "deadlock: " + name_of(fiber) + " " + place(fiber.site);
    text += " waits for a thread that ";
    if (!other) text += "does not exist";
    else if (other->state == DONE) text += "has ended";
    else text += "waits at " + name_of(*other) + " " + place(other->site);
    report(text);
  }
}

}  // namespace simulator

using namespace simulator;

extern "C" {

unsigned char* sim_shared() { return grid.blocks[grid.current->block].shared; }

void sim_syncthreads() { meet_block(SIM_SYNC, 0, SITE); }

int sim_block_vote(int meeting, int predicate) {
  return static_cast<int>(meet_block(meeting, predicate != 0, SITE));
}

uint64_t sim_warp(int meeting, unsigned mask, uint64_t bits, int detail, int width) {
  const Site site = SITE;
  if (meeting == SIM_SYNC && is_left_out(site)) return 0;
  let_others_run();
  Fiber& fiber = *grid.current;
  wait(meeting, mask, false, bits, site);
  fiber.detail = detail;
  fiber.width = width;
  if (!(mask >> fiber.lane() & 1)) {
    report("a lane is not in its own mask: " + name_of(fiber) + " " + place(site));
    stop();
  }
  Group& arrived = grid.blocks[fiber.block].exchanges[fiber.thread / WARP][mask];
  arrived.push_back(&fiber);
  if (static_cast<int>(arrived.size()) == __popc(mask)) {
    const Group group = std::move(arrived);
    grid.blocks[fiber.block].exchanges[fiber.thread / WARP].erase(mask);
    meet(group, meeting == SIM_SYNC);
  }
  leave();
  return fiber.result;
}
}
